"""Intervals of the angles between the subspaces of two anchors (protocol §5)."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from ..errors import InputError
from ..stats import Interval
from .angles import AngleSummary, angle_summary, coordinates
from .directions import category_directions, subspace
from .jackknife import jackknife_interval
from .rank import SiteActivations

_ROUNDING = 1e-4  # degrees, or radians, of angles of float32 activations
QUANTITIES = ("mean", "max", "grassmann", "chordal")


def subspace_angles(
    a: SiteActivations, b: SiteActivations, categories: Sequence[str], rank: int
) -> dict[str, Interval]:
    """Mean, largest, Grassmann and chordal distance of the rank-k subspaces at one site of two anchors, with intervals.

    Delete-one jackknife over the prompts, the same at both anchors, within their categories. The interval covers what
    is expected *at this number of prompts*: noise adds to angles between subspaces, and that is not corrected.

    Args:
        categories: of the harmful prompts. A prompt alone in its category has no noise that could be estimated.

    Raises:
        InputError: the anchors were not measured on the same prompts. NumericalError: not finite.
    """
    sizes = {(len(site.harmful), len(site.harmless)) for site in (a, b)}
    if len(sizes) != 1 or len(categories) != len(a.harmful) or len(a.harmless) < 2:
        raise InputError(
            "the two anchors were not measured on the same labelled prompts", where="subspace_angles"
        )
    labels = list(categories)
    rows = coordinates(a.harmful, a.harmless, b.harmful, b.harmless)
    sides = [SiteActivations(*rows[:2]), SiteActivations(*rows[2:])]
    whole = [category_directions(*side, labels) for side in sides]
    names, counts = whole[0].names, dict(zip(whole[0].names, whole[0].counts, strict=True))

    def measure(directions: Sequence[Tensor]) -> AngleSummary:
        one, two = (subspace(each, rank).basis for each in directions)
        return angle_summary(one, two)

    found = measure([each.rows for each in whole])
    left_out: list[AngleSummary] = []
    for item, label in enumerate(labels):
        n, row = counts[label], names.index(label)
        changed = []
        for each, (up, down) in zip(whole, sides, strict=True):
            without = each.rows.clone()
            if n > 1:
                without[row] += (without[row] - (up[item] - down.mean(dim=0))) / (n - 1)
            changed.append(without)
        left_out.append(measure(changed))
    others = [
        measure(
            [
                each.rows - (down.mean(dim=0) - down[item]) / (len(down) - 1)
                for each, (_, down) in zip(whole, sides, strict=True)
            ]
        )
        for item in range(len(a.harmless))
    ]
    unlabelled: list[object] = [None] * len(others)
    intervals = {}
    for name in QUANTITIES:
        samples = [
            (np.array([getattr(each, name) for each in group]), strata)
            for group, strata in ((left_out, labels), (others, unlabelled))
        ]
        value, lo, hi = jackknife_interval(getattr(found, name), samples)
        intervals[name] = Interval(value, lo - _ROUNDING, hi + _ROUNDING)
    return intervals
