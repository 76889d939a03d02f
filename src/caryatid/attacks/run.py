"""Running an attack: goals in blocks, shards of whole blocks, and finished goals kept one by one."""

import math
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..artifacts import content_key, read_json, write_json
from ..errors import InputError, UsageError
from ..models.batch import RowLimit
from ..models.load import LoadedModel
from ..models.sizes import BatchSizes
from ..models.template import ChatFormat
from ..progress import NO_PROGRESS, Progress
from ..settings import Settings
from .base import ATTACKS, Answered, AttackResult, BlockRun, Goal
from .builtin import attack_named

_FORMAT = 3  # of kept results; raised when results get further fields
MOST_TOGETHER = 16
# On CUDA a step scores its goals in so many groups: while the device scores one, the tokenizer is busy with the next.
_GROUPS = 4


def goals_together(settings: Settings, device: str, batch: BatchSizes) -> int:
    """How many goals are attacked together where nobody says.

    On the CPU one: the work is bound by arithmetic, so that larger batches save no time (docs/performance.md), and each
    goal is kept as soon as it is done. On CUDA as many as fill the planned forwards: four groups of candidates of
    `batch.gcg` rows, or `batch.train` rows of gradients (one a goal), whichever takes more goals; at most 16. The sizes
    in `batch` follow from the free memory and the model's size.

    Args:
        settings: of the attack; one whose goals share no forward passes (`Attack.together`) has one goal at a time, one
            without `width` scores no candidates.
        device: a torch device's name.
    """
    shared = any(attack.together and attack.settings is type(settings) for attack in ATTACKS.values())
    if not device.startswith("cuda") or not shared:
        return 1
    width = getattr(settings, "width", 0)
    candidates = _GROUPS * math.ceil(batch.gcg / width) if width else 1
    return min(MOST_TOGETHER, max(candidates, batch.train))


def attack_blocks(goals: Sequence[Goal], block_size: int) -> list[tuple[Goal, ...]]:
    """The goals in their order, `block_size` at a time: those of a block are attacked together.

    Raises:
        InputError: `block_size` is below 1, or two goals are equal.
    """
    if block_size < 1:
        raise InputError(f"block size {block_size} is below 1", where="attack")
    if len(set(goals)) < len(goals):
        raise InputError("a behaviour occurs twice with the same target", where="attack")
    return [tuple(goals[start : start + block_size]) for start in range(0, len(goals), block_size)]


@dataclass(frozen=True)
class AttackPlan:
    """An attack on some goals, settled before anything runs; any sharding of it gives the same results.

    Attributes:
        attack: a registered attack's name. settings: of that attack's class.
        seed: with a goal it decides all that is drawn for the goal, whatever its place in the list.
        batch_size: rows per forward at most; it changes results by rounding alone.
        block_size: goals that are attacked together.
    """

    attack: str
    settings: Settings
    goals: tuple[Goal, ...]
    seed: int
    batch_size: int
    block_size: int = 1

    def __post_init__(self) -> None:
        if not self.goals:
            raise InputError("no behaviours to attack", where="attack", remedy="Add rows to the file.")
        if not isinstance(self.settings, attack_named(self.attack).settings):
            raise TypeError(f"{type(self.settings).__name__} are no settings of {self.attack}")
        attack_blocks(self.goals, self.block_size)

    def blocks(self, shard: tuple[int, int] = (0, 1)) -> list[tuple[Goal, ...]]:
        """The blocks of shard `index` of `count`, counted from 0: every `count`-th one.

        Raises:
            InputError: no such shard.
        """
        index, count = shard
        if not 0 <= index < count:
            raise InputError(f"shard {index} of {count} does not exist", where="attack")
        return attack_blocks(self.goals, self.block_size)[index::count]


def cases_json(results: Iterable[AttackResult]) -> dict[str, Any]:
    """The object that `caryatid attack … --json` prints."""
    return {"cases": [result.to_json() for result in results]}


def run_attack(
    loaded: LoadedModel,
    chat: ChatFormat,
    plan: AttackPlan,
    *,
    shard: tuple[int, int] = (0, 1),
    out: Path | None = None,
    progress: Progress = NO_PROGRESS,
    answered: Answered | None = None,
) -> list[AttackResult]:
    """Attack the goals of a shard; with `out`, finished goals are kept there and not attacked again by a later call.

    A kept result is found by the model's identity and dtype, the system message, the settings, the seed, the goal and
    those attacked together with it; the batch size is not among them. The state of a block under way is kept there,
    too. Shards may share `out`: when all of them are done, a call for the whole plan only collects. Once everything is
    there, `out/results.json` holds what `cases_json` gives. `answered` judges answers for attacks that ask while they
    search.

    Returns:
        Results in the order of the plan's goals.

    Raises:
        InputError: no such shard. UsageError: `out` cannot be written.
        NumericalError, MemoryExhaustedError: as the attack; finished goals stay kept.
    """
    attack, blocks, limit = attack_named(plan.attack), plan.blocks(shard), RowLimit(plan.batch_size)
    steps = getattr(plan.settings, "steps", 1)
    progress.start(plan.attack, sum(map(len, blocks)) * steps)
    results: list[AttackResult] = []
    for block in blocks:
        files = _files(out, loaded, chat, plan, block)
        kept = [None if file is None or not file.is_file() else _read(file) for file in files]
        found = [result for result in kept if result is not None]
        keep = None if files[0] is None else files[0].with_suffix(".state")
        if len(found) < len(block):
            run = BlockRun(plan.seed, limit, keep, progress.advance, answered)
            found = attack.search(loaded, chat, block, plan.settings, run)
            for file, result in zip(files, found, strict=True):
                if file is not None:
                    write_json(file, result.to_json())
        else:
            progress.advance(len(block) * steps)
        if keep is not None and keep.is_dir():
            shutil.rmtree(keep, ignore_errors=True)  # another call may be removing it, too
        elif keep is not None:
            keep.unlink(missing_ok=True)
        results += found
    progress.done()
    if out is not None and len(results) == len(plan.goals):
        write_json(out / "results.json", cases_json(results))
    return results


def _read(file: Path) -> AttackResult:
    return AttackResult.from_json(read_json(file))


def _files(
    out: Path | None, loaded: LoadedModel, chat: ChatFormat, plan: AttackPlan, block: Sequence[Goal]
) -> list[Path | None]:
    """Where the results of a block's goals are kept."""
    if out is None:
        return [None] * len(block)
    folder = out / "cases"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"output folder cannot be written ({error.strerror})",
            where=str(out),
            remedy="Choose another one.",
        ) from error
    facts = {
        "format": _FORMAT,
        "attack": plan.attack,
        "model": loaded.identity,
        "dtype": str(loaded.dtype),
        "system": chat.system,
        "settings": asdict(plan.settings),  # type: ignore[call-overload]  # any dataclass: a registered attack brings its own
        "seed": plan.seed,
        "block": [asdict(goal) for goal in block],
    }
    return [folder / f"{content_key({**facts, 'goal': asdict(goal)})}.json" for goal in block]
