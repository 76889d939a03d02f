"""Transfer: how many of one anchor's refusals another anchor's carrier removes (protocol §6)."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from caryatid.errors import InputError
from caryatid.stats import Interval, Rate, paired_ratio, wilson


def transfer(refused: Bool[np.ndarray, "prompts"], refused_under: Bool[np.ndarray, "prompts"]) -> Rate:
    """T[a, b]: of b's generated refusals, the share that is gone under a's carrier, with a Wilson interval.

    Args:
        refused: per prompt, b refuses. refused_under: b refuses with a's carrier ablated.

    Raises:
        InputError: not the same prompts.
    """
    if refused.shape != refused_under.shape:
        raise InputError(f"{refused.shape} and {refused_under.shape} prompts", where="transfer")
    return wilson(int((refused & ~refused_under).sum()), int(refused.sum()))


class TransferRatio(NamedTuple):
    """T[a, b]/T[b, b] with one-sided bounds, each of 95 %: how much of b's control a's carrier still has.

    The bounds contain the sampling noise of the evaluation prompts. NaN, with a reason, when b refuses nothing, or its
    own carrier removes nothing.
    """

    ratio: Interval
    reason: str | None


def transfer_ratio(
    refused: Bool[np.ndarray, "prompts"],
    under_a: Bool[np.ndarray, "prompts"],
    under_b: Bool[np.ndarray, "prompts"],
    *,
    confidence: float = 0.95,
) -> TransferRatio:
    """T[a, b]/T[b, b] from the same prompts at anchor b: as it is, under a's carrier and under b's own.

    Score bounds of a ratio of paired rates: with few refusals they are far apart even where all of them agree, so that
    two refusals that stay cannot show that a carrier was replaced (six can), nor two that go that it was kept (at 0.8,
    eleven can).

    Args:
        confidence: of each one-sided bound.

    Raises:
        InputError: not the same prompts.
    """
    if not (refused.shape == under_a.shape == under_b.shape) or refused.ndim != 1 or not len(refused):
        raise InputError("the three conditions were not measured on the same prompts", where="transfer_ratio")
    removed_a, removed_b = refused & ~under_a, refused & ~under_b
    reason = None
    if not refused.any():
        reason = "the anchor refuses nothing"
    elif not removed_b.any():
        reason = "the anchor's own carrier removes no refusal"
    return TransferRatio(paired_ratio(removed_a, removed_b, 2 * confidence - 1), reason)
