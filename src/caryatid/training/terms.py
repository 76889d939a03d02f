"""Loss terms on the harmful cases of a micro-batch, as this process's share of the means over all processes."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from ..errors import out_of_memory
from ..models.batch import released
from .losses import away_loss, toward_loss
from .ranks import Ranks
from .settings import R2D2Settings
from .trainee import DrawnCases, Example, Trainee

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Terms:
    """What a micro-batch's cases contribute to the loss.

    Attributes:
        total: weighted sum of the terms, for the backward pass; None where this process has no rows.
        values: each unweighted term by name, this process's share of the mean; the same names in every process.
        tokens: trained on, over all processes.
        forward_tokens: run forward besides, by attacks or for step 0's values. backward_tokens: those of them that
            gradients ran backward, too. Both over all processes.
        attack_loss: of this process's attack before its last step; NaN where there is none.
    """

    total: Tensor | None
    values: dict[str, float]
    tokens: int
    forward_tokens: int = 0
    backward_tokens: int = 0
    attack_loss: float = math.nan


LossTerms = Callable[[Trainee, DrawnCases, R2D2Settings], Terms]
"""The loss terms of an arm on drawn cases."""


def my_share(ranks: Ranks, rows: Sequence[Example]) -> tuple[list[Example], float]:
    """This process's rows, and their share of all supervised tokens: the weight of their mean loss.

    In lockstep a process without rows takes the first one, with weight 0.
    """
    mine = [rows[i] for i in ranks.mine(len(rows))]
    if ranks.lockstep and not mine:
        return list(rows[:1]), 0.0
    supervised = sum(len(row.answer) for row in rows)
    return mine, sum(len(row.answer) for row in mine) / max(supervised, 1)


def token_count(rows: Sequence[Example]) -> int:
    """Tokens of prompts and answers."""
    return sum(len(row.prompt) + len(row.answer) for row in rows)


def toward_only(trainee: Trainee, drawn: DrawnCases, settings: R2D2Settings) -> Terms:
    """Toward the refusal (protocol §3)."""
    rows, weight = my_share(trainee.ranks, drawn.toward)
    tokens = token_count(drawn.toward)
    if not rows:
        return Terms(None, {"toward": 0.0}, tokens)
    out = trainee.forward(rows)
    toward = toward_loss(out.logits, out.targets) * weight
    return Terms(settings.toward_weight * toward, {"toward": float(toward.detach())}, tokens)


def away_and_toward(trainee: Trainee, drawn: DrawnCases, settings: R2D2Settings) -> Terms:
    """Away from the affirmative target and toward the refusal (protocol §3), in one forward pass."""
    away_rows, away_weight = my_share(trainee.ranks, drawn.away)
    toward_rows, toward_weight = my_share(trainee.ranks, drawn.toward)
    tokens = token_count(drawn.toward) + token_count(drawn.away)
    if not toward_rows:
        return Terms(None, {"toward": 0.0, "away": 0.0}, tokens)
    both = trainee.forward([*away_rows, *toward_rows])
    split = sum(both.lengths[: len(away_rows)])
    toward = toward_loss(both.logits[split:], both.targets[split:]) * toward_weight
    away = away_loss(both.logits[:split], both.targets[:split], settings.away_variant) * away_weight
    total = settings.toward_weight * toward + settings.away_weight * away
    return Terms(total, {"toward": float(toward.detach()), "away": float(away.detach())}, tokens)


def with_room(trainee: Trainee, compute: Callable[[], T], *, recomputes: bool) -> T:
    """`compute`, which adds to the gradients, and again where memory runs out.

    At first without what attacks hold to save time, then with activations that are computed again in the backward pass
    (gradient checkpointing; from then on), which gives the same gradients in more time. Random draws are the same.

    Args:
        recomputes: whether that is allowed (`Arm.recomputes`).

    Raises:
        RuntimeError: memory still runs out; or it does where nothing can be computed again: all weights are trained and
            have gradients already, of which no copy is kept, or processes hold the weights together.
    """
    before = None if trainee.ranks.lockstep else _Before.of(trainee)
    while True:
        try:
            return compute()
        except RuntimeError as error:
            if before is None or not out_of_memory(error):
                raise
            if not released() and not (recomputes and _recomputing_begun(trainee)):
                raise
        before.restore(trainee)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _recomputing_begun(trainee: Trainee) -> bool:
    """Whether activations can be computed again, which was not done before."""
    able = getattr(trainee.loaded.model, "supports_gradient_checkpointing", False)
    if trainee.recomputing or not able:
        return False
    log.warning("out of memory in training: activations are computed again in backward passes from here on")
    trainee.recompute()
    return True


@dataclass(frozen=True)
class _Before:
    """Gradients and random states before a term was computed."""

    gradients: list[Tensor | None]
    random: Tensor
    random_cuda: Tensor | None

    @classmethod
    def of(cls, trainee: Trainee) -> "_Before | None":
        """None: the gradients are those of all weights, of which a copy would cost more memory than there may be."""
        gradients = [parameter.grad for parameter in trainee.parameters]
        if trainee.mode == "full" and any(one is not None for one in gradients):
            return None
        device = trainee.loaded.device
        cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls([None if one is None else one.clone() for one in gradients], torch.get_rng_state(), cuda)

    def restore(self, trainee: Trainee) -> None:
        """Put them back."""
        for parameter, gradient in zip(trainee.parameters, self.gradients, strict=True):
            parameter.grad = None if gradient is None else gradient.clone()
        torch.set_rng_state(self.random)
        if self.random_cuda is not None:
            torch.cuda.set_rng_state(self.random_cuda, trainee.loaded.device)
