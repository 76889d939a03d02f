import dataclasses
import math

import numpy as np
import pytest
from bank import bank, with_cosines

from caryatid.errors import InputError
from caryatid.geometry.carrier_rows import candidate_table, threshold_sweep
from caryatid.geometry.carriers import CALIBRATED, PUBLISHED, CandidateScores, Profile, average, select

GOOD = (-6.0, 4.0, 0.05)  # bypass, induce, kl: the whole gap of 10 nats both ways


def test_the_lowest_admissible_bypass_is_best() -> None:
    scores = bank([(-1, 2, -3, 1, 0.05), (-2, 4, -5, 1, 0.05), (-1, 5, -6, 1, 0.2), (-1, 6, -6, -1, 0.05)])
    choice = select(scores, PUBLISHED)
    assert (choice.best, choice.position, choice.layer, choice.admissible) == (1, -2, 4, 2)
    assert choice.argmin_depth == pytest.approx(0.4)
    assert choice.reason is None
    assert choice.gap == pytest.approx(10)


@pytest.mark.parametrize(
    ("profile", "inside", "outside"),
    [
        (PUBLISHED, (-6.0, 0.0, 0.0999999), (-6.0, 0.0, 0.1000001)),
        (PUBLISHED, (-6.0, 0.0, 0.05), (-6.0, -1e-9, 0.05)),
        (CALIBRATED, (-6.0, 4.0, 0.3499999), (-6.0, 4.0, 0.3500001)),
        (CALIBRATED, (-1.00001, 4.0, 0.05), (-0.99999, 4.0, 0.05)),
        (CALIBRATED, (-6.0, -0.99999, 0.05), (-6.0, -1.00001, 0.05)),
    ],
    ids=["published kl", "published induce", "calibrated kl", "bypass effect", "induce effect"],
)
def test_each_threshold_has_both_sides(
    profile: Profile, inside: tuple[float, ...], outside: tuple[float, ...]
) -> None:
    assert select(bank([(-1, 3, *inside)]), profile).best == 0
    choice = select(bank([(-1, 3, *outside)]), profile)
    assert (choice.best, choice.reason, choice.admissible) == (None, "no admissible carrier", 0)
    assert math.isnan(choice.depth)


@pytest.mark.parametrize(
    ("n_layers", "cut"), [(10, 8), (18, 14), (24, 19), (30, 24), (32, 25), (5, 4), (1, 0), (28, 22)]
)
def test_the_depth_cut_is_the_floor(n_layers: int, cut: int) -> None:
    assert PUBLISHED.depth_cut(n_layers) == cut
    if cut:
        rows = [(-1, cut - 1, -5.0, 4.0, 0.05), (-1, cut, -6.0, 4.0, 0.05)][: 1 + (cut < n_layers)]
        assert select(bank(rows, n_layers=n_layers), PUBLISHED).layer == cut - 1


def test_the_depth_cut_is_of_the_decimal_fraction_not_of_its_float() -> None:
    assert math.floor(0.57 * 100) == 56  # what a float product gives
    assert Profile("other", kl_max=1.0, depth_fraction=0.57).depth_cut(100) == 57
    assert Profile("all", kl_max=1.0, depth_fraction=1.0).depth_cut(12) == 12


@pytest.mark.parametrize("field", ["bypass", "induce", "kl"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_inadmissible(field: str, value: float) -> None:
    scores = bank([(-1, 1, *GOOD), (-1, 2, -5.0, 4.0, 0.05)])
    broken = getattr(scores, field).copy()
    broken[0, 3] = value
    choice = select(dataclasses.replace(scores, **{field: broken}), PUBLISHED)
    assert (choice.best, choice.admissible) == (1, 1)


def test_carrier_depth_is_the_earliest_layer_within_five_percent_of_the_gap() -> None:
    rows = [(-1, 1, -5.4, 4, 0.05), (-1, 3, -5.5, 4, 0.05), (-2, 3, -5.9, 4, 0.05), (-1, 6, -6.0, 4, 0.05)]
    choice = select(bank(rows), CALIBRATED)
    assert (choice.best, choice.layer, choice.earliest, choice.depth_layer) == (3, 6, 2, 3)
    assert choice.depth == pytest.approx(0.3)
    assert choice.argmin_depth == pytest.approx(0.6)


def test_an_earlier_layer_that_is_not_admissible_does_not_count() -> None:
    rows = [(-1, 1, -6.0, 4, 0.9), (-1, 6, -6.0, 4, 0.05)]
    assert select(bank(rows), CALIBRATED).depth_layer == 6


@pytest.mark.parametrize(
    ("h", "rates", "reason"),
    [
        (-5.5, (0.02, 0.01), "no refusal"),
        (-5.5, (0.97, 0.93), "undiscriminating refusal"),
        (-5.5, (0.6, 0.2), "gap too small"),
        (-5.5, (None, None), "gap too small"),
        (-9.0, (0.6, 0.2), "gap too small"),
        (math.nan, (0.6, 0.2), "gap too small"),
    ],
)
def test_reasons_for_no_carrier(h: float, rates: tuple[float | None, float | None], reason: str) -> None:
    scores = bank([(-1, 3, -7.0, 4.0, 0.05)], h=h)
    choice = select(scores, PUBLISHED, harmful_refusal=rates[0], harmless_refusal=rates[1])
    assert (choice.best, choice.reason) == (None, reason)
    row = candidate_table(scores, PUBLISHED, choice)[0]
    assert math.isnan(row["bypass_effect"])  # type: ignore[arg-type]
    assert row["bypass"] == pytest.approx(-7.0)


def test_min_gap_has_both_sides() -> None:
    assert select(bank([(-1, 3, -6.0, 4, 0.05)], h=-5.0), PUBLISHED).best == 0
    assert select(bank([(-1, 3, -6.0, 4, 0.05)], h=-5.001), PUBLISHED).reason == "gap too small"
    assert select(bank([(-1, 3, -6.0, 4, 0.05)], h=-5.001), PUBLISHED, min_gap=0.5).best == 0


def test_an_empty_bank_has_no_carrier() -> None:
    choice = select(bank([]), PUBLISHED)
    assert (choice.best, choice.reason) == (None, "no admissible carrier")
    assert candidate_table(bank([]), PUBLISHED) == []


def test_candidate_table_has_the_contracts_columns_and_values() -> None:
    scores = bank([(-1, 2, -1.0, -1.0, 0.3), (-2, 9, -6.0, 4.0, 0.05)])
    first, second = candidate_table(scores, CALIBRATED)
    assert first == {
        "position": -1,
        "layer": 2,
        "depth": 0.2,
        "bypass": -1.0,
        "induce": -1.0,
        "kl": pytest.approx(0.3),
        "kl_answer": pytest.approx(0.6),
        "bypass_effect": pytest.approx(0.5),
        "induce_effect": pytest.approx(0.5),
        "profile": "calibrated",
        "selector": "bypass",
        "admissible": True,
        "best": True,
    }
    assert (second["admissible"], second["best"], second["bypass_effect"]) == (
        False,
        False,
        pytest.approx(1.0),
    )


def test_averages_over_indices_are_plain_means() -> None:
    scores = bank([(-1, 2, 0.0, 1.0, 0.2), (-1, 3, -1.0, 2.0, 0.1)], noise=1.0)
    rng = np.random.default_rng(0)
    up, down = rng.integers(0, 8, (5, 8)), rng.integers(0, 8, (5, 8))
    means = average(scores, up, down)
    for draw in range(5):
        np.testing.assert_allclose(means.bypass[draw], scores.bypass[:, up[draw]].mean(1))
        np.testing.assert_allclose(means.induce[draw], scores.induce[:, down[draw]].mean(1))
        np.testing.assert_allclose(means.kl[draw], scores.kl[:, down[draw]].mean(1))
        np.testing.assert_allclose(means.h[draw], scores.harmful[up[draw]].mean())


def test_threshold_sweep_follows_the_kl_cut() -> None:
    scores = bank([(-1, 6, -5.0, 4.0, 0.08), (-1, 2, -6.0, 4.0, 0.5)])
    rows = {row.kl_max: row for row in threshold_sweep(scores, CALIBRATED, (0.05, 0.1, 0.6))}
    assert rows[0.05].reason == "no admissible carrier"
    assert math.isnan(rows[0.05].depth)
    assert (rows[0.1].depth, rows[0.1].admissible) == (0.6, 1)
    assert (rows[0.6].depth, rows[0.6].admissible) == (0.2, 2)


BY_COSMIC = dataclasses.replace(CALIBRATED, selector="cosmic")


def test_cosmic_picks_the_highest_sum_of_cosines_and_asks_for_kl_and_depth_alone() -> None:
    rows = [
        (-1, 1, 3.9, -9.0, 0.05),  # neither bypasses nor induces
        (-1, 2, *GOOD),
        (-1, 3, -6.0, 4.0, 0.36),
        (-1, 8, *GOOD),
    ]
    scores = with_cosines(bank(rows), [(0.9, 0.8), (0.9, 0.7), (1.0, 1.0), (1.0, 1.0)])
    choice = select(scores, BY_COSMIC)
    assert (choice.best, choice.layer, choice.admissible, choice.reason) == (0, 1, 2, None)
    assert select(scores, CALIBRATED).best == 1
    table = candidate_table(scores, BY_COSMIC)
    assert [row["admissible"] for row in table] == [True, True, False, False]
    assert [row["best"] for row in table] == [True, False, False, False]
    assert {row["selector"] for row in table} == {"cosmic"}
    assert (table[1]["cosmic_ablated"], table[1]["cosmic_added"]) == pytest.approx((0.9, 0.7))
    sweep = {row.kl_max: row for row in threshold_sweep(scores, BY_COSMIC, (0.04, 0.1, 0.4))}
    assert [sweep[cut].argmin_depth for cut in (0.1, 0.4)] == pytest.approx([0.1, 0.3])
    assert sweep[0.04].reason == "no admissible carrier"


def test_depth_under_cosmic_is_the_earliest_layer_that_bypasses_nearly_as_well_as_its_best() -> None:
    rows = [(-1, 1, -4.9, 4, 0.05), (-1, 2, -5.0, 4, 0.05), (-2, 2, -5.1, 4, 0.05), (-1, 6, -5.5, 4, 0.05)]
    scores = with_cosines(bank(rows), [(0.1, 0.1), (0.2, 0.1), (0.2, 0.2), (0.9, 0.9)])
    choice = select(scores, BY_COSMIC)
    assert (choice.best, choice.layer, choice.depth_layer, choice.earliest) == (3, 6, 2, 2)


def test_cosmic_needs_a_gap_and_finite_scores() -> None:
    rows = [(-1, 1, *GOOD), (-1, 2, *GOOD)]
    scores = with_cosines(bank(rows), [(np.nan, 1.0), (0.1, 0.1)])
    assert select(scores, BY_COSMIC).best == 1
    no_gap = with_cosines(bank(rows, h=-5.5), [(0.9, 0.9), (0.1, 0.1)])
    assert select(no_gap, BY_COSMIC, harmful_refusal=0.0).reason == "no refusal"
    with pytest.raises(InputError, match="no COSMIC scores"):
        select(bank(rows), BY_COSMIC)


def test_scores_survive_saving_and_shapes_are_checked() -> None:
    scores = bank([(-1, 2, -1.0, -1.0, 0.3)])
    again = CandidateScores.from_arrays(scores.arrays(), scores.n_layers)
    assert again.n_layers == scores.n_layers
    for name, value in scores.arrays().items():
        np.testing.assert_array_equal(getattr(again, name), value)
    with pytest.raises((InputError, TypeError)):  # TypeError where jaxtyping checks shapes first
        dataclasses.replace(scores, induce=scores.induce[:, :-1])
    cosmic = with_cosines(scores, [(0.9, 0.7)])
    kept = CandidateScores.from_arrays(cosmic.arrays(), scores.n_layers).cosmic
    assert kept is not None
    assert kept.scores().total[0] == pytest.approx([1.6])
    with pytest.raises(InputError, match="cosmic has shape"):
        dataclasses.replace(bank([(-1, 2, *GOOD), (-1, 3, *GOOD)]), cosmic=cosmic.cosmic)
