"""Where admissible layers lie, the best bypass with reselection, and the profile `auto`."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from bank import bank

from caryatid.geometry.bootstrap import (
    best_bypass_interval,
    bootstrap_carrier,
    bootstrap_reextracted,
)
from caryatid.geometry.carriers import CALIBRATED, PUBLISHED, auto_profile, average, centres_of_mass, select


def centre(rows: list[tuple[int, int, float, float, float]]) -> float:
    scores = bank(rows)  # h = 4, s = −6: a gap of 10
    return float(centres_of_mass(average(scores), scores.layers, scores.n_layers, CALIBRATED)[0])


def test_each_admissible_layer_counts_once_by_its_best_candidate() -> None:
    one = (-1, 2, -2.0, 4.0, 0.1)  # effect .6
    two = (-1, 6, -4.0, 4.0, 0.1)  # effect .8
    weaker = (-2, 6, -2.0, 4.0, 0.1)  # the same layer, effect .6
    costly = (-1, 4, -6.0, 4.0, 0.9)  # inadmissible by its KL
    expected = (0.6 * 2 + 0.8 * 6) / (0.6 + 0.8) / 10
    assert centre([one, two]) == pytest.approx(expected)
    assert centre([one, two, weaker, costly]) == pytest.approx(expected)
    assert centre([one]) == pytest.approx(0.2)
    assert math.isnan(centre([costly]))
    assert math.isnan(centre([]))


def test_idle_layers_that_published_admits_do_not_pull() -> None:
    scores = bank([(-1, 1, 4.5, 1.0, 0.01), (-1, 2, 4.0, 1.0, 0.01), (-1, 6, -5.0, 1.0, 0.05)])
    found = centres_of_mass(average(scores), scores.layers, scores.n_layers, PUBLISHED)
    assert found[0] == pytest.approx(0.6)


def test_the_centre_does_not_jump_where_the_arg_min_does() -> None:
    rows = [(-1, 2, -3.0, 4.0, 0.1), (-1, 7, -3.0, 4.0, 0.1)]
    found = bootstrap_carrier(bank(rows, noise=0.5), CALIBRATED, draws=200, rng=np.random.default_rng(0))
    assert set(found.argmin_draws) == {0.2, 0.7}
    assert np.ptp(found.centre_draws) < 0.1
    assert found.centre_draws.mean() == pytest.approx(0.45, abs=0.02)


def test_draws_know_their_resample_and_lack_a_centre_with_their_carrier() -> None:
    good, none = bank([(-1, 2, -3.0, 4.0, 0.1)]), bank([(-1, 2, -3.0, 4.0, 0.9)])
    found = bootstrap_reextracted(good, [good, none, good], CALIBRATED, draws=8, rng=np.random.default_rng(0))
    assert found.resample.tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    assert np.isnan(found.centre_draws).tolist() == [number == 1 for number in found.resample]


def test_the_best_bypass_is_selected_anew_in_every_resample() -> None:
    """Of twenty equal candidates the luckiest wins: its own interval is below what reselection gives."""
    scores = bank([(-1, layer % 8, -2.0, 4.0, 0.1) for layer in range(20)], noise=3.0, n=12, seed=3)
    best = select(scores, CALIBRATED).best
    assert best is not None
    again = best_bypass_interval(scores, CALIBRATED, draws=2000, rng=np.random.default_rng(0))
    rng = np.random.default_rng(0)
    up, down = (rng.integers(0, 12, size=(2000, 12)) for _ in range(2))
    h, s = scores.harmful[up].mean(axis=1), scores.harmless[down].mean(axis=1)
    fixed = (h - scores.bypass[best][up].mean(axis=1)) / (h - s)  # of that candidate alone
    assert again.value == pytest.approx((scores.harmful.mean() - scores.bypass[best].mean()) / scores.gap)
    assert again.lo > np.quantile(fixed, 0.025)
    by_hand = []
    for i, j in zip(up[:200], down[:200], strict=True):
        part = dataclasses.replace(
            scores,
            harmful=scores.harmful[i], bypass=scores.bypass[:, i], harmless=scores.harmless[j],
            induce=scores.induce[:, j], kl=scores.kl[:, j], kl_answer=scores.kl_answer[:, j],
        )  # fmt: skip
        chosen = select(part, CALIBRATED).best
        if chosen is not None:
            by_hand.append((part.harmful.mean() - part.bypass[chosen].mean()) / part.gap)
    first = best_bypass_interval(scores, CALIBRATED, draws=200, rng=_Fixed(up[:200], down[:200]))
    assert (first.lo, first.hi) == pytest.approx(tuple(np.quantile(by_hand, [0.025, 0.975])))
    none = best_bypass_interval(bank([(-1, 2, 3, 4, 9)]), CALIBRATED, draws=9, rng=np.random.default_rng(0))
    assert math.isnan(none.value)


class _Fixed(np.random.Generator):
    """A generator whose bootstrap indices are given."""

    def __init__(self, *found: np.ndarray) -> None:
        super().__init__(np.random.PCG64())
        self.found = list(found)

    def integers(self, *_: Any, **__: Any) -> Any:
        return self.found.pop(0)


def test_auto_is_published_where_that_admits_a_carrier_at_step_0() -> None:
    assert auto_profile(bank([(-1, 2, -3.0, 4.0, 0.05)])) is PUBLISHED
    assert auto_profile(bank([(-1, 2, -3.0, 4.0, 0.2)])) is CALIBRATED
    assert auto_profile(bank([(-1, 2, -3.0, 4.0, 0.9)])) is CALIBRATED
    assert auto_profile(bank([(-1, 2, -3.0, 4.0, 0.05)], h=-5.9)) is CALIBRATED
    strict = dataclasses.replace(PUBLISHED, kl_max=0.01)
    assert auto_profile(bank([(-1, 2, -3.0, 4.0, 0.05)]), strict) is CALIBRATED
