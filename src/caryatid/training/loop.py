"""Training one arm: a plain loop that stops at anchors and goes on from its last saved state, bit for bit."""

import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..artifacts import nan_to_none, none_to_nan
from ..data.chat import ChatExample, chat_batches
from ..data.prompts import Prompt
from ..interrupts import asked_to_end, held_back
from ..models.load import LoadedModel
from ..models.template import ChatFormat
from ..progress import NO_PROGRESS, Progress
from .adversarial import Attacked, CaseSource
from .arms import Arm
from .kl import benign_kl
from .losses import sft_loss
from .pool import Pool
from .ranks import ALONE, Ranks
from .settings import Mode, TrainingSettings
from .terms import Terms, my_share, token_count, with_room
from .trainee import DrawnCases, Example, Trainee, cut

EMA_DECAY = 0.9
SAVE_AFTER = 60.0  # seconds between anchors after which the state is saved, too …
SAVE_SHARE = 20.0  # … or this many times what saving took, if that is longer


@dataclass(frozen=True)
class TrainingRow:
    """One anchor's row of the `training` table. Losses are means since the anchor before; NaN: no such term.

    Attributes:
        gcg_loss: exponential moving average (decay 0.9) of the attacked cases' target loss; of cat and lat the loss
            that their attacks lower, on the first process.
        gcg_steps: GCG steps since step 0, over all cases. pool_age: mean age of the pool, in updates.
        tokens: tokens trained on since step 0. gcg_tokens: tokens run forward by GCG, or by what takes its place.
        flops: estimate since step 0 with P parameters, adapters left out: 2 P per token that GCG runs forward, 2 P more
            where its gradients run backward, 4 P (LoRA) or 6 P (full) per trained token; nothing for recomputation.
        delta_weight: ‖ΔW‖ from step 0 (Frobenius). benign_kl: mean KL(step 0 ‖ now) per held-out answer token, nats.
        seconds: wall time since step 0, over all resumes.
        gcg_batch: candidates per forward that fitted into memory (0: nothing is attacked).
        gcg_stalled: those of gcg_steps that kept their suffix, because no candidate survived the round trip.
    """

    arm: str
    step: int
    loss_sft: float
    loss_away: float
    loss_toward: float
    gcg_loss: float
    gcg_steps: int
    pool_age: float
    tokens: int
    gcg_tokens: int
    flops: float
    delta_weight: float
    benign_kl: float
    seconds: float
    gcg_batch: int = 0
    gcg_stalled: int = 0
    loss_reroute: float = math.nan
    loss_retain: float = math.nan
    loss_dpo: float = math.nan


@dataclass(frozen=True)
class TrainedAnchor:
    """Where an anchor's weights lie, relative to the arm's folder."""

    step: int
    folder: str


@dataclass(frozen=True)
class TrainedArm:
    """An arm's anchors and its log."""

    anchors: tuple[TrainedAnchor, ...]
    rows: tuple[TrainingRow, ...]


@dataclass(frozen=True)
class ArmJob:
    """One arm to train, settled before it starts.

    Attributes:
        examples: chat data; batches depend only on it, the sizes and the seed, so they are the same for all arms.
        benign: held-out chat for `benign_kl`.
        behaviours: harmful training prompts with targets, for arms with a pool.
        anchors: steps (optimizer updates) at which to stop, increasing, after 0.
        gcg_batch: candidate suffixes per forward at most.
    """

    arm: Arm
    settings: TrainingSettings
    examples: Sequence[ChatExample]
    benign: Sequence[ChatExample]
    behaviours: Sequence[Prompt]
    anchors: Sequence[int]
    seed: int
    gcg_batch: int = 64


def chat_example(chat: ChatFormat, example: ChatExample, max_length: int) -> Example:
    """A chat example as tokens; its end of turn is supervised only where the answer is complete."""
    return cut(
        Example(chat.ids(example.user), chat.answer_ids(example.answer, end_of_turn=example.complete)),
        max_length,
    )


@dataclass
class _Totals:
    """Running sums that the log and a resume need."""

    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    gcg_ema: float = math.nan
    gcg_steps: int = 0
    gcg_stalled: int = 0
    tokens: int = 0
    gcg_tokens: int = 0
    gcg_backward_tokens: int = 0
    seconds: float = 0.0

    def add(self, name: str, value: float) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + value
        self.counts[name] = self.counts.get(name, 0) + 1

    def mean(self, name: str) -> float:
        return self.sums[name] / self.counts[name] if self.counts.get(name) else math.nan

    def spend(self, found: Attacked) -> None:
        self.gcg_steps += found.steps
        self.gcg_stalled += found.stalled
        self.gcg_tokens += found.tokens
        self.gcg_backward_tokens += found.backward_tokens

    def follow(self, loss: float) -> None:
        """Update the moving average with a new loss, if there is one."""
        if not math.isnan(loss):
            first = math.isnan(self.gcg_ema)
            self.gcg_ema = loss if first else EMA_DECAY * self.gcg_ema + (1 - EMA_DECAY) * loss

    def flops(self, parameters: int, mode: Mode) -> float:
        """As `TrainingRow` says."""
        trained = (6 if mode == "full" else 4) * self.tokens
        return float(parameters) * (trained + 2 * (self.gcg_tokens + self.gcg_backward_tokens))

    def to_json(self) -> dict[str, Any]:
        return nan_to_none(asdict(self))

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "_Totals":
        return cls(**none_to_nan(value, cls))


def train_arm(
    loaded: LoadedModel,
    chat: ChatFormat,
    job: ArmJob,
    out: Path,
    work: Path,
    *,
    ranks: Ranks = ALONE,
    progress: Progress = NO_PROGRESS,
    after_update: Callable[[int, Mapping[str, float]], None] = lambda _step, _numbers: None,
) -> TrainedArm:
    """Train one arm from `loaded` (step 0, taken over) and save its anchors under `out`.

    Args:
        work: where the state for resuming lies; a later call with the same arguments goes on from there.
        ranks: the processes that train together, each of which calls this; the first one writes.
        after_update: called after every optimizer update with its step and numbers (`_Training.numbers`).

    Raises:
        NumericalError: a loss or gradient is not finite; anchors saved before stay.
    """
    settings, anchors = job.settings, job.anchors
    ranks = replace(ranks, lockstep=settings.shard == "fsdp2" and ranks.size > 1)
    trainee = Trainee(loaded, settings, updates=anchors[-1], seed=job.seed, ranks=ranks)
    source = None
    if job.arm.terms is not None:
        r2d2 = settings.r2d2
        pool = Pool(job.behaviours, r2d2.pool, job.seed, r2d2.suffix_length)
        source = CaseSource(chat, job.arm, r2d2, pool, job.gcg_batch, ranks)
    training = _Training(job.arm, trainee, source, out, work)
    training.begin()
    encoded = [chat_example(chat, example, settings.max_length) for example in job.examples]
    held = [chat_example(chat, example, settings.max_length) for example in job.benign]
    size = settings.accumulation
    batches = chat_batches(job.examples, anchors[-1] * size, settings.chat_batch_size, job.seed)
    progress.start(f"training {job.arm.name}", anchors[-1])
    progress.advance(trainee.step)
    with held_back():
        while trainee.step < anchors[-1]:
            started = time.monotonic()
            with trainee.training():
                for batch in batches[trainee.step * size : (trainee.step + 1) * size]:
                    _micro_batch(training, [encoded[i] for i in batch], share=1.0 / size)
                trainee.update()
            if source:
                source.after_update(trainee.step)
            training.totals.seconds += time.monotonic() - started
            progress.advance()
            if trainee.step in anchors and ranks.saves:
                training.stop_at_anchor(benign_kl(trainee, held, 2 * settings.chat_batch_size))
            else:
                training.save_now_and_then()
            after_update(trainee.step, training.numbers())
    progress.done()
    ranks.barrier()
    return TrainedArm(
        tuple(TrainedAnchor(step, f"step-{step:06d}") for step in anchors), tuple(training.rows)
    )


@dataclass
class _Training:
    """An arm in training, and what it has logged. `now`: of the update in hand, a value a micro-batch."""

    arm: Arm
    trainee: Trainee
    source: CaseSource | None
    out: Path
    work: Path
    totals: _Totals = field(default_factory=_Totals)
    rows: list[TrainingRow] = field(default_factory=list)
    now: dict[str, list[float]] = field(default_factory=dict)
    saved: float = field(default_factory=time.monotonic)
    saving: float = 0.0

    def _state(self, step: int) -> Path:
        return self.work / f"step-{step:06d}"

    def _saved_steps(self) -> set[int]:
        return {int(file.parent.name[5:]) for file in self.work.glob("step-*/state.json")}

    def begin(self) -> None:
        """Go on from the last step that has its state; make the static arm's cases, or the rest of them."""
        done = self._saved_steps()
        if done:
            extra = self.trainee.load_state(self._state(max(done)))
            self.totals = _Totals.from_json(extra["totals"])
            self.rows = [TrainingRow(**none_to_nan(row, TrainingRow)) for row in extra["rows"]]
            if self.source:
                self.source.load_state_dict(extra["source"])
        if self.source and self.arm.suffixes == "static":
            with self.trainee.attacked() as loaded:
                for found in self.source.make_static(loaded):
                    self.totals.spend(found)
                    self.save_now_and_then()

    def stop_at_anchor(self, kl: float) -> None:
        """Log, save the weights, then the state; an anchor without a saved state is trained again."""
        trainee, totals = self.trainee, self.totals
        parameters = trainee.loaded.model.named_parameters()
        size = sum(value.numel() for name, value in parameters if "lora_" not in name)
        self.rows.append(
            TrainingRow(
                arm=self.arm.name,
                step=trainee.step,
                loss_sft=totals.mean("sft"),
                loss_away=totals.mean("away"),
                loss_toward=totals.mean("toward"),
                gcg_loss=totals.gcg_ema,
                gcg_steps=totals.gcg_steps,
                pool_age=self.source.pool.mean_age if self.source else math.nan,
                tokens=totals.tokens,
                gcg_tokens=totals.gcg_tokens,
                flops=totals.flops(size, trainee.mode),
                delta_weight=trainee.delta_weight(),
                benign_kl=kl,
                seconds=totals.seconds,
                gcg_batch=self.source.limit.rows if self.source and self.arm.suffixes != "none" else 0,
                gcg_stalled=totals.gcg_stalled,
                loss_reroute=totals.mean("reroute"),
                loss_retain=totals.mean("retain"),
                loss_dpo=totals.mean("dpo"),
            )
        )
        totals.sums, totals.counts = {}, {}
        trainee.save_weights(self.out / f"step-{trainee.step:06d}")
        self.save_state()

    def add(self, name: str, value: float) -> None:
        """A loss term of one micro-batch."""
        self.totals.add(name, value)
        self.now.setdefault(f"loss_{name}", []).append(value)

    def follow(self, name: str, loss: float) -> None:
        """The loss that an attack on one micro-batch came to; NaN: there was none."""
        self.totals.follow(loss)
        if not math.isnan(loss):
            self.now.setdefault(name, []).append(loss)

    def numbers(self) -> dict[str, float]:
        """What trackers get of the update just made.

        Every loss term and `pool_loss`, the target loss of the drawn cases after their attack, are means over
        micro-batches; `closing` is pool_loss − loss_toward, the nats per token by which the refusal is likelier than
        the target under attack. Of sums since step 0: tokens, gcg_tokens, seconds; at an anchor also the other columns
        of its `TrainingRow`.
        """
        found = {name: sum(values) / len(values) for name, values in self.now.items()}
        self.now.clear()
        if found.keys() >= {"pool_loss", "loss_toward"}:
            found["closing"] = found["pool_loss"] - found["loss_toward"]
        if self.rows and self.rows[-1].step == self.trainee.step:
            at_anchor = asdict(self.rows[-1])
            found |= {name: at_anchor[name] for name in ("delta_weight", "benign_kl", "flops", "pool_age")}
        rate = self.trainee.optimizer.param_groups[0]["lr"]
        totals = self.totals
        sums = {"tokens": totals.tokens, "gcg_tokens": totals.gcg_tokens, "seconds": totals.seconds}
        return {**found, **sums, "learning_rate": rate}

    def save_now_and_then(self) -> None:
        """Save the state between anchors when much work would be lost otherwise; only the last one is kept.

        The first of several ranks does. All of them end here where the scheduler asked for it.
        """
        ranks = self.trainee.ranks
        due = time.monotonic() - self.saved >= max(SAVE_AFTER, SAVE_SHARE * self.saving)
        ending = asked_to_end()
        if ranks.lockstep:
            due, ending = ranks.shared((due, ending))
        if ranks.saves and (due or ending):
            self.save_state()
        if ending:
            raise KeyboardInterrupt

    def save_state(self) -> None:
        """Save all that a resume needs, and delete states of earlier steps that are not anchors."""
        began, step = time.monotonic(), self.trainee.step
        extra = {
            "totals": self.totals.to_json(),
            "rows": [nan_to_none(asdict(row)) for row in self.rows],
            "source": self.source.state_dict() if self.source else None,
        }
        self.trainee.save_state(self._state(step), extra)
        if self.trainee.ranks.main:
            for other in self._saved_steps() - {step, *(row.step for row in self.rows)}:
                shutil.rmtree(self._state(other))
        self.saved = time.monotonic()
        self.saving = self.saved - began


def _micro_batch(training: _Training, chat_rows: Sequence[Example], share: float) -> None:
    """Gradients of one micro-batch: attack first, against the present weights, then all loss terms.

    Each rank takes its rows; its mean losses count by its share of the supervised tokens.
    """
    trainee, totals, drawn = training.trainee, training.totals, None
    if training.source:
        with trainee.attacked() as loaded:
            drawn, attacked = training.source.draw(loaded)
        totals.spend(attacked)
        training.follow("pool_loss", attacked.loss)
    rows, weight = my_share(trainee.ranks, chat_rows)

    def chat() -> float:
        out = trainee.forward(rows)
        return trainee.backward(sft_loss(out.logits, out.targets) * weight * share, "sft") / share

    again = training.arm.recomputes
    spent = with_room(trainee, chat, recomputes=again) if rows else 0.0
    training.add("sft", trainee.ranks.summed(spent))
    totals.tokens += token_count(chat_rows)
    if drawn is not None:
        _on_cases(training, drawn._replace(chat=chat_rows), share)


def _on_cases(training: _Training, drawn: DrawnCases, share: float) -> None:
    """Gradients of the arm's terms on the drawn cases."""
    trainee, totals, arm = training.trainee, training.totals, training.arm
    assert arm.terms is not None
    of_arm = arm.terms

    def cases() -> Terms:
        terms = of_arm(trainee, drawn, trainee.settings.r2d2)
        if terms.total is not None:
            trainee.backward(terms.total * share, " and ".join(terms.values))
        return replace(terms, total=None)

    terms = with_room(trainee, cases, recomputes=arm.recomputes)
    for name, value in terms.values.items():
        training.add(name, trainee.ranks.summed(value))
    totals.tokens += terms.tokens
    totals.gcg_tokens += terms.forward_tokens
    totals.gcg_backward_tokens += terms.backward_tokens
    training.follow("attack_loss", terms.attack_loss)
