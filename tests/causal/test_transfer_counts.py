"""Transfer against random subspaces: counts by hand, honest bounds of D(c), and their coverage."""

import itertools
import math

import numpy as np
import pytest
from jaxtyping import TypeCheckError
from scipy.optimize import minimize
from scipy.stats import multinomial

from caryatid.causal.contrast import PairedCounts, paired_contrast
from caryatid.causal.transfer import TransferCounts, random_share, transfer_counts
from caryatid.errors import InputError
from caryatid.stats import Interval, clopper_pearson, wilson

Z2 = 1.959963984540054**2


def bools(text: str) -> np.ndarray:
    return np.array([char == "x" for char in text])


def test_counts_are_those_of_the_refusals() -> None:
    found = transfer_counts(
        refused=bools("xxxxxx.."),
        under_a=bools("..xx.xx."),
        under_b=bools("...xx..x"),
        under_random=np.stack([bools("x.xxxx.."), bools("xxxxxxxx")]),
    )
    assert (found.both, found.only_a, found.only_b, found.neither) == (2, 1, 2, 1)
    assert (found.refusals, found.old, found.own) == (6, pytest.approx(3 / 6), pytest.approx(4 / 6))
    assert found.random.value == pytest.approx(1 / 12)
    assert found.subspaces == 2
    assert found.above_random("own").value == pytest.approx(4 / 6 - 1 / 12)
    for factor in (0.5, 0.8):
        star = [found.above_random(which).value for which in ("old", "own")]
        assert found.contrast(factor).value == pytest.approx(star[0] - factor * star[1])
    with pytest.raises((InputError, TypeCheckError)):  # what shapes say is checked before, while tests run
        transfer_counts(bools("xx"), bools("xx"), bools("xx"), np.ones((2, 3), bool))


def likeliest(counts: tuple[int, ...], factor: float, delta: float) -> float:
    """Variance under the most likely cell probabilities with this contrast, by a general optimiser."""
    values = np.array([1 - factor, 1.0, -factor, 0.0]) - delta
    found = minimize(
        lambda p: -float(np.sum(np.array(counts) * np.log(np.maximum(p, 1e-12)))),
        np.full(4, 0.25),
        bounds=[(0, 1)] * 4,
        constraints=[
            {"type": "eq", "fun": lambda p: p.sum() - 1},
            {"type": "eq", "fun": lambda p: p @ values},
        ],
        options={"maxiter": 500, "ftol": 1e-12},
    )
    return float(found.x @ values**2)


@pytest.mark.parametrize("counts", [(10, 3, 4, 7), (20, 0, 2, 2), (0, 0, 12, 0), (12, 0, 0, 0)])
@pytest.mark.parametrize("factor", [0.5, 0.8])
def test_bounds_are_where_the_score_statistic_is_z(counts: tuple[int, int, int, int], factor: float) -> None:
    found = paired_contrast(PairedCounts(*counts), factor)
    for bound, end in ((found.lo, -factor), (found.hi, 1.0)):
        if abs(bound - end) > 1e-6:
            score = (found.value - bound) ** 2 * sum(counts) / likeliest(counts, factor, bound)
            assert score == pytest.approx(Z2, rel=0.01)


def test_factor_zero_is_wilsons_interval() -> None:
    found = paired_contrast(PairedCounts(5, 2, 1, 12), 0.0)
    assert found == pytest.approx((0.35, *wilson(7, 20)[2:]), abs=1e-9)


@pytest.mark.parametrize(
    ("n", "kept", "replaced"), [(7, False, False), (8, False, True), (15, False, True), (16, True, True)]
)
def test_few_refusals_settle_nothing_although_all_of_them_agree(n: int, kept: bool, replaced: bool) -> None:
    """D(.8) is shown to be positive from 4z² = 15.4 refusals on, D(.5) to be negative from 2z² = 7.7 on."""
    assert (paired_contrast(PairedCounts(n, 0, 0, 0), 0.8).lo > 0) == kept
    assert (paired_contrast(PairedCounts(0, 0, n, 0), 0.5).hi < 0) == replaced


@pytest.mark.parametrize("n", [5, 10])
def test_at_each_threshold_one_case_in_twenty_is_wrong_at_most(n: int) -> None:
    """All outcomes of n refusals, weighted with their probability; each bound is meant to err in one of forty."""
    outcomes = np.array([c for c in itertools.product(range(n + 1), repeat=4) if sum(c) == n])
    bounds = {f: [paired_contrast(PairedCounts(*map(int, c)), f) for c in outcomes] for f in (0.5, 0.8)}
    for own, nested in itertools.product((0.7, 0.95), (True, False)):
        for factor, side in ((0.5, "hi"), (0.5, "lo"), (0.8, "lo")):
            decided = np.array([b.hi < 0 if side == "hi" else b.lo > 0 for b in bounds[factor]])
            both = factor * own * (1 if nested else own)
            shares = [both, factor * own - both, own - both, 1 - own - factor * own + both]
            assert multinomial.pmf(outcomes, n, shares)[decided].sum() < 0.05, (own, nested, factor, side)


def planted(
    rng: np.random.Generator, n: int, own: float, ratio: float, random: float, subspaces: int = 8
) -> TransferCounts:
    """Refusals that differ in how easily any ablation removes them, and random subspaces that differ in strength."""
    frail = rng.normal(size=n)
    strength = rng.normal(size=(subspaces, 1)) * 0.5
    removes = 2.2 * rng.normal(size=(subspaces, n)) + strength + frail > -2.468 * _quantile(random)
    under_b = rng.random(n) < own
    under_a = np.where(rng.random(n) < ratio, under_b, False)
    return transfer_counts(np.ones(n, bool), ~under_a, ~under_b, ~removes)


def _quantile(p: float) -> float:
    from scipy.stats import norm

    return -float(norm.ppf(1 - p)) * math.sqrt(2.2**2 + 0.5**2 + 1) / 2.468 if p else -math.inf


@pytest.mark.parametrize("n", [24, 128])
@pytest.mark.parametrize(("ratio", "factor"), [(0.5, 0.5), (0.3, 0.5), (0.8, 0.8), (0.6, 0.8)])
def test_the_interval_covers_the_contrast(n: int, ratio: float, factor: float) -> None:
    rng, own, random = np.random.default_rng(0), 0.85, 0.08
    true = (ratio - factor) * own - (1 - factor) * random
    found = [planted(rng, n, own, ratio, random).contrast(factor) for _ in range(500)]
    assert 0.92 <= np.mean([each.lo <= true <= each.hi for each in found]) <= 0.98
    assert np.mean([each.value for each in found]) == pytest.approx(true, abs=0.01)


def test_variance_between_random_subspaces_is_in_the_bounds() -> None:
    """Half of eight subspaces remove everything, half nothing: a thousand prompts do not make that share certain."""
    removed = np.repeat([[True], [False]], 4, axis=0) & np.ones((8, 1000), bool)
    found = random_share(removed)
    assert (found.value, found.hi - found.lo > 0.5) == (0.5, True)
    nothing = random_share(np.zeros((8, 64), bool))
    assert nothing.hi == pytest.approx(Z2 / (64 + Z2))
    assert math.isnan(random_share(np.zeros((0, 64), bool)).value)


def test_without_random_subspaces_nothing_is_decided() -> None:
    found = transfer_counts(bools("x" * 30), bools("x" * 30), bools("." * 30), np.zeros((0, 30), bool))
    assert math.isnan(found.contrast(0.5).hi)
    assert math.isnan(found.above_random("own").lo)


def test_no_refusals_no_values() -> None:
    none = TransferCounts(0, 0, 0, 0, Interval(math.nan, math.nan, math.nan), 8)
    assert all(
        math.isnan(value) for value in (none.old, none.own, *none.contrast(0.5), *none.above_random("old"))
    )


def test_clopper_pearson_bounds() -> None:
    """Textbook: 0 of n has the upper bound 1 − α^(1/n); at ≥ .9 with 95 % it takes 49 of 50 or 96 of 100."""
    assert clopper_pearson(0, 20).hi == pytest.approx(1 - 0.05 ** (1 / 20))
    assert [clopper_pearson(k, n).lo >= 0.9 for k, n in ((48, 50), (49, 50), (95, 100), (96, 100))] == [
        False, True, False, True,
    ]  # fmt: skip
    assert clopper_pearson(48.5, 50).lo < clopper_pearson(49, 50).lo
    with pytest.raises(InputError):
        clopper_pearson(3, 2)
