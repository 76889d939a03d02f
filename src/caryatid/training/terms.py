"""Loss terms on the harmful cases of a micro-batch, as this process's share of the means over all processes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..errors import out_of_memory
from ..models.batch import released
from .losses import away_loss, toward_loss
from .ranks import Ranks
from .settings import R2D2Settings
from .trainee import DrawnCases, Example, Trainee


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


def with_room(trainee: Trainee, compute: Callable[[], float]) -> float:
    """`compute`, which adds to the gradients; once more where memory runs out that an attack holds to save time.

    Only for the first term of an update: what was added half could not be told from what stood before.
    """
    first = all(parameter.grad is None for parameter in trainee.parameters)
    try:
        return compute()
    except RuntimeError as error:
        if not (first and out_of_memory(error) and released()):
            raise
    for parameter in trainee.parameters:
        parameter.grad = None
    return compute()
