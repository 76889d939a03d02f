"""Seconds per unit of work, and working memory, on one device: measured in seconds with a study's own backbone.

Every kind of work is run at two sizes; what they differ by is the rate, what is left the cost of beginning. What is
measured once is kept in the cache, under model, precision, device, threads, and the settings that rates depend on.
"""

import gc
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil
import torch

from ..anchors import Anchor, open_from
from ..artifacts import content_key, read_json, write_json
from ..attacks.base import Goal
from ..attacks.gcg.settings import GcgSettings
from ..attacks.run import MOST_TOGETHER, goals_together
from ..causal.answer_reference import AnswerReference
from ..causal.locate import Activations
from ..errors import MemoryExhaustedError
from ..models.forward import last_logits
from ..models.generate import Decoding, generate_ids
from ..models.load import LoadedModel, has_device, load_model
from ..models.machine import busy, device_name, threads
from ..models.sizes import BatchSizes
from ..paths import cache_dir
from ..training.losses import sft_loss
from ..training.trainee import Example, Trainee
from .attack_clock import Stepped, timed_attack
from .costs import TIMED, WorkUnits
from .decode_clock import seconds_per_attended
from .stage import Study
from .stages.comparison import Measure

VERSION = 3  # of what is measured; raised, older measurements are not used
BUSY = 1.5  # processes a core over the last minute, from which on other programs disturb
SECONDS = 0.6  # that one measurement of the larger size may take, about
TOO_LONG = 3.0  # seconds of the smaller size, from which no larger one is run
RUNS = 3  # of one measurement at most
NEW_TOKENS = 6  # decoded in a measurement
LENGTH, SHORT = 32, 16  # tokens of a row; of a prompt that is answered
FEW, MANY = 4, 64  # candidates of an attack's step; on CUDA as many as the study's attack has, not MANY
GRADIENT = 3  # passes over one goal's row that a gradient takes, about, where that is not timed
LARGE = 4e9  # bytes of weights from which a model is not loaded a second time
WIDTH = 1024  # of activations that are compared
REQUEST, TARGET = (
    "Explain how a sailing boat moves against the wind",
    "Sure, here is how a sailing boat moves",
)


@dataclass(frozen=True)
class Rates:
    """What a device needs.

    Attributes:
        seconds: per unit, by the unit's name (`WorkUnits`). memory: bytes beyond the loaded models while a unit of this
            name is worked on; `process`: of the process without a model.
        note: where they come from.
    """

    seconds: Mapping[str, float]
    memory: Mapping[str, float] = field(default_factory=dict)
    note: str = ""

    def of(self, units: WorkUnits) -> float:
        """Seconds of some work; units that were not measured take none."""
        return sum(getattr(units, name) * self.seconds.get(name, 0.0) for name in TIMED)

    def working_memory(self, units: WorkUnits) -> float:
        """Bytes that it takes at its peak, beyond the models."""
        used = [self.memory.get(name, 0.0) for name in TIMED if getattr(units, name)]
        return self.memory.get("process", 0.0) + max(used, default=0.0) + units.held


def searched(study: Study) -> tuple[GcgSettings, int]:
    """The GCG search that is timed for a study, the fixed-source attack's or R2D2's, and how many goals go together."""
    fixed, r2d2 = study.config.attacks.fixed_source, study.config.training.r2d2
    if not isinstance(fixed.settings, GcgSettings):
        return r2d2.gcg(1), min(r2d2.cases, MOST_TOGETHER)
    sizes = BatchSizes(**study.facts.batch)
    together = fixed.together or goals_together(fixed.settings, study.facts.device, sizes)
    return fixed.settings, min(together, fixed.behaviours)


def calibration_file(study: Study) -> Path:
    """Where the rates of this study's backbone on this device are kept."""
    facts, config = study.facts, study.settings
    device, (search, together) = torch.device(facts.device), searched(study)
    depends = {
        "version": VERSION,
        "torch": torch.__version__,
        "model": facts.model_identity,
        "precision": [facts.dtype, config["model"]["matmul"], config["training"]["mixed_precision"]],
        "device": device_name(device),
        "threads": threads().used if device.type == "cpu" else None,
        "batch": dict(facts.batch),
        "attack": {**asdict(search), "steps": None, "together": together},
        "training": [config["training"][key] for key in ("mode", "lora", "gradient_checkpointing")],
        "geometry": [config["geometry"][key] for key in ("splits", "rank")],
        "extraction": config["prompts"]["limits"].get("extraction_harmful", 0),
    }
    if config["model"]["device_map"] is not None:
        depends["device_map"] = config["model"]["device_map"]
    return cache_dir() / "calibration" / f"{content_key(depends)}.json"


def kept_rates(study: Study) -> Rates | None:
    """Rates that were measured before; None: not yet on this device, or the run is another machine's."""
    if not has_device(torch.device(study.facts.device)):
        return None
    path = calibration_file(study)
    return (
        Rates(**read_json(path, remedy="Delete this file: it is measured again.")) if path.is_file() else None
    )


def measured_rates(study: Study, *, again: bool = False) -> Rates:
    """Rates from the cache, or measured now.

    Args:
        again: measure in any case.

    Raises:
        CaryatidError: as loading the model raises it. MemoryExhaustedError: it does not fit.
    """
    kept = None if again else kept_rates(study)
    if kept is not None:
        return kept
    try:
        rates = _Calibration(study).rates()
    except torch.OutOfMemoryError as error:
        raise MemoryExhaustedError(
            "out of memory while the device was timed", where=study.config.model.spec, remedy="Lower `batch`."
        ) from error
    write_json(calibration_file(study), vars(rates))
    return rates


@dataclass
class _Calibration:
    """One measurement in progress. `seconds`, `memory`: found so far, as in `Rates`."""

    study: Study
    seconds: dict[str, float] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)

    def rates(self) -> Rates:
        """Measure everything that this study has work of."""
        started = time.monotonic()
        self.memory["process"] = psutil.Process().memory_info().rss
        config = self.study.config
        first = self._timed("loaded", self._load)
        with torch.no_grad():
            self._forward(first)
            self._logits(first)
            self._decoding(first)
        attacked = config.attacks.fixed_source.enabled or config.attacks.adaptive.enabled
        if attacked or not config.observed:
            self._attack(first)
        del first
        gc.collect()
        self.seconds["adapted"] = self.seconds["loaded"]
        trained = config.model.device_map is None
        if trained and not config.observed:
            self._training()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self._angles()
        note = (
            f"measured in {time.monotonic() - started:.0f} s on {device_name(self.device)}, "
            f"{self.study.facts.dtype}, {threads().used} threads"
        )
        if not trained:
            note += ", training not timed"
        if self.device.type == "cpu" and busy() > BUSY:
            note += ", beside other programs: measure again when they have ended"
        return Rates(self.seconds, self.memory, note)

    @cached_property
    def device(self) -> torch.device:
        return torch.device(self.study.facts.device)

    def _load(self) -> LoadedModel:
        model = self.study.config.model
        return load_model(
            model.spec,
            dtype=self.study.facts.dtype,
            **model.placed(self.study.facts.device),
            revision=model.revision,
            trust_remote_code=model.trust_remote_code,
            options=model.chat_options,
        )

    def _timed(self, name: str, run: Callable[[], Any]) -> Any:
        """Run once, and note the seconds under a name."""
        result, self.seconds[name] = self._run(run)
        return result

    def _run(self, run: Callable[[], Any]) -> tuple[Any, float]:
        """A result, and the seconds that it took, the device's work included."""
        started = time.perf_counter()
        result = run()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return result, time.perf_counter() - started

    def _best(self, run: Callable[[], Any]) -> float:
        """Seconds that something takes where nothing else disturbs it: the least of some runs."""
        taken = [self._run(run)[1]]
        while sum(taken) < SECONDS and len(taken) < RUNS:
            taken.append(self._run(run)[1])
        return min(taken)

    def _two_sizes(
        self, run: Callable[[int], Any], batch: int, kind: str, *, guess: float | None = None
    ) -> tuple[float, float]:
        """Seconds of one more row, and of none, from one row and as many more as are measured in about `SECONDS`.

        Notes the working memory of a whole batch under `kind`.

        Args:
            batch: rows at most. guess: seconds of one more row; None: those of the one.
        """
        run(1)  # what happens once only
        small = self._best(lambda: run(1))
        if small > TOO_LONG:  # a large model, or a device that others use: one size must do
            self.memory.setdefault(kind, 0.0)
            return small, 0.0
        rows = max(2, min(batch, 1 + int(SECONDS / (guess or small))))
        if self.device.type == "cuda":
            run(rows)  # which loads kernels for larger products, and takes memory
        with _peak(self.device) as peak:
            large = self._best(lambda: run(rows))
        self.memory[kind] = max(self.memory.get(kind, 0.0), peak[0] * max(batch / rows, 1.0))
        each = max(large - small, 0.0) / (rows - 1)
        return each, max(small - each, 0.0)

    def _rows(self, loaded: LoadedModel, count: int) -> list[list[int]]:
        """Random tokens, so that no rows have a beginning in common."""
        vocabulary = int(loaded.model.config.get_text_config().vocab_size)
        generator = torch.Generator().manual_seed(0)
        return torch.randint(vocabulary, (count, LENGTH), generator=generator).tolist()

    def _forward(self, loaded: LoadedModel) -> None:
        batch = self.study.facts.batch["forward"]
        each, begin = self._two_sizes(
            lambda n: last_logits(loaded, self._rows(loaded, n), batch_size=n), batch, "tokens"
        )
        self.seconds |= {"passes": begin, "tokens": each / LENGTH}

    def _logits(self, loaded: LoadedModel) -> None:
        """Of what following an answer takes, the part that is not the passage through the blocks."""
        answer, batch = 8, self.study.facts.batch["forward"]

        def follow(count: int) -> AnswerReference:
            rows = self._rows(loaded, count)
            answers = [row[:answer] for row in rows]
            return AnswerReference(loaded, rows, answers, answer_tokens=answer, batch_size=count)

        each, _ = self._two_sizes(follow, batch, "logits")
        blocks = (LENGTH + answer - 1) * self.seconds["tokens"]
        self.seconds["logits"] = max(each - blocks, 0.0) / answer

    def _decoding(self, loaded: LoadedModel) -> None:
        batch = self.study.facts.batch["generate"]

        def decode(count: int) -> list[list[int]]:
            rows = [row[:SHORT] for row in self._rows(loaded, count)]
            return generate_ids(loaded, rows, Decoding(NEW_TOKENS, count), stop=())

        prompt = SHORT * self.seconds["tokens"]
        each, begin = self._two_sizes(
            decode, batch, "decoded", guess=prompt / 2
        )  # more rows: a step's cost is uneven
        self.seconds["decoded"] = max(each - prompt, 0.0) / NEW_TOKENS
        self.seconds["steps"] = max(begin - self.seconds["passes"], 0.0) / NEW_TOKENS
        # On a CPU, and where one row takes seconds, a step takes long in any case.
        long = self.device.type != "cuda" or each > TOO_LONG
        self.seconds["attended"] = 0.0 if long else seconds_per_attended(loaded, batch)

    def _attack(self, loaded: LoadedModel) -> None:
        wanted, together = searched(self.study)
        chat, goal = loaded.chat(self.study.config.model.system), Goal("calibration", REQUEST, TARGET)
        length = wanted.suffix_length if isinstance(wanted.suffix_length, int) else wanted.suffix_length[1]
        goals = [replace(goal, behavior_id=f"calibration-{number}") for number in range(together)]

        def stepped(width: int) -> Stepped:
            settings, batch = replace(wanted, width=width), self.study.facts.batch["gcg"]
            return timed_attack(loaded, chat, goals, settings, length, batch)

        cuda = self.device.type == "cuda"  # which a few candidates do not fill
        most = max(wanted.width if cuda else min(wanted.width, MANY), FEW + 1)
        with _peak(self.device) as peak:
            stepped(FEW)  # what happens once only
            small = stepped(FEW)
            # A large model, or a device that others use: one size must do.
            slow = small.step * together > TOO_LONG
            if slow:
                each = small.step / (FEW + GRADIENT)
                gradient, begin = GRADIENT * each, small.begin
            else:
                if cuda:
                    stepped(most)  # compiles for longer rows, makes a copy in lower precision
                large = stepped(most)
                step = large.step if large.apart else max(large.step - small.begin, small.step)
                each = max(step - small.step, 0.0) / (most - FEW)
                gradient, begin = max(small.step - FEW * each, 0.0), max(small.begin, large.begin)
        self.memory["candidates"] = peak[0]
        self.seconds |= {"candidates": each, "attack_steps": gradient, "attacks": begin}

    def _training(self) -> None:
        config, loaded = self.study.config, self._timed("loaded", self._load)
        training, batch = config.training, self.study.facts.batch["train"]
        trainee = self._timed("prepared", lambda: Trainee(loaded, training, updates=100, seed=0))

        def update(count: int) -> None:
            examples = [Example(row, row[: LENGTH // 2]) for row in self._rows(loaded, count)]
            with trainee.training():
                out = trainee.forward(examples)
                trainee.backward(sft_loss(out.logits, out.targets), "calibration")
                trainee.update()

        tokens = 1.5 * LENGTH  # of a row with its answer
        guess = 2 * tokens * self.seconds["tokens"]
        each, begin = self._two_sizes(update, batch, "trained", guess=guess)
        self.seconds |= {"updates": begin, "trained": each / tokens}
        if training.mode == "lora" and loaded.model.get_memory_footprint() < LARGE:
            with tempfile.TemporaryDirectory() as place:
                folder = Path(place) / "adapter"
                trainee.save_weights(folder)
                del trainee, loaded
                gc.collect()
                self._adapted(folder)

    def _adapted(self, folder: Path) -> None:
        model = self.study.config.model
        start = Anchor("base", 0, model.spec, revision=model.revision)
        anchor = replace(start, arm="calibration", step=1, adapters=(str(folder),))
        loaded = self._load()
        self._timed("adapted", lambda: open_from(anchor, start, loaded))

    def _angles(self) -> None:
        """Two layers of random activations; how long that takes depends on their shapes alone."""
        config = self.study.config.geometry
        rows = self.study.config.prompts.limits.get("extraction_harmful", 0) or 128
        generator = torch.Generator().manual_seed(0)

        def captured() -> Activations:
            harmful, harmless = torch.randn(2, rows, 2, 1, WIDTH, generator=generator)
            return Activations(harmful, harmless, (0,), ("",))

        labels = [str(number % 8) for number in range(rows)]
        measure = Measure(labels, config.splits, config.rank, 0)
        a, b = captured(), captured()
        _, seconds = self._run(lambda: list(measure.rows_by_layer(a, b)))
        self.seconds["angles"] = seconds / 2


@contextmanager
def _peak(device: torch.device) -> Iterator[list[float]]:
    """How much more memory than at its beginning the context takes at its peak; read it afterwards.

    On CUDA exactly; elsewhere the process's memory, looked at every few milliseconds.
    """
    found = [0.0]
    if device.type == "cuda":
        cards = range(torch.cuda.device_count())  # blocks may lie on several
        for card in cards:
            torch.cuda.reset_peak_memory_stats(card)
        before = sum(map(torch.cuda.memory_allocated, cards))
        yield found
        found[0] = float(sum(map(torch.cuda.max_memory_allocated, cards)) - before)
        return
    process, ended = psutil.Process(), threading.Event()
    start = process.memory_info().rss

    def watch() -> None:
        while not ended.wait(0.005):
            found[0] = max(found[0], float(process.memory_info().rss - start))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield found
    finally:
        ended.set()
        watcher.join()
