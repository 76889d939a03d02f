"""A weighted difference of two rates of the same items, with score bounds (protocol §6: D(c))."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from scipy import stats as scipy_stats
from scipy.optimize import brentq

from ..errors import InputError
from ..stats import UNDEFINED, Interval


class PairedCounts(NamedTuple):
    """How many items have both properties, the first alone, the second alone, neither."""

    both: int
    only_a: int
    only_b: int
    neither: int

    @property
    def n(self) -> int:
        return sum(self)


@lru_cache(maxsize=65536)
def paired_contrast(counts: PairedCounts, factor: float, confidence: float = 0.95) -> Interval:
    """p_a − factor·p_b of two rates of the same items, with its score interval; all NaN without items.

    The bounds are the δ at which |D̂ − δ| = z·√(V(δ)/n), where V(δ) is the variance of an item's a − factor·b under the
    cell probabilities of largest likelihood among those whose contrast is δ: p_k = n_k/(n + μ(u_k − δ)), u_k the cell's
    value, and what is missing to 1 in the extreme cell. As Tango's interval (1998; factor 1) and, where it meets 0,
    Nam and Blackwelder's (2002), it has a width where all items agree.

    Raises:
        InputError: a factor outside [0, 1], or a confidence outside (0, 1).
    """
    if not 0 <= factor <= 1 or not 0 < confidence < 1:
        raise InputError(
            f"factor {factor} or confidence {confidence} is not between 0 and 1", where="paired_contrast"
        )
    if counts.n == 0:
        return UNDEFINED
    values, n = (1 - factor, 1.0, -factor, 0.0), counts.n
    point = sum(c * u for c, u in zip(counts, values, strict=True)) / n
    z = float(scipy_stats.norm.ppf(0.5 + confidence / 2))

    def beyond(delta: float) -> float:
        return (point - delta) ** 2 * n - z * z * _tilted_variance(counts, values, delta)

    def bound(end: float) -> float:
        inside = point + 1e-12 * (end - point)
        return end if beyond(end) <= 0 or beyond(inside) >= 0 else float(brentq(beyond, inside, end))

    return Interval(point, bound(-factor), bound(1.0))


def _tilted_variance(counts: Sequence[int], values: Sequence[float], delta: float) -> float:
    """Σ p_k(u_k − δ)² of the likeliest cell probabilities whose mean value is δ."""
    n = sum(counts)
    cells = [(c, u - delta) for c, u in zip(counts, values, strict=True)]
    far = max(u for _, u in cells), min(u for _, u in cells)
    if far[0] <= 1e-12 or far[1] >= -1e-12:
        return 0.0  # δ at an end of what is possible: one cell has it all
    lo, hi = -n / far[0], -n / far[1]  # of μ, so that no probability is negative

    def mean(mu: float) -> float:
        return sum(c * u / (n + mu * u) for c, u in cells if c)

    edges = [
        side for side, cell in ((lo, far[0]), (hi, far[1])) if not any(c and u == cell for c, u in cells)
    ]
    for edge in edges:  # an empty extreme cell may have to take what is missing
        if (edge == lo and mean(edge) <= 0) or (edge == hi and mean(edge) >= 0):
            found = [(c / (n + edge * u), u) for c, u in cells if c]
            missing = 1 - sum(p for p, _ in found)
            return sum(p * u * u for p, u in found) + missing * (far[0] if edge == lo else far[1]) ** 2
    mu = float(brentq(mean, lo * (1 - 1e-12), hi * (1 - 1e-12)))
    return sum(c / (n + mu * u) * u * u for c, u in cells if c)
