"""How far a judge agrees with people, and what a rate becomes once the judge's errors are allowed for."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats as scipy_stats

from ...errors import InputError
from ...stats import UNDEFINED, Interval, Rate, bootstrap_indices, clustered_rate, quantile_interval

_NAN = float("nan")


class Agreement(NamedTuple):
    """A binary judge against labels, over the answers that both scored.

    Attributes:
        n: answers compared. unscored: labelled answers that the judge left unscored (not in any figure).
        accuracy, sensitivity, specificity: shares with Wilson intervals at the effective number of prompts; sensitivity
            is over the answers labelled positive, specificity over the others.
        balanced: mean of the two. kappa: Cohen's κ. Both with percentile bootstrap intervals over prompts.
    """

    n: int
    unscored: int
    accuracy: Rate
    sensitivity: Rate
    specificity: Rate
    balanced: Interval
    kappa: Interval


def cohen_kappa(found: ArrayLike, labels: ArrayLike) -> float:
    """(p_o − p_e)/(1 − p_e) over any number of classes (Cohen 1960); NaN where both raters use one and the same class.

    Args:
        found, labels: class of each item by either rater, [items].
    """
    a, b = np.asarray(found), np.asarray(labels)
    if not len(a):
        return _NAN
    classes = np.unique(np.concatenate([a, b]))
    expected = sum(float((a == one).mean() * (b == one).mean()) for one in classes)
    return _NAN if expected == 1 else (float((a == b).mean()) - expected) / (1 - expected)


def agreement(
    found: Sequence[bool | None],
    labels: Sequence[bool],
    prompts: Sequence[object],
    *,
    draws: int = 2000,
    rng: np.random.Generator,
) -> Agreement:
    """Agreement of a binary judge with labels.

    Args:
        found: the judge's verdicts; None = unscored. labels: by people. prompts: what was asked; answers to one prompt
            are a cluster.
        draws: bootstrap draws.

    Raises:
        InputError: lengths that differ.
    """
    if not len(found) == len(labels) == len(prompts):
        raise InputError("verdicts, labels and prompts differ in number", where="agreement")
    kept = [i for i, one in enumerate(found) if one is not None]
    a = np.array([found[i] for i in kept], dtype=bool)
    b = np.array([labels[i] for i in kept], dtype=bool)
    names = [str(prompts[i]) for i in kept]

    def rate(over: NDArray[np.bool_]) -> Rate:
        places = np.flatnonzero(over)
        return clustered_rate((a == b)[places].astype(float), [names[i] for i in places])

    balanced, kappa = _bootstrapped(a, b, names, draws, rng)
    every = np.ones(len(a), dtype=bool)
    return Agreement(len(kept), len(found) - len(kept), rate(every), rate(b), rate(~b), balanced, kappa)


def _bootstrapped(
    a: NDArray[np.bool_], b: NDArray[np.bool_], names: Sequence[str], draws: int, rng: np.random.Generator
) -> tuple[Interval, Interval]:
    """Balanced accuracy and κ with intervals over resampled prompts."""
    if not names:
        return UNDEFINED, UNDEFINED
    _, cluster = np.unique(np.array(names), return_inverse=True)
    cells = np.zeros(
        (int(cluster.max()) + 1, 4)
    )  # of each prompt: how often (verdict, label) is 00, 01, 10, 11
    np.add.at(cells, (cluster, 2 * a + b), 1)
    drawn = np.stack([cells[index].sum(axis=0) for index in bootstrap_indices(len(cells), draws, rng)])
    with np.errstate(invalid="ignore", divide="ignore"):
        points, samples = _from_cells(cells.sum(axis=0)[None]), _from_cells(drawn)
    balanced, kappa = (
        quantile_interval(sample, float(point[0])) for point, sample in zip(points, samples, strict=True)
    )
    return balanced, kappa


def _from_cells(cells: NDArray) -> tuple[NDArray, NDArray]:
    """Balanced accuracy and κ of tables of counts, [tables, 4 = (verdict, label) 00, 01, 10, 11]."""
    tn, fn, fp, tp = cells.T
    n = tn + fn + fp + tp
    observed = (tn + tp) / n
    expected = ((tp + fp) * (tp + fn) + (tn + fn) * (tn + fp)) / n**2
    return (tp / (tp + fn) + tn / (tn + fp)) / 2, (observed - expected) / (1 - expected)


def rogan_gladen(rate: Rate, sensitivity: Rate, specificity: Rate, confidence: float = 0.95) -> Interval:
    """The rate behind a judge's rate: (p + Sp − 1)/(Se + Sp − 1), cut to [0, 1] (Rogan and Gladen 1978).

    The interval is that of Lang and Reiczigel (2014, Preventive Veterinary Medicine 113:13). With z the normal
    quantile, p' = (np + z²/2)/n' where n' = n + z², Se' and Sp' with one success and one failure added, π' their
    Rogan–Gladen estimate and δ = 2z²(π'Se'(1 − Se')/n_Se' − (1 − π')Sp'(1 − Sp')/n_Sp'), it is π' + δ ±
    z·√(p'(1 − p')/n' + (1 − π')²Sp'(1 − Sp')/n_Sp' + π'²Se'(1 − Se')/n_Se')/(Se' + Sp' − 1). NaN where the judge is no
    better than chance (Se + Sp ≤ 1, or Se' + Sp' ≤ 1).
    """
    z2 = float(scipy_stats.norm.ppf(0.5 + confidence / 2)) ** 2
    if min(rate.n, sensitivity.n, specificity.n) == 0:
        return UNDEFINED
    n, n_se, n_sp = rate.n + z2, sensitivity.n + 2, specificity.n + 2
    p = (rate.n * rate.value + z2 / 2) / n
    se = (sensitivity.n * sensitivity.value + 1) / n_se
    sp = (specificity.n * specificity.value + 1) / n_sp
    informed = se + sp - 1
    if informed <= 0 or sensitivity.value + specificity.value <= 1:
        return UNDEFINED
    centre = (p + sp - 1) / informed
    var_se, var_sp = se * (1 - se) / n_se, sp * (1 - sp) / n_sp
    shift = 2 * z2 * (centre * var_se - (1 - centre) * var_sp)
    spread = math.sqrt(z2 * (p * (1 - p) / n + (1 - centre) ** 2 * var_sp + centre**2 * var_se)) / informed
    point = (rate.value + specificity.value - 1) / (sensitivity.value + specificity.value - 1)
    lo, point, hi = (min(1.0, max(0.0, v)) for v in (centre + shift - spread, point, centre + shift + spread))
    return Interval(point, min(lo, point), max(hi, point))


class JudgeErrors(NamedTuple):
    """How a judge errs on labelled answers: the shares that it gets right of the positive, and of the others."""

    sensitivity: Rate
    specificity: Rate


class JudgeErred(NamedTuple):
    """A difference between two rates, as judged and as it would be if the judge erred as on labelled answers.

    Attributes:
        judged, corrected: second minus first, with interval; `corrected` is NaN where a judge is no better than chance.
        shown, shown_if_erred: `higher`, `lower` or `not shown`, as the interval lies above, below or over 0; `unknown`
            for NaN.
    """

    judged: Interval
    corrected: Interval
    shown: str
    shown_if_erred: str

    @property
    def survives(self) -> bool:
        """Whether both show the same."""
        return self.shown == self.shown_if_erred


def if_the_judge_erred(a: Rate, b: Rate, errors_a: JudgeErrors, errors_b: JudgeErrors) -> JudgeErred:
    """The sensitivity of a difference b − a to the judge's errors, which may differ from one side to the other.

    Each corrected rate is `rogan_gladen`'s. Intervals of differences join those of the two rates by the square-and-add
    rule (Newcombe 1998; MOVER): lo = d − √((b − lo_b)² + (hi_a − a)²), hi = d + √((hi_b − b)² + (a − lo_a)²). Where
    both sides share one set of labels, the errors that they have in common are counted on both: the interval is wide.
    """
    judged = _square_and_add(Interval(a.value, a.lo, a.hi), Interval(b.value, b.lo, b.hi))
    corrected = _square_and_add(rogan_gladen(a, *errors_a), rogan_gladen(b, *errors_b))
    return JudgeErred(judged, corrected, _shown(judged), _shown(corrected))


def _square_and_add(a: Interval, b: Interval) -> Interval:
    difference = b.value - a.value
    return Interval(
        difference,
        difference - math.hypot(b.value - b.lo, a.hi - a.value),
        difference + math.hypot(b.hi - b.value, a.value - a.lo),
    )


def _shown(difference: Interval) -> str:
    if math.isnan(difference.lo):
        return "unknown"
    if difference.lo > 0:
        return "higher"
    return "lower" if difference.hi < 0 else "not shown"
