"""The warm-up: a short refusal-SFT that gives step 0 a refusal to carry (protocol §2)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from ..data.chat import ChatExample
from ..data.prompts import Prompt
from ..models.load import LoadedModel
from ..models.template import ChatFormat
from ..progress import NO_PROGRESS, Progress
from .loop import chat_example
from .losses import sft_loss
from .settings import TrainingSettings, WarmupSettings
from .trainee import Example, Trainee, cut


@dataclass(frozen=True)
class WarmupRow:
    """One update of the warm-up: its loss (mean cross-entropy, nats per token)."""

    step: int
    loss: float


class Warmed(NamedTuple):
    """The warm-up's log, and the updates it took."""

    rows: tuple[WarmupRow, ...]
    steps: int


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
    *,
    stop_when: Callable[[int, LoadedModel], bool] = lambda _step, _loaded: False,
    progress: Progress = NO_PROGRESS,
) -> Warmed:
    """Train `loaded` (taken over) to refuse harmful requests and to answer harmless ones as it did; saves to `out`.

    Args:
        stop_when: asked every `check_every` updates, with the number of updates so far.
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
    rows = []
    progress.start("warm-up", settings.steps)
    while trainee.step < settings.steps:
        batch = [refused[i] for i in _cycled(generator, len(refused), n_harmful)]
        batch += [answered[i] for i in _cycled(generator, len(answered), batch_size - n_harmful)]
        with trainee.training():
            output = trainee.forward(batch)
            loss = trainee.backward(sft_loss(output.logits, output.targets), "warm-up")
            trainee.update()
        rows.append(WarmupRow(trainee.step, loss))
        progress.advance()
        if (
            settings.check_every
            and trainee.step % settings.check_every == 0
            and stop_when(trainee.step, loaded)
        ):
            break
    trainee.save_weights(out)
    progress.done()
    return Warmed(tuple(rows), trainee.step)


def _cycled(generator: torch.Generator, rows: int, count: int) -> list[int]:
    """`count` indices below `rows`, without repeats until all have been used."""
    found: list[int] = []
    while len(found) < count:
        found += torch.randperm(rows, generator=generator).tolist()
    return found[:count]
