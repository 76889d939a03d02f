"""Which layers are scored, and what stands in where no candidate is admissible: in a study and for one model alike."""

import dataclasses

import numpy as np
import pytest

from caryatid.causal.locate import choose, scored_layers, stand_in
from caryatid.errors import InputError, NumericalError
from caryatid.geometry.carriers import CALIBRATED, CandidateScores


def scores(
    bypass: list[float], kl: list[float] | None = None, induce: list[float] | None = None
) -> CandidateScores:
    """Candidates at layers 0, 1, … of ten, with these means; h is 4 and s is −4."""
    count = len(bypass)

    def rows(values: list[float]) -> np.ndarray:
        return np.repeat(np.array(values)[:, None], 2, axis=1)

    cost = rows([0.1] * count if kl is None else kl)
    return CandidateScores(
        positions=np.full(count, -1),
        layers=np.arange(count),
        n_layers=10,
        harmful=np.full(2, 4.0),
        harmless=np.full(2, -4.0),
        bypass=rows(bypass),
        induce=rows([0.0] * count if induce is None else induce),
        kl=cost,
        kl_answer=cost,
    )


def test_scored_layers_count_down_from_the_deepest_below_the_depth() -> None:
    assert scored_layers(30, 4) == [1, 5, 9, 13, 17, 21, 25, 29]
    assert scored_layers(30, 3, 0.8) == [2, 5, 8, 11, 14, 17, 20, 23]
    assert scored_layers(6, 1, 0.8) == [0, 1, 2, 3]
    with pytest.raises(InputError, match="no layer of 2"):
        scored_layers(2, 1, 0.4)


def test_what_stands_in_both_removes_and_induces_below_the_depth_cut() -> None:
    nan = float("nan")
    # layer 1 breaks the model: it removes more than anything, at a KL of 3, and induces nothing
    bypass, kl = [3.9, -9.0, 1.0, -1.0] + [4.0] * 4 + [-4.0], [0.1, 3.0, 0.1, 0.6] + [0.1] * 5
    induce = [-4.0, -4.0, 1.0, 0.5] + [-4.0] * 4 + [4.0]
    assert stand_in(scores(bypass, kl, induce), CALIBRATED) == 3
    induce[3] = nan
    assert stand_in(scores(bypass, kl, induce), CALIBRATED) == 2
    assert stand_in(scores(bypass, kl, [nan] * 9), CALIBRATED) == 1  # lowest bypass


def test_nothing_can_stand_in_without_a_layer_below_the_cut_or_a_finite_score() -> None:
    deep = dataclasses.replace(scores([1.0]), layers=np.array([9]))
    with pytest.raises(InputError, match="no scored layer below the depth cut 8"):
        stand_in(deep, CALIBRATED)
    with pytest.raises(NumericalError, match="no finite bypass score"):
        stand_in(scores([float("nan")] * 2), CALIBRATED)


@pytest.mark.parametrize("early", [False, True])
def test_what_early_discard_left_unscored_is_no_broken_model(early: bool) -> None:
    bypass = np.random.default_rng(0).normal(size=(3, 8)) + np.array([[9.0], [5.0], [0.0]])
    bypass[:, 4:] = np.nan
    rest = np.zeros((3, 8))
    discarded = CandidateScores(
        np.full(3, -1), np.array([2, 3, 9]), 10, np.full(8, 4.0), np.full(8, -4.0), bypass, rest, rest, rest
    )
    discarded = dataclasses.replace(discarded, induce=np.full((3, 8), np.nan))
    if early:
        assert stand_in(discarded, CALIBRATED, early_discard=True) == 1
    else:
        with pytest.raises(NumericalError, match="no finite bypass"):
            stand_in(discarded, CALIBRATED)


def test_a_choice_is_the_profiles_own_or_names_its_stand_in() -> None:
    given = scores([3.9, -3.0, 3.9], induce=[-4.0, 3.0, -4.0])
    chosen = choose(given, CALIBRATED, min_gap=1.0, refusal_rates=(1.0, 0.0))
    assert (chosen.choice.best, chosen.site.layer, chosen.site.position, chosen.site.admissible) == (
        1,
        1,
        -1,
        True,
    )
    for rates, reason in (
        ((0.0, 0.0), "no refusal"),
        ((1.0, 0.9), "undiscriminating refusal"),
        ((1.0, 0.0), "gap too small"),
    ):
        without = choose(given, CALIBRATED, min_gap=9.0, refusal_rates=rates)
        assert (without.choice.best, without.choice.reason) == (None, reason)
        assert (without.site.layer, without.site.admissible) == (1, False)
