"""Each statistic against an independent implementation, and its edges."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from scipy.optimize import minimize_scalar
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from caryatid.errors import InputError
from caryatid.stats import (
    Interval,
    bootstrap_indices,
    bootstrap_interval,
    clustered_rate,
    holm,
    interval_difference,
    mcnemar_exact,
    paired_bootstrap,
    paired_bootstrap_test,
    paired_difference,
    paired_ratio,
    quantile_interval,
    wilson,
)


@settings(deadline=None)
@given(n=st.integers(1, 500), share=st.floats(0, 1), confidence=st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_wilson_against_statsmodels(n: int, share: float, confidence: float) -> None:
    successes = round(share * n)
    rate = wilson(successes, n, confidence)
    lo, hi = proportion_confint(successes, n, alpha=1 - confidence, method="wilson")
    assert rate.value == successes / n
    assert rate.n == n
    assert rate.lo == pytest.approx(lo, abs=1e-12)
    assert rate.hi == pytest.approx(hi, abs=1e-12)


def test_wilson_edges() -> None:
    empty = wilson(0, 0)
    assert empty.n == 0
    assert all(math.isnan(v) for v in (empty.value, empty.lo, empty.hi))
    assert wilson(0, 60).lo == 0.0
    assert wilson(60, 60).hi == 1.0
    for bad in ((1, 0), (-1, 3), (4, 3)):
        with pytest.raises(InputError, match="no rate"):
            wilson(*bad)
    with pytest.raises(InputError, match="confidence"):
        wilson(1, 2, 95)


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=80))
def test_mcnemar_against_scipy_and_statsmodels(pairs: list[tuple[bool, bool]]) -> None:
    a, b = (np.array(side) for side in zip(*pairs, strict=True))
    p = mcnemar_exact(a, b)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    if only_a + only_b:
        assert p == pytest.approx(scipy_stats.binomtest(only_a, only_a + only_b, 0.5).pvalue, abs=1e-12)
        table = [[int((a & b).sum()), only_a], [only_b, int((~a & ~b).sum())]]
        assert p == pytest.approx(mcnemar(table, exact=True).pvalue, abs=1e-12)
    else:
        assert p == 1.0


def test_mcnemar_needs_pairs() -> None:
    with pytest.raises(InputError, match="not paired"):
        mcnemar_exact([True], [True, False])


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_holm_against_statsmodels(pvalues: list[float]) -> None:
    np.testing.assert_allclose(holm(pvalues), multipletests(pvalues, method="holm")[1], atol=1e-12)


def test_holm_leaves_out_tests_that_were_not_made() -> None:
    adjusted = holm([0.01, float("nan"), 0.04])
    assert math.isnan(adjusted[1])
    np.testing.assert_allclose(adjusted[[0, 2]], multipletests([0.01, 0.04], method="holm")[1])
    assert holm([]).shape == (0,)


def test_bootstrap_against_scipy_with_the_same_generator() -> None:
    data = np.random.default_rng(3).normal(size=37)
    ours = bootstrap_interval(lambda idx: float(np.median(data[idx])), 37, 999, np.random.default_rng(7))
    reference = scipy_stats.bootstrap(
        (data,), np.median, n_resamples=999, method="percentile", rng=np.random.default_rng(7)
    ).confidence_interval
    assert ours.value == np.median(data)
    assert (ours.lo, ours.hi) == pytest.approx((reference.low, reference.high), abs=1e-12)


def test_paired_bootstrap_against_scipy() -> None:
    source = np.random.default_rng(5)
    a, b = source.normal(size=50), source.normal(size=50)
    ours = paired_bootstrap(a, b, 1999, np.random.default_rng(1))
    reference = scipy_stats.bootstrap(
        (a - b,), np.mean, n_resamples=1999, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert ours.value == pytest.approx((a - b).mean())
    assert (ours.lo, ours.hi) == pytest.approx((reference.low, reference.high), abs=1e-12)


def test_paired_bootstrap_leaves_out_unscored_pairs() -> None:
    nan = float("nan")
    kept = paired_bootstrap([1.0, nan, 0.0, 1.0], [0.0, 1.0, nan, 0.0], 200, np.random.default_rng(0))
    assert kept == (1.0, 1.0, 1.0)
    assert all(math.isnan(v) for v in paired_bootstrap([nan], [1.0], 10, np.random.default_rng(0)))


def test_indices_are_uniform_and_reproducible() -> None:
    first = bootstrap_indices(5, 4000, np.random.default_rng(2))
    assert first.shape == (4000, 5)
    np.testing.assert_array_equal(first, bootstrap_indices(5, 4000, np.random.default_rng(2)))
    assert scipy_stats.chisquare(np.bincount(first.ravel(), minlength=5)).pvalue > 1e-4


def test_quantile_interval_against_the_definition() -> None:
    draws = np.arange(101.0)
    assert quantile_interval(draws, 42.0, 0.9) == pytest.approx((42.0, 5.0, 95.0))
    with_undefined = np.concatenate([draws, np.full(50, np.nan)])
    assert quantile_interval(with_undefined, 42.0, 0.9) == pytest.approx((42.0, 5.0, 95.0))
    undefined = quantile_interval([float("nan")] * 3, 1.0)
    assert undefined.value == 1.0
    assert math.isnan(undefined.lo)
    assert math.isnan(undefined.hi)


@pytest.mark.parametrize(("n", "draws"), [(0, 5), (5, 0)])
def test_impossible_bootstraps_are_refused(n: int, draws: int) -> None:
    with pytest.raises(InputError, match="bootstrap"):
        bootstrap_indices(n, draws, np.random.default_rng(0))


def test_clustered_rate_against_statsmodels_cluster_robust_regression() -> None:
    import statsmodels.api as sm

    rng = np.random.default_rng(0)
    for sizes in ([4] * 12, [1, 2, 3, 7, 5, 2, 2, 4], [3] * 40):
        clusters = np.repeat(np.arange(len(sizes)), sizes)
        leaning = rng.uniform(0, 1, len(sizes))[clusters]
        y = (rng.uniform(size=len(clusters)) < leaning).astype(float)
        n, p, m = len(y), y.mean(), len(sizes)
        fit = sm.OLS(y, np.ones(n)).fit(cov_type="cluster", cov_kwds={"groups": clusters})
        # statsmodels multiplies by m/(m − 1)·(n − 1)/(n − 1) for one regressor.
        effective = min(n, p * (1 - p) / float(fit.cov_params()[0, 0]))
        lo, hi = proportion_confint(p * effective, effective, method="wilson")
        rate = clustered_rate(y, clusters.tolist())
        assert (rate.value, rate.n) == (pytest.approx(p), n)
        assert rate.lo == pytest.approx(lo, abs=1e-9), (m, sizes)
        assert rate.hi == pytest.approx(hi, abs=1e-9)


def test_clustered_rate_edges() -> None:
    assert clustered_rate([1, 0, 1, 1], ["a", "b", "c", "d"]) == wilson(3, 4)
    same = clustered_rate([1, 1, 0, 0, 1, 1], ["a", "a", "b", "b", "c", "c"])
    assert (
        same.hi - same.lo > wilson(2, 3).hi - wilson(2, 3).lo - 1e-9
    )  # no more than three prompts are known
    none = clustered_rate([0] * 8, ["a"] * 4 + ["b"] * 4)
    assert none[:3] == (0.0, 8, 0.0)
    assert none.hi == pytest.approx(wilson(0, 2).hi)
    one = clustered_rate([1, 0, 1], ["a", "a", "a"])
    assert one.hi - one.lo == pytest.approx(np.diff(proportion_confint(2 / 3, 1, method="wilson"))[0])
    assert clustered_rate([], []).n == 0
    with pytest.raises(InputError, match="outcomes"):
        clustered_rate([0.5], ["a"])


def test_the_paired_bootstraps_p_value() -> None:
    rng = np.random.default_rng(5)
    for shift in (0.0, 0.2, 0.35, 1.0):
        a, b = rng.normal(shift, 1, 200), np.zeros(200)
        found = paired_bootstrap_test(a, b, 4000, np.random.default_rng(1))
        drawn = a[np.random.default_rng(1).integers(0, 200, size=(4000, 200))].mean(axis=1)
        tail = min((drawn <= 0).sum(), (drawn >= 0).sum())
        assert found.p == pytest.approx(min(1, 2 * (tail + 1) / 4001))
        assert found.p == pytest.approx(scipy_stats.ttest_1samp(a, 0).pvalue, abs=0.03)
        assert (found.p < 0.05) == (not found.lo <= 0 <= found.hi)
        assert found[:3] == paired_bootstrap(a, b, 4000, np.random.default_rng(1))
    assert paired_bootstrap_test([1, 1], [1, 1], 100, rng).p == 1
    assert math.isnan(paired_bootstrap_test([math.nan], [1], 100, rng).p)


def log_likelihood(theta: float, share: float, counts: tuple[int, int, int]) -> float:
    """Of items with both, a alone, b alone under p_a = θ·p_b, a alone in `share` of those with either."""
    fewer = theta * share - (theta - 1)
    cells = (1 - share - fewer, share, fewer)
    return sum(n * math.log(max(p, 1e-300)) for n, p in zip(counts, cells, strict=True))


@settings(deadline=None, max_examples=60)
@given(
    both=st.integers(0, 20), only_a=st.integers(0, 20), only_b=st.integers(0, 20), neither=st.integers(0, 5)
)
def test_the_bounds_of_a_paired_ratio_are_where_the_score_is_z(
    both: int, only_a: int, only_b: int, neither: int
) -> None:
    """The constrained likelihood maximised numerically, and the score statistic from its definition."""
    counts = (both, only_a, only_b)
    if both + only_b == 0:
        return
    a, b = (np.repeat(flags, (*counts, neither)) for flags in ([1, 1, 0, 0], [1, 0, 1, 0]))
    found = paired_ratio(a, b, 0.9)
    assert found.value == a.sum() / b.sum()
    assert found.lo <= found.value <= found.hi
    assert (found.lo == 0) == (a.sum() == 0)
    either = sum(counts)
    for theta in {found.lo, found.hi} - {0.0}:
        low, high = max(0.0, (theta - 1) / theta), theta / (1 + theta)
        best = minimize_scalar(
            lambda share, theta=theta: -log_likelihood(theta, share, counts),
            bounds=(low, high), method="bounded", options={"xatol": 1e-12},
        ).x  # fmt: skip
        variance = theta * either * (best + theta * best - (theta - 1))
        score = (a.sum() - theta * b.sum()) / math.sqrt(variance)
        assert abs(score) == pytest.approx(1.6448536, rel=1e-3)


def test_a_paired_ratio_without_a_denominator_is_undefined() -> None:
    assert all(math.isnan(value) for value in paired_ratio([True, False], [False, False]))
    with pytest.raises(InputError, match="not paired"):
        paired_ratio([True], [True, False])


def _pairs(both: int, first: int, second: int, neither: int) -> tuple[list[int], list[int]]:
    a = [1] * (both + first) + [0] * (second + neither)
    b = [1] * both + [0] * first + [1] * second + [0] * neither
    return a, b


def test_paired_difference_is_newcombes_method_10() -> None:
    # Newcombe 1998, first example: 36 both, 12 and 2 discordant, 0 neither.
    found = paired_difference(*_pairs(36, 12, 2, 0))
    assert found == pytest.approx((0.2, 0.0569, 0.3404), abs=5e-5)
    # No discordant pair: φ = 0 where a margin is empty, and the interval still has a width.
    nothing = paired_difference(*_pairs(0, 0, 0, 4))
    bound = wilson(0, 4).hi
    assert nothing == pytest.approx((0.0, -bound, bound))
    # Swapping the sides mirrors the interval.
    there, back = paired_difference(*_pairs(7, 5, 1, 9)), paired_difference(*reversed(_pairs(7, 5, 1, 9)))
    assert (there.value, there.lo, there.hi) == pytest.approx((-back.value, -back.hi, -back.lo))
    assert np.isnan(paired_difference([], []).value)
    with pytest.raises(InputError, match="0 or 1"):
        paired_difference([0.5], [1])


@pytest.mark.parametrize(
    ("a", "n", "b", "m"), [(56, 70, 48, 80), (0, 10, 0, 20), (10, 10, 0, 20), (240, 240, 7, 32)]
)
def test_the_difference_of_wilson_intervals_is_newcombes(a: int, n: int, b: int, m: int) -> None:
    one, two = (Interval(r.value, r.lo, r.hi) for r in (wilson(a, n), wilson(b, m)))
    found = interval_difference(one, two)
    lo, hi = confint_proportions_2indep(a, n, b, m, method="newcomb", compare="diff")
    assert found == pytest.approx((a / n - b / m, lo, hi), abs=1e-9)
    assert math.isnan(interval_difference(one, Interval(math.nan, math.nan, math.nan)).lo)
