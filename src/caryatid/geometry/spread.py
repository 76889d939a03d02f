"""Over how many dimensions refusal spreads, compared between anchors without the bias of noise (protocol §5).

PR = K/(1 + (K − 1)c²), c² = Σ_{i≠j} G_ij² / Σ_{i≠j} G_ii G_jj, where G holds the inner products of the directions of K
categories: K for orthogonal directions, 1 for parallel ones; for rows of equal length (Σσ²)²/Σσ⁴.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ..errors import InputError
from ..stats import UNDEFINED, Interval
from .forms import AA, BB, Estimates, Form, Groups
from .rank import SiteActivations
from .turn import ratio_interval

_ROUNDING = 1e-6  # of a ratio of float32 activations


class OverlapSums(NamedTuple):
    """Σ_{i≠j} G_ij² and Σ_{i≠j} G_ii G_jj, each without the bias of noise; c² is their ratio."""

    across: float
    own: float


@dataclass(frozen=True)
class SpreadComparison:
    """PR at two anchors and its difference b − a; nothing is clipped.

    Intervals contain the noise of which prompts were sampled, within their categories, and no other. NaN where PR is
    undefined, and infinite bounds where the data do not bound it.

    Attributes:
        categories: how many were compared. left_out: those with a single prompt. reason: why undefined, or None.
    """

    a: Interval
    b: Interval
    difference: Interval
    categories: int
    left_out: tuple[str, ...]
    reason: str | None = None


def overlap_sums(
    harmful: Float[np.ndarray, "harmful d"],
    harmless: Float[np.ndarray, "harmless _"],
    index: Int[np.ndarray, "harmful"],
) -> OverlapSums:
    """Both sums for the per-category directions r_i = mean of category i − mean of the harmless prompts.

    Every product joins independent factors: of a category two different prompts, of the harmless prompts four. Averaged
    over all ways to choose them, which is averaging over all splits into halves and into disjoint quarters, in
    closed form: with the harmless mean as origin, all sums over different harmless prompts reduce to power sums.

    Args:
        index: category of each harmful prompt, 0 … K − 1, each with at least 2 prompts; at least 4 harmless ones.
    """
    m = len(harmless)
    origin = harmless.mean(axis=0)
    x, c = harmful - origin, harmless - origin
    member = (index == np.arange(index.max() + 1)[:, None]).astype(np.float64)  # [K, harmful]
    n = member.sum(axis=1)
    pairs = n * (n - 1)
    gram, to_c = x @ x.T, x @ c.T
    lengths = np.einsum("id,id->i", c, c)

    def blocks(matrix: np.ndarray) -> np.ndarray:
        return np.asarray(member @ matrix @ member.T)

    rows = gram @ member.T  # [harmful, K]: sums over each category
    # Σ_{p≠q ∈ i, r≠t ∈ j} ⟨x_p, x_r⟩⟨x_q, x_t⟩ / (number of such)
    by_row = member @ rows**2
    squares = (blocks(gram) ** 2 - by_row - by_row.T + blocks(gram**2)) / np.outer(pairs, pairs)
    own = (np.diag(blocks(gram)) - member @ np.diag(gram)) / pairs  # of different prompts of a category
    means = blocks(gram) / np.outer(n, n)
    sums = member @ to_c  # [K, harmless]
    mixed = (sums / n[:, None]) @ (sums / n[:, None]).T
    itself = ((sums**2).sum(axis=1) - member @ (to_c**2).sum(axis=1)) / pairs
    third = (sums / n[:, None]) @ lengths
    two, three, four = m * (m - 1), m * (m - 1) * (m - 2), m * (m - 1) * (m - 2) * (m - 3)
    total = lengths.sum()
    fourth = (total**2 + 2 * ((c @ c.T) ** 2).sum() - 6 * (lengths**2).sum()) / four
    shared = -4 * (third[:, None] + third) / three + fourth
    across = squares - (2 * means * total + itself[:, None] + itself + 2 * mixed) / two + shared
    product = np.outer(own, own) - ((own[:, None] + own) * total + 4 * mixed) / two + shared
    different = ~np.eye(len(n), dtype=bool)
    return OverlapSums(float(across[different].sum()), float(product[different].sum()))


def participation(squared_cosine: float, categories: int) -> float:
    """PR from c²; infinite where 1 + (K − 1)c² is not positive."""
    below = 1 + (categories - 1) * squared_cosine
    return categories / below if below > 0 else math.inf


class _Side(NamedTuple):
    """One anchor: its sums, and the forms of group means whose changes are theirs to first order."""

    sums: OverlapSums
    weights: tuple[np.ndarray, np.ndarray]


def _side(site: SiteActivations, groups: Groups, anchors: int, kept: np.ndarray, index: np.ndarray) -> _Side:
    harmful, harmless = (part.double().cpu().numpy() for part in site)
    sums = overlap_sums(harmful[kept], harmless, index)
    kinds = int(index.max()) + 1
    contrast = np.hstack([np.eye(kinds), -np.ones((kinds, 1))])  # directions from group means
    gram = contrast @ groups.products(anchors) @ contrast.T
    own = np.diag(gram)
    across = 2 * (gram - np.diag(own))
    return _Side(
        sums, (contrast.T @ across @ contrast, contrast.T @ np.diag(2 * (own.sum() - own)) @ contrast)
    )


def compare_spread(
    a: SiteActivations,
    b: SiteActivations,
    categories: Sequence[str],
    *,
    categories_b: Sequence[str] | None = None,
) -> SpreadComparison:
    """PR at one site of two anchors and the difference b − a, with intervals (protocol §5).

    Of each c² Fieller's interval of a ratio, from jackknife covariances of the sums to first order; of the difference
    the interval that follows from both and their correlation (MOVER, Zou & Donner 2008).

    Args:
        categories: of the harmful prompts, which are the same at both anchors.
        categories_b: of b's harmful prompts, where b was measured on other prompts than a.

    Raises:
        InputError: prompts and labels do not fit, or fewer than 4 harmless prompts. NumericalError: not finite.
    """
    labels = (categories, categories if categories_b is None else categories_b)
    for site, names in ((a, labels[0]), (b, labels[1])):
        if len(names) != len(site.harmful) or len(site.harmless) < 4:
            raise InputError(
                "labels do not fit the prompts, or fewer than 4 are harmless", where="compare_spread"
            )
    if categories_b is None and len(a.harmless) != len(b.harmless):
        raise InputError("the two anchors were not measured on the same prompts", where="compare_spread")
    counts = [{name: list(each).count(name) for name in set(each)} for each in labels]
    names = sorted({*counts[0], *counts[1]})
    used = [name for name in names if min(count.get(name, 0) for count in counts) >= 2]
    alone = tuple(name for name in names if name not in used)
    if len(used) < 2:
        reason = "fewer than two categories with two prompts"
        return SpreadComparison(UNDEFINED, UNDEFINED, UNDEFINED, len(used), alone, reason)
    kept = [np.array([i for i, name in enumerate(each) if name in used]) for each in labels]
    index = [np.array([used.index(each[i]) for i in own]) for own, each in zip(kept, labels, strict=True)]
    rows = [
        np.concatenate([site.harmful.double().cpu().numpy()[own], site.harmless.double().cpu().numpy()])
        for site, own in zip((a, b), kept, strict=True)
    ]
    numbers = [
        np.append(own, np.full(len(site.harmless), len(used)))
        for own, site in zip(index, (a, b), strict=True)
    ]
    if categories_b is None:
        both = [Groups(rows[0], rows[1], numbers[0])] * 2
    else:
        both = [Groups(row, row, number) for row, number in zip(rows, numbers, strict=True)]
    sides = [
        _side(site, groups, anchors, own, number)
        for site, groups, anchors, own, number in zip((a, b), both, (AA, BB), kept, index, strict=True)
    ]
    estimates = _estimates(both, sides, paired=categories_b is None)
    return _compared(sides, estimates, len(used), alone)


def _estimates(groups: Sequence[Groups], sides: Sequence[_Side], paired: bool) -> Estimates:
    forms = [
        [Form(anchors, each) for each in side.weights] for anchors, side in zip((AA, BB), sides, strict=True)
    ]
    if paired:
        return groups[0].estimate([*forms[0], *forms[1]])
    one, two = (part.estimate(each) for part, each in zip(groups, forms, strict=True))
    nothing = np.zeros((2, 2))
    return Estimates(
        *(np.append(x, y) for x, y in zip(one[:2], two[:2], strict=True)),
        *(np.block([[x, nothing], [nothing, y]]) for x, y in zip(one[2:], two[2:], strict=True)),
    )


def _compared(
    sides: Sequence[_Side], estimates: Estimates, kinds: int, alone: tuple[str, ...]
) -> SpreadComparison:
    found, errors = [], []
    for number, side in enumerate(sides):
        numerator, denominator = np.eye(4)[2 * number], np.eye(4)[2 * number + 1]
        ratio = ratio_interval(estimates, numerator, denominator, side.sums)
        if math.isnan(ratio.value) or math.isinf(participation(ratio.value, kinds)):
            which = ("first", "second")[number]
            reason = f"the categories' directions at the {which} anchor are not told from noise"
            return SpreadComparison(UNDEFINED, UNDEFINED, UNDEFINED, kinds, alone, reason)
        found.append(Interval(*(participation(ratio[i], kinds) for i in (0, 2, 1))))
        errors.append((numerator - ratio.value * denominator) / side.sums.own)
    sizes = [math.sqrt(estimates.variance(error)) for error in errors]
    shared = estimates.covariance(*errors) / (sizes[0] * sizes[1]) if min(sizes) > 0 else 0.0
    one, two = found
    return SpreadComparison(one, two, difference_interval(one, two, shared), kinds, alone)


def difference_interval(a: Interval, b: Interval, correlation: float) -> Interval:
    """b − a from the two intervals and the correlation of the estimates (MOVER, Zou & Donner 2008)."""
    rho, value = min(1.0, max(-1.0, correlation)), b.value - a.value

    def width(one: float, other: float) -> float:
        if math.isinf(one) or math.isinf(other):
            return math.inf
        return math.sqrt(max(0.0, one**2 - 2 * rho * one * other + other**2)) + _ROUNDING

    return Interval(
        value, value - width(b.value - b.lo, a.hi - a.value), value + width(b.hi - b.value, a.value - a.lo)
    )
