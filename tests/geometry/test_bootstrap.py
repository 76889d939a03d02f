import dataclasses

import numpy as np
import pytest
import torch
from bank import bank, with_cosines

from caryatid.geometry.bootstrap import (
    best_bypass_interval,
    bootstrap_carrier,
    bootstrap_reextracted,
    covered_share,
    lacking_share,
    most_likely,
)
from caryatid.geometry.carriers import CALIBRATED, PUBLISHED, CandidateScores, Profile, select
from caryatid.geometry.cosmic import cosmic_products
from caryatid.stats import bootstrap_indices

CLOSE = [(-1, 2, -5.0, 4.0, 0.05), (-2, 5, -5.1, 4.0, 0.05), (-1, 7, 1.0, 4.0, 0.05)]

ANY = Profile("any", kl_max=1e9)


def test_every_draw_is_the_selection_on_the_resampled_prompts() -> None:
    scores = bank([*CLOSE, (-1, 4, -5.05, -0.9, 0.33)], noise=1.5, seed=1)
    found = bootstrap_carrier(scores, CALIBRATED, draws=60, rng=np.random.default_rng(5))
    rng = np.random.default_rng(5)
    up, down = bootstrap_indices(8, 60, rng), bootstrap_indices(8, 60, rng)
    for draw in range(60):
        sample = CandidateScores(
            scores.positions,
            scores.layers,
            scores.n_layers,
            scores.harmful[up[draw]],
            scores.harmless[down[draw]],
            scores.bypass[:, up[draw]],
            scores.induce[:, down[draw]],
            scores.kl[:, down[draw]],
            scores.kl_answer[:, down[draw]],
        )
        choice = select(sample, CALIBRATED)
        assert found.best_draws[draw] == (-1 if choice.best is None else choice.best)
        np.testing.assert_allclose(found.depth_draws[draw], choice.depth)
        np.testing.assert_allclose(found.argmin_draws[draw], choice.argmin_depth)
    assert len(set(found.best_draws.tolist())) > 1


def test_draws_by_cosmic_are_its_selection_on_the_resampled_prompts() -> None:
    rng, shape = np.random.default_rng(0), (3, 8, 2, 5)
    target = rng.normal(size=5)
    ablated, added = (target + 1.5 * rng.normal(size=shape) for _ in range(2))
    harmful, harmless = (target + 1.5 * rng.normal(size=shape[1:]) for _ in range(2))
    products = cosmic_products(*map(torch.tensor, (ablated, added, harmful, harmless)))
    scores = dataclasses.replace(bank(CLOSE, noise=1.5, seed=1), cosmic=products)
    profile = dataclasses.replace(CALIBRATED, selector="cosmic")
    found = bootstrap_carrier(scores, profile, draws=60, rng=np.random.default_rng(5))
    drawn = np.random.default_rng(5)
    ups, downs = bootstrap_indices(8, 60, drawn), bootstrap_indices(8, 60, drawn)
    for draw, (up, down) in enumerate(zip(ups, downs, strict=True)):
        means = [side.mean((0, 1)) for side in (harmful[up], harmless[down])]
        total = [
            cosine(one[up].mean((0, 1)), means[1]) + cosine(other[down].mean((0, 1)), means[0])
            for one, other in zip(ablated, added, strict=True)
        ]
        assert found.best_draws[draw] == np.argmax(total)  # all three are within the KL and depth cuts
    assert len(set(found.best_draws.tolist())) > 1


def cosine(x: np.ndarray, y: np.ndarray) -> float:
    return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))


def test_shares_and_intervals_describe_the_draws() -> None:
    scores = bank(CLOSE, noise=1.5, seed=2, n=12)
    found = bootstrap_carrier(scores, CALIBRATED, draws=400, rng=np.random.default_rng(0))
    assert sum(found.layer_share.values()) + found.none_share == pytest.approx(1)
    assert sum(found.position_share.values()) + found.none_share == pytest.approx(1)
    assert found.layer_share[2] == pytest.approx(np.mean(found.argmin_draws == 0.2))
    assert found.position_share[-2] == pytest.approx(found.layer_share[5])
    assert found.argmin_depth.lo <= found.argmin_depth.value <= found.argmin_depth.hi
    assert found.depth.value == select(scores, CALIBRATED).depth


def test_without_noise_every_draw_agrees() -> None:
    found = bootstrap_carrier(bank(CLOSE), PUBLISHED, draws=50, rng=np.random.default_rng(0))
    assert found.depth == (0.2, 0.2, 0.2)
    assert found.argmin_depth == (0.5, 0.5, 0.5)
    assert found.layer_share == {5: 1.0}


def test_no_carrier_in_any_draw() -> None:
    for scores in (bank([(-1, 2, -5.0, 4.0, 9.0)], noise=1.0), bank([], noise=1.0), bank(CLOSE, h=-6.0)):
        found = bootstrap_carrier(scores, PUBLISHED, draws=20, rng=np.random.default_rng(0))
        assert found.none_share == 1
        assert np.isnan(found.depth_draws).all()
        assert np.isnan(found.depth).all()
        assert found.layer_share == {}


def test_the_same_seed_pairs_two_anchors() -> None:
    scores = bank(CLOSE, noise=1.5, seed=3)
    draws = [bootstrap_carrier(scores, CALIBRATED, draws=50, rng=np.random.default_rng(9)) for _ in range(2)]
    np.testing.assert_array_equal(draws[0].depth_draws, draws[1].depth_draws)


def test_the_interval_of_a_single_candidate_is_a_bootstrap_of_its_effect() -> None:
    scores = bank(CLOSE[:1], noise=1.0, n=20)
    found = best_bypass_interval(scores, ANY, draws=300, rng=np.random.default_rng(0))
    h, s = scores.harmful.mean(), scores.harmless.mean()
    assert found.value == pytest.approx((h - scores.bypass[0].mean()) / (h - s))
    assert found.lo < found.value < found.hi
    assert found.hi - found.lo < 0.4


@pytest.mark.slow
def test_coverage_of_the_interval_of_the_bypass_effect() -> None:
    covered = 0
    for seed in range(200):
        scores = bank([(-1, 2, -1.0, 4.0, 0.05)], noise=2.0, n=32, seed=seed)
        found = best_bypass_interval(scores, ANY, draws=500, rng=np.random.default_rng(seed))
        covered += found.lo <= 0.5 <= found.hi
    assert 0.91 <= covered / 200 <= 0.99


def test_reextracted_draws_are_those_of_each_resample_in_turn() -> None:
    scores = bank(CLOSE, noise=1.5, seed=2)
    others = [bank(CLOSE, noise=1.5, seed=seed) for seed in (3, 4, 5)]
    found = bootstrap_reextracted(scores, others, CALIBRATED, draws=60, rng=np.random.default_rng(7))
    rng = np.random.default_rng(7)
    apart = [bootstrap_carrier(one, CALIBRATED, draws=20, rng=rng) for one in others]
    np.testing.assert_array_equal(found.depth_draws, np.concatenate([one.depth_draws for one in apart]))
    np.testing.assert_array_equal(found.best_draws, np.concatenate([one.best_draws for one in apart]))
    assert found.none_share == pytest.approx(np.mean(found.best_draws < 0))
    assert sum(found.layer_share.values()) + found.none_share == pytest.approx(1)
    assert (
        found.depth.value == select(scores, CALIBRATED).depth
    )  # the point is of the directions as extracted


def test_draws_are_as_many_as_asked_for_whatever_the_number_of_resamples() -> None:
    others = [bank(CLOSE, noise=1.5, seed=seed) for seed in range(7)]
    for draws in (60, 5):
        found = bootstrap_reextracted(
            others[0], others, CALIBRATED, draws=draws, rng=np.random.default_rng(7)
        )
        assert len(found.depth_draws) == len(found.argmin_draws) == len(found.best_draws) == draws
        assert sum(found.position_share.values()) + found.none_share == pytest.approx(1)


def test_reextraction_adds_its_own_noise() -> None:
    """Noise-free scores whose best layer depends on the extraction prompts: the plain bootstrap cannot see it."""
    one, other = bank(CLOSE), bank([(-1, 2, -5.2, 4.0, 0.05), (-2, 5, -5.1, 4.0, 0.05)])
    plain = bootstrap_carrier(one, PUBLISHED, draws=40, rng=np.random.default_rng(0))
    both = bootstrap_reextracted(one, [one, other], PUBLISHED, draws=40, rng=np.random.default_rng(0))
    assert plain.layer_share == {5: 1.0}
    assert both.layer_share == {2: 0.5, 5: 0.5}
    assert both.argmin_depth == (0.5, 0.2, 0.5)


def test_few_candidates_scored_anew_cover_the_draws_that_choose_them() -> None:
    scores = bank(CLOSE, noise=1.5, seed=2)
    drawn = bootstrap_carrier(scores, CALIBRATED, draws=60, rng=np.random.default_rng(7))
    first, second = (float((drawn.best_draws == index).sum()) for index in (0, 1))
    assert first > 0 < second
    assert covered_share(drawn, scores, scores) == 1.0
    assert covered_share(drawn, scores, scores.rows([1])) == second / (drawn.best_draws >= 0).sum()
    without = bootstrap_carrier(
        bank([(-1, 2, 1.0, 4.0, 9.0)]), CALIBRATED, draws=9, rng=np.random.default_rng(0)
    )
    assert np.isnan(covered_share(without, scores, scores))


def test_a_draw_whose_best_candidate_was_not_scored_anew_lacks_a_carrier_that_it_has() -> None:
    """The other candidate is barely admissible: where it alone is scored, draws are lost."""
    scores = bank([(-1, 2, -5.0, 4.0, 0.05), (-2, 5, -4.9, 4.0, 0.349)], noise=0.0)
    noisy = dataclasses.replace(scores, kl=scores.kl * np.linspace(0.9, 1.1, scores.kl.shape[1]))
    whole, alone = (
        bootstrap_reextracted(noisy, [noisy.rows(rows)], CALIBRATED, draws=60, rng=np.random.default_rng(0))
        for rows in ([0, 1], [1])
    )
    assert whole.none_share == 0 < 0.2 < alone.none_share
    drawn = bootstrap_carrier(noisy, CALIBRATED, draws=60, rng=np.random.default_rng(0))
    assert covered_share(drawn, noisy, noisy.rows([1])) == 0


def likely(scores: CandidateScores, count: int, *profiles: Profile) -> list[int]:
    kept = most_likely(scores, profiles or (PUBLISHED,), count, draws=100, rng=np.random.default_rng(0))
    return [int(index) for index in kept]


def test_likely_carriers_come_before_lower_bypasses_that_no_profile_admits() -> None:
    hopeless = [(-1, layer, -9.0, 4.0, 9.0) for layer in range(1, 7)]  # KL 9: the lowest bypass of all
    scores = bank([*hopeless, (-2, 5, -5.0, 4.0, 0.05), (-1, 7, -5.2, 4.0, 0.05)], noise=1.0, n=16)
    assert select(scores, PUBLISHED).best in (6, 7)
    assert likely(scores, 2) == [6, 7]  # the best, and the earlier one that sets the depth
    found = bootstrap_reextracted(
        scores, [only(scores, likely(scores, 2))], PUBLISHED, draws=50, rng=np.random.default_rng(0)
    )
    assert found.none_share < 0.2


def only(scores: CandidateScores, kept: list[int]) -> CandidateScores:
    return CandidateScores(
        scores.positions[kept],
        scores.layers[kept],
        scores.n_layers,
        scores.harmful,
        scores.harmless,
        scores.bypass[kept],
        scores.induce[kept],
        scores.kl[kept],
        scores.kl_answer[kept],
    )


def test_what_is_left_is_filled_with_the_lowest_bypass_below_the_depth_cut() -> None:
    scores = bank(
        [(-1, 2, 0.0, 4.0, 9.0), (-1, 9, -9.0, 4.0, 9.0), (-2, 5, -5.0, 4.0, 9.0), (-1, 7, -1.0, 4.0, 9.0)]
    )
    assert likely(scores, 2) == [2, 3]  # layer 9 of 10 is above the cut; nothing is admissible
    assert likely(scores, 9) == [0, 2, 3]
    assert likely(bank([]), 3) == []
    broken = dataclasses.replace(scores, bypass=np.where(np.arange(4)[:, None] == 2, np.nan, scores.bypass))
    assert likely(broken, 9) == [0, 3]


def test_the_first_profiles_carriers_come_first_and_the_other_profiles_next() -> None:
    rows = [
        (-1, 2, -9.0, 4.0, 9.0),
        (-1, 3, -5.0, 4.0, 0.3),
        (-1, 5, -4.0, 4.0, 0.05),
        (-1, 6, -8.0, 4.0, 9.0),
    ]
    assert likely(bank(rows), 1, PUBLISHED, CALIBRATED) == [2]
    assert likely(bank(rows), 1, CALIBRATED, PUBLISHED) == [1]
    assert likely(bank(rows), 2, PUBLISHED, CALIBRATED) == [1, 2]


def test_candidates_in_two_parts_are_the_whole_again() -> None:
    rows = [(-1, layer, 0.5 * layer, 2.0, 0.05) for layer in range(4)]
    whole = with_cosines(bank(rows, noise=0.5), [(0.1 * n, 0.2 * n) for n in range(4)])
    again = whole.rows([0, 2]).beside(whole.rows([1, 3])).rows([0, 2, 1, 3]).arrays()
    assert again.keys() == whole.arrays().keys()
    assert all(np.array_equal(again[name], value) for name, value in whole.arrays().items())


def test_the_share_of_draws_without_a_carrier_is_that_of_the_bootstrap() -> None:
    scores = bank([(-1, 3, -2.0, 2.0, 0.1), (-1, 4, 0.0, 2.0, 0.1)], noise=1.5, n=6)
    kl = np.where(np.arange(6) < 3, 0.02, 0.2) * np.ones((2, 1))  # their mean: as often above .11 as below
    scores = dataclasses.replace(scores, kl=kl, kl_answer=kl)
    profile = dataclasses.replace(CALIBRATED, kl_max=0.11)
    share = lacking_share(scores, profile, draws=500, rng=np.random.default_rng(3))
    drawn = bootstrap_carrier(scores, profile, draws=500, rng=np.random.default_rng(3))
    assert 0.2 < share < 0.8
    assert share == drawn.none_share
