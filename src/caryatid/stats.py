"""Statistics of rates, paired comparisons and resampling: pure functions on arrays.

Every bootstrap of the project draws its indices with `bootstrap_indices` and reads its interval with
`quantile_interval`, so that intervals mean the same everywhere: percentile intervals, n drawn with replacement.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats as scipy_stats

from .errors import InputError

_NAN = float("nan")


class Rate(NamedTuple):
    """A share of n scored items with its interval; all NaN when n is 0."""

    value: float
    n: int
    lo: float
    hi: float


class Interval(NamedTuple):
    """A value and the bounds of its interval."""

    value: float
    lo: float
    hi: float


UNDEFINED = Interval(_NAN, _NAN, _NAN)


class PairedTest(NamedTuple):
    """A mean difference, the bounds of its interval, and a two-sided p-value."""

    value: float
    lo: float
    hi: float
    p: float


def wilson(successes: int, n: int, confidence: float = 0.95) -> Rate:
    """Rate with its Wilson score interval (Wilson 1927, without continuity correction).

    Centre (p + z²/2n)/(1 + z²/n), half width z·√(p(1 − p)/n + z²/4n²)/(1 + z²/n). With n = 0 value and bounds are NaN.

    Raises:
        InputError: counts that are no counts, or a confidence outside (0, 1).
    """
    if n < 0 or not 0 <= successes <= n:
        raise InputError(f"{successes} successes out of {n} is no rate", where="wilson")
    if n == 0:
        return Rate(_NAN, 0, _NAN, _NAN)
    lo, hi = _wilson_bounds(successes / n, n, confidence)
    return Rate(successes / n, int(n), lo, hi)


def wilson_interval(share: float, trials: float) -> Interval:
    """Wilson's 95 % interval of a share with an effective number of trials, which need not be whole.

    Raises:
        InputError: no share of a positive number of trials.
    """
    if not (0 <= share <= 1 and trials > 0):
        raise InputError(f"a share of {share} of {trials} trials is no rate", where="wilson_interval")
    return Interval(share, *_wilson_bounds(share, trials, 0.95))


def _wilson_bounds(share: float, n: float, confidence: float) -> tuple[float, float]:
    _check_confidence(confidence)
    z = float(scipy_stats.norm.ppf(0.5 + confidence / 2))
    scale = 1 + z * z / n
    centre = (share + z * z / (2 * n)) / scale
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / scale
    return (
        0.0 if share == 0 else max(0.0, centre - half),
        1.0 if share == 1 else min(1.0, centre + half),
    )


def clustered_rate(outcomes: ArrayLike, clusters: Sequence[object]) -> Rate:
    """Rate of binary outcomes in clusters (several answers to one prompt), with a 95 % Wilson interval.

    The interval is Wilson's with the effective sample size n/deff, where deff is the ratio of the cluster-robust
    variance M/(M − 1)·Σ_c(Σ_{i∈c}(y_i − p))²/n² to p(1 − p)/n (Korn and Graubard 1998). Where that ratio is undefined
    (p is 0 or 1, one cluster) the number of clusters M is the effective size. It is at most n. With one outcome per
    cluster this is `wilson` but for the factor M/(M − 1). `n` is the number of outcomes.

    Raises:
        InputError: outcomes other than 0 and 1, or lengths that differ.
    """
    y = np.asarray(outcomes, dtype=np.float64)
    if y.shape != (len(clusters),) or not np.isin(y, (0.0, 1.0)).all():
        raise InputError("outcomes must be 0 or 1, one per cluster mark", where="clustered_rate")
    n, share = len(y), float(y.mean()) if len(y) else _NAN
    _, index = np.unique(np.array([str(one) for one in clusters]), return_inverse=True)
    groups = int(index.max()) + 1 if n else 0
    if n == 0 or groups == n:
        return wilson(int(y.sum()), n)
    effective = float(groups)
    if 0 < share < 1 and groups > 1:
        sums = np.bincount(index, weights=y - share)
        variance = groups / (groups - 1) * float((sums**2).sum()) / n**2
        effective = min(float(n), share * (1 - share) / variance) if variance > 0 else float(n)
    lo, hi = _wilson_bounds(share, effective, 0.95)
    return Rate(share, n, lo, hi)


def paired_difference(a: ArrayLike, b: ArrayLike, confidence: float = 0.95) -> Interval:
    """Difference p_a − p_b of two rates of the same items, with Newcombe's score interval for paired data.

    Newcombe 1998 (Statistics in Medicine 17:2635), method 10: D − √(δ_a² − 2φ δ_a ε_b + ε_b²) to
    D + √(ε_a² − 2φ ε_a δ_b + δ_b²), where δ and ε are the distances from a rate to its lower and upper Wilson bound,
    and φ is the correlation of the two, a positive numerator made smaller by n/2. Unlike a bootstrap's it has a width
    where no pair differs.

    Raises:
        InputError: the arrays are not paired, or hold other values than 0 and 1.
    """
    left, right = _paired(a, b, "paired_difference")
    x, y = left.astype(np.float64), right.astype(np.float64)
    if not np.isin(np.concatenate([x, y]), (0.0, 1.0)).all():
        raise InputError("outcomes must be 0 or 1", where="paired_difference")
    n = len(x)
    if n == 0:
        return UNDEFINED
    one, two = (wilson(int(side.sum()), n, confidence) for side in (x, y))
    cross = float((x * y).sum() * ((1 - x) * (1 - y)).sum() - (x * (1 - y)).sum() * ((1 - x) * y).sum())
    scale = math.sqrt(float(x.sum() * (n - x.sum()) * y.sum() * (n - y.sum())))
    phi = (max(cross - n / 2, 0.0) if cross > 0 else cross) / scale if scale else 0.0
    below, above = (one.value - one.lo, two.hi - two.value), (one.hi - one.value, two.value - two.lo)
    lower, upper = (math.sqrt(p * p - 2 * phi * p * q + q * q) for p, q in (below, above))
    difference = one.value - two.value
    return Interval(difference, max(-1.0, difference - lower), min(1.0, difference + upper))


def interval_difference(a: Interval, b: Interval, factor: float = 1.0) -> Interval:
    """a − factor·b of two estimates whose intervals are all that is known, as if they were independent (MOVER).

    Zou and Donner 2008 (Statistics in Medicine 27:1693): D − √((a − a_lo)² + c²(b_hi − b)²) to D + √((a_hi − a)² +
    c²(b − b_lo)²), c the factor. With two Wilson intervals it is Newcombe's hybrid score interval (1998, 17:873, method
    10). Rates of the same items go together as a rule; it is then too wide rather than too narrow. b does not matter
    where the factor is 0; otherwise NaN in, NaN out.
    """
    if factor == 0:
        return a
    value = a.value - factor * b.value
    below = math.hypot(a.value - a.lo, factor * (b.hi - b.value))
    above = math.hypot(a.hi - a.value, factor * (b.value - b.lo))
    return Interval(value, value - below, value + above)


def mcnemar_exact(a: ArrayLike, b: ArrayLike) -> float:
    """Two-sided exact p-value of McNemar's test on paired binary outcomes.

    Only the discordant pairs count: of n of them, k with a true and b false; p = P(as extreme | Binomial(n, ½)), which
    is min(1, 2·P(X ≤ min(k, n − k))). Without discordant pairs p = 1.

    Raises:
        InputError: the arrays are not paired.
    """
    left, right = _paired(a, b, "mcnemar_exact")
    left, right = left.astype(bool), right.astype(bool)
    only_left = int(np.sum(left & ~right))
    only_right = int(np.sum(right & ~left))
    n = only_left + only_right
    if n == 0:
        return 1.0
    return min(1.0, 2 * float(scipy_stats.binom.cdf(min(only_left, only_right), n, 0.5)))


def holm(pvalues: ArrayLike) -> NDArray[np.float64]:
    """Holm's step-down adjusted p-values, in the order given.

    The i-th smallest of m is multiplied by m − i + 1, then made non-decreasing and cut at 1. NaN entries (tests that
    could not be made) stay NaN and are not counted in m.
    """
    raw = np.asarray(pvalues, dtype=np.float64)
    adjusted = np.full(raw.shape, np.nan)
    made = np.flatnonzero(~np.isnan(raw))
    order = made[np.argsort(raw[made], kind="stable")]
    factors = len(order) - np.arange(len(order))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(raw[order] * factors))
    return adjusted


def bootstrap_indices(n: int, draws: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Indices [draws, n] of `draws` bootstrap samples of n items, drawn with replacement.

    Raises:
        InputError: nothing to draw from.
    """
    if n < 1 or draws < 1:
        raise InputError(f"cannot draw {draws} samples of {n} items", where="bootstrap")
    return rng.integers(0, n, size=(draws, n))


def quantile_interval(draws: ArrayLike, point: float, confidence: float = 0.95) -> Interval:
    """Percentile interval of bootstrap draws around a point estimate.

    Draws in which the statistic is undefined (NaN) are left out; without any defined draw the bounds are NaN.
    """
    _check_confidence(confidence)
    values = np.asarray(draws, dtype=np.float64)
    values = values[~np.isnan(values)]
    if values.size == 0:
        return Interval(float(point), _NAN, _NAN)
    tail = (1 - confidence) / 2
    lo, hi = np.quantile(values, [tail, 1 - tail])
    return Interval(float(point), float(lo), float(hi))


def bootstrap_interval(
    statistic: Callable[[NDArray[np.int64]], float],
    n: int,
    draws: int,
    rng: np.random.Generator,
) -> Interval:
    """95 % percentile bootstrap interval of any statistic of n items.

    Args:
        statistic: maps an index array [n] to the statistic of those items; NaN where undefined.
    """
    indices = bootstrap_indices(n, draws, rng)
    point = float(statistic(np.arange(n)))
    return quantile_interval([float(statistic(row)) for row in indices], point)


def paired_bootstrap(a: ArrayLike, b: ArrayLike, draws: int, rng: np.random.Generator) -> Interval:
    """Mean of a − b over pairs, with its 95 % percentile bootstrap interval.

    Pairs in which either side is NaN (unscored) are left out; without a complete pair everything is NaN.

    Raises:
        InputError: the arrays are not paired.
    """
    return Interval(*paired_bootstrap_test(a, b, draws, rng)[:3])


def paired_bootstrap_test(a: ArrayLike, b: ArrayLike, draws: int, rng: np.random.Generator) -> PairedTest:
    """`paired_bootstrap` with the p-value of a mean difference of 0 from the same draws.

    p = min(1, 2·(1 + min(#{d* ≤ 0}, #{d* ≥ 0}))/(draws + 1)), the level at which the percentile interval reaches 0,
    with the observed value counted among the draws; never below 2/(draws + 1).

    Raises:
        InputError: the arrays are not paired.
    """
    left, right = _paired(a, b, "paired_bootstrap")
    difference = left.astype(np.float64) - right.astype(np.float64)
    difference = difference[~np.isnan(difference)]
    if difference.size == 0:
        return PairedTest(_NAN, _NAN, _NAN, _NAN)
    means = difference[bootstrap_indices(difference.size, draws, rng)].mean(axis=1)
    beyond = min(int((means <= 0).sum()), int((means >= 0).sum()))
    interval = quantile_interval(means, float(difference.mean()))
    return PairedTest(*interval, min(1.0, 2 * (1 + beyond) / (draws + 1)))


def paired_ratio(a: ArrayLike, b: ArrayLike, confidence: float = 0.95) -> Interval:
    """Ratio p_a/p_b of two rates of the same items, with its score interval (Nam and Blackwelder 2002).

    The bounds are the θ at which z(θ) = (x_a − θ·x_b)/√(θ·(m₁₀ + m₀₁)) is ±z, where m₁₀ and m₀₁ are the expected
    counts of items with a alone and with b alone, estimated by maximum likelihood under p_a = θ·p_b:
    m₁₀ = (√((x_a − θ²x_b)² + 4θ²x₁₀x₀₁) − x_a + θ²(x_b + 2x₁₀))/(2θ(θ + 1)) and m₀₁ = θ·m₁₀ − (θ − 1)(x₁₁ + x₁₀ + x₀₁).
    Unlike a bootstrap's, the bounds have a width when all items agree, and when there are few. Items with neither do
    not matter. All NaN when b is never true.

    Raises:
        InputError: the arrays are not paired.
    """
    left, right = (side.astype(bool) for side in _paired(a, b, "paired_ratio"))
    _check_confidence(confidence)
    x_a, x_b = int(left.sum()), int(right.sum())
    if x_b == 0:
        return UNDEFINED
    only_a, only_b, either = int((left & ~right).sum()), int((right & ~left).sum()), int((left | right).sum())
    z, point = float(scipy_stats.norm.ppf(0.5 + confidence / 2)), x_a / x_b

    def excluded(theta: float) -> bool:
        root = math.sqrt((x_a - theta**2 * x_b) ** 2 + 4 * theta**2 * only_a * only_b)
        more = (root - x_a + theta**2 * (x_b + 2 * only_a)) / (2 * theta * (theta + 1))
        fewer = theta * more - (theta - 1) * either
        return abs(x_a - theta * x_b) > z * math.sqrt(max(0.0, theta * (more + fewer)))

    far = max(2 * point, 1.0)
    while not excluded(far):
        far *= 2
    return Interval(point, _edge(0.0, point, excluded) if x_a else 0.0, _edge(far, point, excluded))


def clopper_pearson(successes: float, n: int, confidence: float = 0.95) -> Rate:
    """Rate with exact one-sided bounds, each of this confidence (Clopper and Pearson 1934).

    The lower bound is the (1 − confidence) quantile of Beta(k, n − k + 1), the upper one the confidence quantile of
    Beta(k + 1, n − k). `successes` may be a sum of shares of n independent items: such a sum scatters less than a
    count with the same mean (Hoeffding 1956), so that the bounds are conservative.

    Raises:
        InputError: counts that are no counts, or a confidence outside (0, 1).
    """
    if n < 0 or not 0 <= successes <= n:
        raise InputError(f"{successes} successes out of {n} is no rate", where="clopper_pearson")
    _check_confidence(confidence)
    if n == 0:
        return Rate(_NAN, 0, _NAN, _NAN)
    k = float(successes)
    lo = float(scipy_stats.beta.ppf(1 - confidence, k, n - k + 1)) if k > 0 else 0.0
    hi = float(scipy_stats.beta.ppf(confidence, k + 1, n - k)) if k < n else 1.0
    return Rate(k / n, n, lo, hi)


def _edge(outside: float, inside: float, excluded: Callable[[float], bool]) -> float:
    """Where between two points exclusion ends, by bisection."""
    for _ in range(60):
        middle = (outside + inside) / 2
        outside, inside = (middle, inside) if excluded(middle) else (outside, middle)
    return (outside + inside) / 2


def _paired(a: ArrayLike, b: ArrayLike, where: str) -> tuple[NDArray, NDArray]:
    left, right = np.asarray(a), np.asarray(b)
    if left.shape != right.shape or left.ndim != 1:
        raise InputError(f"arrays of shapes {left.shape} and {right.shape} are not paired", where=where)
    return left, right


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise InputError(f"confidence {confidence} is not between 0 and 1", where="stats")
