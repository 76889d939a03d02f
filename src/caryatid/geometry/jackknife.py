"""Delete-one jackknife intervals, for statistics that resampling with replacement would bias.

A bootstrap sample repeats prompts, so that its directions are noisier than the sample's own: angles between
estimates and effective ranks of estimates then sit above the estimate in almost every draw, and percentile intervals
miss it. Leaving one prompt out changes the noise by 1/n only.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from scipy import stats as scipy_stats

from ..stats import Interval

LeaveOneOut = tuple[NDArray, Sequence[object]]
"""The statistic with each item of one sample left out, [items], and the items' stratum labels."""


def jackknife_variance(
    values: Float[np.ndarray, "items"], strata: Sequence[object], *, pooled: bool = False
) -> float:
    """Σ_strata c Σ (T₋ᵢ − mean in the stratum)², over strata of at least two of the N items.

    c = (n−1)/n (Tukey 1958) for a statistic of every stratum's own mean, which an item left out moves by 1/(n−1). With
    `pooled`, for a statistic of the mean over all items, which it moves by 1/(N−1) only: c = n/(n−1)·((N−1)/N)², the
    same where there is one stratum. Items alone in their stratum then are one stratum together.
    """
    groups, total = _members(strata, together=pooled), len(values)
    variance = 0.0
    for items in groups:
        n = len(items)
        if n > 1:
            scale = n / (n - 1) * ((total - 1) / total) ** 2 if pooled else (n - 1) / n
            variance += scale * float(np.square(values[items] - values[items].mean()).sum())
    return variance


def _members(strata: Sequence[object], together: bool) -> list[list[int]]:
    """The items of each stratum; `together`: those alone in theirs join, and one that is left joins the smallest."""
    members: dict[object, list[int]] = {}
    for item, label in enumerate(strata):
        members.setdefault(label, []).append(item)
    groups = sorted(members.values(), key=len)
    alone = [items for items in groups if len(items) == 1]
    if not together or not alone or len(groups) == 1:
        return groups
    joined, others = [items[0] for items in alone], groups[len(alone) :]
    if len(joined) == 1:
        joined, others = joined + others[0], others[1:]
    return [joined, *others]


def jackknife_interval(point: float, samples: Sequence[LeaveOneOut], *, pooled: bool = False) -> Interval:
    """95 %: point ± z·√(sum over independent samples of their jackknife variance); NaN bounds where it is undefined."""
    variance = sum(jackknife_variance(values, strata, pooled=pooled) for values, strata in samples)
    half = float(scipy_stats.norm.ppf(0.975)) * float(np.sqrt(variance))
    return Interval(point, point - half, point + half)
