"""Transfer: how many of one anchor's refusals another anchor's carrier removes (protocol §6)."""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool

from ..errors import InputError
from ..stats import UNDEFINED, Interval, Rate, interval_difference, paired_ratio, wilson, wilson_interval
from .contrast import PairedCounts, paired_contrast


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
) -> TransferRatio:
    """T[a, b]/T[b, b] from the same prompts at anchor b: as it is, under a's carrier and under b's own.

    Score bounds of a ratio of paired rates: with few refusals they are far apart even where all of them agree, so that
    two refusals that stay cannot show that a carrier was replaced (six can), nor two that go that it was kept (at 0.8,
    eleven can).

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
    return TransferRatio(paired_ratio(removed_a, removed_b, 0.9), reason)  # 95 % for each bound


@dataclass(frozen=True)
class TransferCounts:
    """What b's refusals do under a's carrier, under b's own, and under random subspaces matched to b's.

    Attributes:
        both, only_a, only_b, neither: numbers of b's refusals that are removed by both carriers, by one, by none.
        random: mean share that a random subspace removes, with two-sided bounds that contain the variance between
            random subspaces and between prompts; NaN without random subspaces.
        subspaces: how many random subspaces there were.
    """

    both: int
    only_a: int
    only_b: int
    neither: int
    random: Interval
    subspaces: int

    @property
    def refusals(self) -> int:
        """How many of b's refusals were looked at."""
        return self.both + self.only_a + self.only_b + self.neither

    @property
    def old(self) -> float:
        """T[a, b]; NaN without refusals."""
        return (self.both + self.only_a) / self.refusals if self.refusals else math.nan

    @property
    def own(self) -> float:
        """T[b, b]; NaN without refusals."""
        return (self.both + self.only_b) / self.refusals if self.refusals else math.nan

    def above_random(self, which: Literal["old", "own"], confidence: float = 0.95) -> Interval:
        """T* = T − mean T[random, b] of a's carrier or of b's own."""
        removed = self.both + (self.only_a if which == "old" else self.only_b)
        value, _, lo, hi = wilson(removed, self.refusals, confidence)
        return interval_difference(Interval(value, lo, hi), self.random)

    def contrast(self, factor: float, confidence: float = 0.95) -> Interval:
        """D(c) = T*[a, b] − c·T*[b, b] of paired prompts = T[a, b] − c·T[b, b] − (1 − c)·mean T[random, b].

        Score bounds of the paired contrast, which have a width where all refusals agree, combined with those of the
        random subspaces (MOVER, Zou & Donner 2008, as if independent: wider where both depend on the prompt alike).
        """
        counts = PairedCounts(self.both, self.only_a, self.only_b, self.neither)
        return interval_difference(paired_contrast(counts, factor, confidence), self.random, 1 - factor)


def transfer_counts(
    refused: Bool[np.ndarray, "prompts"],
    under_a: Bool[np.ndarray, "prompts"],
    under_b: Bool[np.ndarray, "prompts"],
    under_random: Bool[np.ndarray, "subspaces prompts"],
) -> TransferCounts:
    """Count what the verdict needs of transfer a → b (protocol §6).

    Args:
        refused: per prompt, b refuses as it is. under_a, under_b, under_random: it still does (or does not answer
            properly) with a's carrier, b's own, or a random subspace matched to b's ablated.

    Raises:
        InputError: not the same prompts.
    """
    shapes = {refused.shape, under_a.shape, under_b.shape, under_random.shape[1:]}
    if len(shapes) != 1 or refused.ndim != 1 or under_random.ndim != 2:
        raise InputError("the conditions were not measured on the same prompts", where="transfer_counts")
    old, own = ~under_a[refused], ~under_b[refused]
    return TransferCounts(
        both=int((old & own).sum()),
        only_a=int((old & ~own).sum()),
        only_b=int((~old & own).sum()),
        neither=int((~old & ~own).sum()),
        random=random_share(~under_random[:, refused]),
        subspaces=len(under_random),
    )


def random_share(removed: Bool[np.ndarray, "subspaces prompts"]) -> Interval:
    """Mean share of refusals that random subspaces remove, over both subspaces and prompts.

    Wilson's interval with an effective number of trials p(1 − p)/v, where v is the variance between subspaces' means
    over their number plus that between prompts' means over theirs (the sum counts the residual twice, so that it is
    not too small; Owen 2007). Where all agree the effective number is that of the prompts. NaN where there is nothing.
    """
    subspaces, prompts = removed.shape
    if subspaces == 0 or prompts == 0:
        return UNDEFINED
    share = float(removed.mean())
    variance = 0.0
    for axis, count in ((1, subspaces), (0, prompts)):
        if count > 1:
            variance += float(removed.mean(axis=axis).var(ddof=1)) / count
    trials = min(share * (1 - share) / variance, subspaces * prompts) if variance > 0 else prompts
    return wilson_interval(share, trials)
