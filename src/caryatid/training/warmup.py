"""The warm-up: a short refusal-SFT that gives step 0 a refusal to carry (protocol §2)."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from ..data.chat import ChatExample
from ..data.prompts import Prompt
from ..interrupts import asked_to_end, held_back
from ..models.load import LoadedModel
from ..models.template import ChatFormat
from ..progress import NO_PROGRESS, Progress
from .loop import SAVE_AFTER, chat_example
from .losses import sft_loss
from .settings import TrainingSettings, WarmupSettings
from .trainee import Example, Trainee, cut


@dataclass(frozen=True)
class WarmupRow:
    """One update of the warm-up: its loss (mean cross-entropy, nats per token)."""

    step: int
    loss: float


class Check(NamedTuple):
    """Refusal rates on held-out harmful and harmless prompts after `step` updates, and whether they are enough."""

    step: int
    refusal: float
    safe_refusal: float
    enough: bool


class Warmed(NamedTuple):
    """The warm-up's log."""

    rows: tuple[WarmupRow, ...]
    checks: tuple[Check, ...]


@dataclass(frozen=True)
class WarmupJob:
    """A warm-up, settled before it starts.

    Attributes:
        training: what is trained, precision and longest example; schedule, decay and accumulation are not used.
        harmful: requests used nowhere else; each is paired with a refusal drawn from `refusals`.
        harmless: the backbone's own answers, so that nothing else is taught.
    """

    settings: WarmupSettings
    training: TrainingSettings
    harmful: Sequence[Prompt]
    refusals: Sequence[str]
    harmless: Sequence[ChatExample]
    seed: int


def warm_up(
    loaded: LoadedModel,
    chat: ChatFormat,
    job: WarmupJob,
    out: Path,
    work: Path,
    *,
    check: Callable[[int, LoadedModel], Check] | None = None,
    progress: Progress = NO_PROGRESS,
) -> Warmed:
    """Train `loaded` (taken over) to refuse harmful requests and to answer harmless ones as it did; saves to `out`.

    Args:
        work: where the state lies that a later call with the same arguments goes on from.
        check: made every `check_every` updates, with the number of updates so far; says whether that is enough.
    """
    settings, training = job.settings, job.training
    generator = torch.Generator().manual_seed(job.seed)

    def integers(below: int, count: int) -> list[int]:
        return torch.randint(below, (count,), generator=generator).tolist()

    refused = [
        cut(Example(chat.ids(row.user_text), chat.answer_ids(job.refusals[choice])), training.max_length)
        for row, choice in zip(job.harmful, integers(len(job.refusals), len(job.harmful)), strict=True)
    ]
    answered = [chat_example(chat, row, training.max_length) for row in job.harmless]
    plain = TrainingSettings(
        mode=training.mode,
        lora=training.lora,
        learning_rate=settings.learning_rate,
        mixed_precision=training.mixed_precision,
    )
    trainee = Trainee(loaded, plain, updates=settings.steps, seed=job.seed)
    batch_size = settings.batch_size
    n_harmful = min(max(round(batch_size * settings.harmful_share), 1), batch_size - 1)
    rows: list[WarmupRow] = []
    checks: list[Check] = []
    state, saved = work / "state", time.monotonic()
    if (state / "state.json").exists():
        extra = trainee.load_state(state)
        rows = [WarmupRow(**row) for row in extra["rows"]]
        checks = [Check(*one) for one in extra["checks"]]
        generator.set_state(torch.tensor(extra["generator"], dtype=torch.uint8))
    progress.start("warm-up", settings.steps)
    progress.advance(trainee.step)
    with held_back():
        while trainee.step < settings.steps and not (checks and checks[-1].enough):
            batch = [refused[i] for i in _cycled(generator, len(refused), n_harmful)]
            batch += [answered[i] for i in _cycled(generator, len(answered), batch_size - n_harmful)]
            with trainee.training():
                output = trainee.forward(batch)
                loss = trainee.backward(sft_loss(output.logits, output.targets), "warm-up")
                trainee.update()
            rows.append(WarmupRow(trainee.step, loss))
            progress.advance()
            if check and settings.check_every and trainee.step % settings.check_every == 0:
                checks.append(check(trainee.step, loaded))
            if time.monotonic() - saved >= SAVE_AFTER or asked_to_end():
                extra = {"rows": [asdict(row) for row in rows], "checks": checks}
                trainee.save_state(state, {**extra, "generator": generator.get_state().tolist()})
                saved = time.monotonic()
            if asked_to_end():
                raise KeyboardInterrupt
    trainee.save_weights(out)
    progress.done()
    return Warmed(tuple(rows), tuple(checks))


def _cycled(generator: torch.Generator, rows: int, count: int) -> list[int]:
    """`count` indices below `rows`, without repeats until all have been used."""
    found: list[int] = []
    while len(found) < count:
        found += torch.randperm(rows, generator=generator).tolist()
    return found[:count]
