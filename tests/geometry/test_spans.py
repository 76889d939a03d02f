"""Intervals of subspace angles: the point is the definition's, the jackknife is brute force's, and it covers."""

import math

import numpy as np
import pytest
import torch

from caryatid.errors import InputError
from caryatid.geometry.angles import angle_summary
from caryatid.geometry.directions import category_directions, subspace
from caryatid.geometry.jackknife import jackknife_variance
from caryatid.geometry.rank import SiteActivations
from caryatid.geometry.spans import QUANTITIES, subspace_angles

KINDS = 3


def sampled(
    rng: np.random.Generator, n: int, degrees: float
) -> tuple[SiteActivations, SiteActivations, list[str]]:
    """Three categories along axes 0 to 2; at b the first is turned towards axis 3."""
    labels, common, found = np.arange(n) % KINDS, rng.normal(size=(2, n, 20)), []
    for turn in (0.0, math.radians(degrees)):
        rows = 0.3 * (0.8 * common + 0.6 * rng.normal(size=(2, n, 20)))
        means = np.eye(KINDS, 20)
        means[0, 0], means[0, 3] = math.cos(turn), math.sin(turn)
        rows[0] += 2 * means[labels]
        found.append(SiteActivations(torch.tensor(rows[0]), torch.tensor(rows[1])))
    return found[0], found[1], [str(label) for label in labels]


def by_definition(a: SiteActivations, b: SiteActivations, labels: list[str]) -> dict[str, float]:
    spans = [subspace(category_directions(*site, labels).rows, 2).basis for site in (a, b)]
    return {name: getattr(angle_summary(*spans), name) for name in QUANTITIES}


def test_points_and_widths_are_brute_forces() -> None:
    a, b, labels = sampled(np.random.default_rng(0), 12, 30)
    found, whole = subspace_angles(a, b, labels, 2), by_definition(a, b, labels)

    def without(item: int, side: int) -> dict[str, float]:
        keep = [i for i in range(12) if i != item]
        cut = [
            SiteActivations(s.harmful[keep], s.harmless)
            if side == 0
            else SiteActivations(s.harmful, s.harmless[keep])
            for s in (a, b)
        ]
        return by_definition(*cut, [labels[i] for i in keep] if side == 0 else labels)

    groups = [[without(item, side) for item in range(12)] for side in (0, 1)]
    for name in QUANTITIES:
        assert found[name].value == pytest.approx(whole[name], rel=1e-9)
        variance = sum(
            jackknife_variance(np.array([each[name] for each in group]), strata)
            for group, strata in zip(groups, (labels, [None] * 12), strict=True)
        )
        assert found[name].hi - found[name].value == pytest.approx(1.959964 * math.sqrt(variance), abs=2e-4)


def test_the_interval_covers_what_is_expected_at_this_number_of_prompts() -> None:
    rng = np.random.default_rng(1)
    found = [subspace_angles(*sampled(rng, 24, 30), 3)["max"] for _ in range(150)]
    target = np.mean([each.value for each in found])
    assert np.mean([each.lo <= target <= each.hi for each in found]) >= 0.9


def test_other_prompts_are_refused() -> None:
    a, b, labels = sampled(np.random.default_rng(2), 12, 30)
    with pytest.raises(InputError, match="same labelled prompts"):
        subspace_angles(a, SiteActivations(b.harmful[:9], b.harmless), labels, 2)
