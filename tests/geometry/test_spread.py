"""PR from U-statistics: against brute force and planted rows, free of scale, and the coverage of its difference."""

import itertools
import math

import numpy as np
import pytest
import torch

from caryatid.errors import InputError
from caryatid.geometry.rank import SiteActivations, compare_ranks, participation_ratio
from caryatid.geometry.spread import compare_spread, difference_interval, overlap_sums, participation
from caryatid.stats import Interval


def test_the_sums_are_means_over_all_choices_of_different_prompts() -> None:
    """Two different prompts of each category and four different harmless ones in every product."""
    rng = np.random.default_rng(0)
    x, s, index = rng.normal(size=(7, 3)) + 1, rng.normal(size=(5, 3)), np.array([0, 0, 1, 1, 1, 2, 2])
    across = own = 0.0
    for i, j in itertools.permutations(range(3), 2):
        found = []
        for (p, q), (r, t) in itertools.product(
            *(itertools.permutations(np.flatnonzero(index == k), 2) for k in (i, j))
        ):
            for a, b, c, d in itertools.permutations(range(5), 4):
                first = ((x[p] - s[a]) @ (x[r] - s[b])) * ((x[q] - s[c]) @ (x[t] - s[d]))
                second = ((x[p] - s[a]) @ (x[q] - s[b])) * ((x[r] - s[c]) @ (x[t] - s[d]))
                found.append((first, second))
        across, own = np.array([across, own]) + np.mean(found, axis=0)
    np.testing.assert_allclose(overlap_sums(x, s, index), (across, own), rtol=1e-10)


def rows_of(pr: float, kinds: int, seed: int = 0, d: int = 64) -> np.ndarray:
    """Unit rows with equal cosines whose participation ratio is `pr`."""
    cosine = math.sqrt((kinds / pr - 1) / (kinds - 1))
    gram = np.full((kinds, kinds), cosine) + (1 - cosine) * np.eye(kinds)
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(d, kinds)))[0]
    return np.asarray(np.linalg.cholesky(gram + 1e-12 * np.eye(kinds)) @ basis.T)


def test_planted_rows_have_the_classical_participation_ratio() -> None:
    for pr in (1.0, 1.5, 3.0):
        rows = rows_of(pr, 6)
        assert participation_ratio(torch.tensor(rows)) == pytest.approx(pr, rel=1e-6)
        gram, off = rows @ rows.T, ~np.eye(6, dtype=bool)
        assert participation(float((gram[off] ** 2).mean()), 6) == pytest.approx(pr, rel=1e-6)


def sampled(
    rng: np.random.Generator, n: int, rows: tuple[np.ndarray, np.ndarray], shared: float = 0.0
) -> tuple[SiteActivations, SiteActivations, list[str]]:
    kinds, d = rows[0].shape
    common, labels, found = rng.normal(size=(2, n, d)), np.arange(n) * kinds // n, []
    for each in rows:
        noise = 0.234 * (math.sqrt(shared) * common + math.sqrt(1 - shared) * rng.normal(size=(2, n, d)))
        noise[0] += each[labels]
        found.append(SiteActivations(torch.tensor(noise[0]), torch.tensor(noise[1])))
    return found[0], found[1], [str(label) for label in labels]


def test_scale_is_no_expansion_although_the_plug_in_rank_follows_it() -> None:
    """r made 1.2 times as long with the same noise: the plug-in effective rank shrinks “significantly”, PR does not."""
    rng, rows, flags = np.random.default_rng(1), rows_of(1.0, 8), []
    for _ in range(40):
        a, b, labels = sampled(rng, 128, (rows, 1.5 * rows), 0.8)
        old = compare_ranks(a, b, labels)["effective_rank"].difference if len(flags) < 5 else None
        assert old is None or old.hi < 0
        new = compare_spread(a, b, labels).difference
        flags.append((new.lo > 0 or new.hi < 0) and abs(new.value) >= 0.25)
    assert sum(flags) <= 2


def coverage(n: int, kinds: int, pr: tuple[float, float], shared: float, draws: int) -> tuple[float, float]:
    """Share of defined intervals that contain the true difference, and the mean difference."""
    rng, rows, found = np.random.default_rng(2), (rows_of(pr[0], kinds), rows_of(pr[1], kinds, 1)), []
    while len(found) < draws:
        drawn = compare_spread(*sampled(rng, n, rows, shared))
        if drawn.reason is None:
            found.append(drawn.difference)
    inside = np.mean([each.lo <= pr[1] - pr[0] <= each.hi for each in found])
    return float(inside), float(np.median([each.value for each in found]))


@pytest.mark.parametrize(
    ("kinds", "pr", "shared"), [(3, (1, 2), 0.0), (3, (1.5, 1.5), 0.0), (8, (1, 1), 0.8)]
)
def test_the_interval_of_the_difference_covers_it(kinds: int, pr: tuple[float, float], shared: float) -> None:
    """24 prompts; eight categories have three prompts each."""
    inside, middle = coverage(24, kinds, pr, shared, 500)
    assert 0.92 <= inside <= 0.98
    assert middle == pytest.approx(pr[1] - pr[0], abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kinds", "pr", "shared"), [(8, (1, 1), 0.0), (8, (1, 3), 0.0), (8, (2, 2), 0.8), (42, (1, 1.5), 0.0)]
)
def test_it_covers_with_many_prompts_too(kinds: int, pr: tuple[float, float], shared: float) -> None:
    inside, middle = coverage(128, kinds, pr, shared, 500)
    assert 0.92 <= inside <= 0.98
    assert middle == pytest.approx(pr[1] - pr[0], abs=0.05)


def test_other_prompts_at_each_anchor() -> None:
    rng, rows, found = np.random.default_rng(3), rows_of(1.5, 3), []
    for _ in range(150):
        a, b, labels = sampled(rng, 48, (rows, rows))
        keep = slice(0, 45)
        short = SiteActivations(b.harmful[keep], b.harmless)
        found.append(compare_spread(a, short, labels, categories_b=labels[keep]).difference)
    assert np.mean([each.lo <= 0 <= each.hi for each in found]) > 0.9


def test_what_cannot_be_compared_says_why() -> None:
    rng = np.random.default_rng(4)
    a, b, labels = sampled(rng, 12, (rows_of(1.0, 2), rows_of(1.0, 2)))
    one = compare_spread(a, b, ["x"] * 12)
    assert "two categories" in (one.reason or "")
    assert math.isnan(one.difference.value)
    found = compare_spread(a, b, [*labels[:-1], "alone"])
    assert found.left_out == ("alone",)
    noise = SiteActivations(a.harmful * 0 + torch.tensor(rng.normal(size=(12, 64))), a.harmless)
    assert "second anchor" in (compare_spread(a, noise, labels).reason or "")
    with pytest.raises(InputError, match="do not fit"):
        compare_spread(a, b, labels[:-1])
    with pytest.raises(InputError, match="same prompts"):
        compare_spread(a, SiteActivations(b.harmful, b.harmless[:8]), labels)


def test_the_interval_of_a_difference() -> None:
    """Independent estimates: widths add as squares; perfectly correlated ones with equal widths cancel."""
    a, b = Interval(1.0, 0.7, 1.4), Interval(2.0, 1.6, 2.3)
    lo, hi = 1 - math.hypot(0.4, 0.4), 1 + math.hypot(0.3, 0.3)
    assert difference_interval(a, b, 0.0) == pytest.approx((1.0, lo, hi), abs=1e-5)
    same = difference_interval(Interval(1, 0.5, 1.5), Interval(2, 1.5, 2.5), 1.0)
    assert (same.lo, same.hi) == pytest.approx((1, 1), abs=1e-5)
    assert difference_interval(a, Interval(2, 1.6, math.inf), 0.0).hi == math.inf
