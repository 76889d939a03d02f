import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import subspace_angles

from caryatid.errors import InputError, NumericalError
from caryatid.geometry.angles import (
    angle_between,
    angle_summary,
    chordal,
    excess_angle,
    excess_angle_value,
    grassmann,
    principal_angles,
)
from caryatid.geometry.jackknife import jackknife_variance
from caryatid.geometry.rank import SiteActivations


def random_matrix(seed: int, shape: tuple[int, int]) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scipy_angles(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
    return subspace_angles(a.double().numpy().T, b.double().numpy().T)[::-1]


@pytest.mark.parametrize("ranks", [(1, 1), (3, 3), (2, 5), (5, 2), (8, 8), (6, 5)])
def test_angles_equal_scipys(ranks: tuple[int, int]) -> None:
    a, b = random_matrix(0, (ranks[0], 8)), random_matrix(1, (ranks[1], 8))
    np.testing.assert_allclose(principal_angles(a, b).numpy(), scipy_angles(a, b), atol=1e-12)


@pytest.mark.parametrize(
    "angle", [0.0, 1e-12, 1e-9, 1e-5, 0.3, math.pi / 4, 1.2, math.pi / 2 - 1e-9, math.pi / 2]
)
def test_a_rotation_by_a_known_angle_is_found_from_tiny_to_right(angle: float) -> None:
    a = torch.zeros(2, 6, dtype=torch.float64)
    a[0, 0] = a[1, 1] = 1
    b = torch.zeros(2, 6, dtype=torch.float64)
    b[0, 0], b[0, 2] = math.cos(angle), math.sin(angle)
    b[1, 1] = 1
    turn = torch.linalg.qr(random_matrix(0, (6, 6))).Q
    found = principal_angles(a @ turn, b @ turn)
    assert float(found[0]) == pytest.approx(0, abs=1e-15)
    assert float(found[1]) == pytest.approx(angle, rel=1e-3, abs=1e-15)
    assert float(angle_between((b @ turn)[0], (a @ turn)[0])) == pytest.approx(angle, rel=1e-3, abs=1e-15)


def test_identical_and_orthogonal_spans() -> None:
    a = random_matrix(0, (3, 7))
    mixed = random_matrix(1, (3, 3)) @ a
    np.testing.assert_allclose(principal_angles(a, mixed).numpy(), 0, atol=1e-12)
    both = torch.linalg.qr(random_matrix(2, (7, 7))).Q
    np.testing.assert_allclose(principal_angles(both[:3], both[3:6]).numpy(), math.pi / 2, atol=1e-12)
    summary = angle_summary(both[:3], both[3:6])
    assert (summary.mean, summary.max) == pytest.approx((90, 90))
    assert summary.grassmann == pytest.approx(math.pi / 2 * math.sqrt(3))
    assert summary.chordal == pytest.approx(math.sqrt(3))


def test_distances_follow_from_scipys_angles() -> None:
    a, b = random_matrix(3, (3, 9)), random_matrix(4, (3, 9))
    angles = scipy_angles(a, b)
    assert grassmann(a, b) == pytest.approx(float(np.sqrt((angles**2).sum())), rel=1e-12)
    assert chordal(a, b) == pytest.approx(float(np.sqrt((np.sin(angles) ** 2).sum())), rel=1e-12)
    summary = angle_summary(a, b)
    assert summary.mean == pytest.approx(float(np.degrees(angles.mean())))
    assert summary.max == pytest.approx(float(np.degrees(angles.max())))
    np.testing.assert_allclose(summary.angles, np.degrees(angles), rtol=1e-12)


def test_chordal_is_the_projectors_distance() -> None:
    a, b = (torch.linalg.qr(random_matrix(seed, (9, 3))).Q for seed in (5, 6))
    distance = float((a @ a.T - b @ b.T).norm()) / math.sqrt(2)
    assert chordal(a.T, b.T) == pytest.approx(distance, rel=1e-12)


def test_rank_deficient_and_zero_rows_add_nothing() -> None:
    a, b = random_matrix(0, (2, 6)), random_matrix(1, (2, 6))
    padded = torch.cat([a, a.sum(0, keepdim=True), torch.zeros(1, 6)])
    assert len(principal_angles(padded, b)) == 2
    np.testing.assert_allclose(principal_angles(padded, b).numpy(), scipy_angles(a, b), atol=1e-12)
    one = principal_angles(a[:1], b)
    np.testing.assert_allclose(one.numpy(), scipy_angles(a[:1], b), atol=1e-12)


def test_angle_errors() -> None:
    with pytest.raises(InputError, match="without a direction"):
        principal_angles(torch.zeros(2, 4), torch.eye(4)[:1])
    with pytest.raises(InputError, match="widths 4 and 5"):
        principal_angles(torch.eye(4), torch.eye(5))
    with pytest.raises(NumericalError):
        principal_angles(torch.full((1, 4), torch.nan), torch.eye(4))
    assert math.isnan(float(angle_between(torch.zeros(3), torch.ones(3))))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), k=st.integers(1, 4), m=st.integers(1, 4), scale=st.floats(1e-4, 1e4))
def test_angles_are_symmetric_and_invariant(seed: int, k: int, m: int, scale: float) -> None:
    a, b = random_matrix(seed, (k, 6)), random_matrix(seed + 1, (m, 6))
    found = principal_angles(a, b)
    assert bool((found.diff() >= -1e-9).all())
    turn = torch.linalg.qr(random_matrix(seed + 2, (6, 6))).Q
    for other in (principal_angles(b, a), principal_angles(scale * a @ turn, -b @ turn)):
        torch.testing.assert_close(other, found, rtol=1e-7, atol=1e-9)


def planted(
    n: int, theta: float, noise: float, seed: int, d: int = 32, shared: float = 0.5
) -> tuple[SiteActivations, SiteActivations, list[str]]:
    """One direction at a, the same turned by `theta` degrees at b; prompts' noise partly shared between anchors."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(2, n, d))
    sites = []
    for angle in (0.0, math.radians(theta)):
        own = rng.normal(size=(2, n, d))
        harmful, harmless = noise * (math.sqrt(shared) * common + math.sqrt(1 - shared) * own)
        harmful[:, 0] += 3 * math.cos(angle)
        harmful[:, 1] += 3 * math.sin(angle)
        sites.append(SiteActivations(torch.tensor(harmful), torch.tensor(harmless)))
    return sites[0], sites[1], [str(i % 4) for i in range(n)]


def brute_force(
    a: SiteActivations, b: SiteActivations, harmful: np.ndarray, harmless: np.ndarray
) -> tuple[float, float]:
    """Mean across and within angles over splits that are given as masks of the first half."""

    def angle(x: np.ndarray, y: np.ndarray) -> float:
        return math.degrees(math.acos(abs(x @ y) / np.linalg.norm(x) / np.linalg.norm(y)))

    across, within = [], []
    for up, down in zip(harmful, harmless, strict=True):
        halves = [
            [
                s.harmful.numpy()[u].mean(0) - s.harmless.numpy()[v].mean(0)
                for u, v in ((up, down), (~up, ~down))
            ]
            for s in (a, b)
        ]
        (a1, a2), (b1, b2) = halves
        across += [angle(a1, b2), angle(a2, b1)]
        within += [angle(a1, a2), angle(b1, b2)]
    return float(np.mean(across)), float(np.mean(within))


def test_excess_angle_equals_its_definition_split_by_split(monkeypatch: pytest.MonkeyPatch) -> None:
    from caryatid.geometry import angles

    drawn: list[np.ndarray] = []
    original = angles._halves

    def recorded(*args: object) -> np.ndarray:
        drawn.append(original(*args))  # type: ignore[arg-type]
        return drawn[-1]

    monkeypatch.setattr(angles, "_halves", recorded)
    for d in (6, 200):  # 200: more columns than rows, measured in coordinates of the span
        drawn.clear()
        a, b, labels = planted(10, 20, 0.5, seed=1, d=d)
        found = excess_angle(a, b, labels, splits=12, rng=np.random.default_rng(0))
        across, within = brute_force(a, b, *drawn)
        assert found.across == pytest.approx(across, rel=1e-9)
        assert found.within == pytest.approx(within, rel=1e-9)
        assert found.excess.value == pytest.approx(across - within, abs=1e-9)


def test_the_value_alone_is_that_of_the_interval() -> None:
    a, b, labels = planted(16, 20, 0.5, seed=4, d=80)
    whole = excess_angle(a, b, labels, splits=30, rng=np.random.default_rng(3)).excess.value
    alone = excess_angle_value(a, b, labels, splits=30, rng=np.random.default_rng(3))
    assert alone == pytest.approx(whole, abs=1e-9)
    with pytest.raises(InputError, match="same labelled prompts"):
        excess_angle_value(a, b, labels[:-1], rng=np.random.default_rng(0))


def test_halves_are_halves_within_every_category() -> None:
    from caryatid.geometry.angles import _halves

    labels = ["a"] * 5 + ["b"] * 4 + ["c"] * 3 + ["d"]
    first = _halves(labels, 300, np.random.default_rng(0))
    for name, smallest, largest in (("a", 2, 3), ("b", 2, 2), ("c", 1, 2), ("d", 0, 1)):
        inside = first[:, [i for i, label in enumerate(labels) if label == name]].sum(axis=1)
        assert (inside.min(), inside.max()) == (smallest, largest)
    assert set(first.sum(axis=1)) <= {6, 7}
    assert 0.4 < first.mean() < 0.6


def test_a_planted_rotation_is_found() -> None:
    a, b, labels = planted(32, 30, 0.05, seed=0)
    found = excess_angle(a, b, labels, rng=np.random.default_rng(0))
    assert found.excess.value == pytest.approx(30, abs=3)
    assert found.excess.lo < found.excess.value < found.excess.hi
    assert found.excess.lo > 10
    assert found.splits == 200


def test_the_corrected_angle_is_right_where_noise_swamps_the_excess() -> None:
    excess, corrected = [], []
    for seed in range(12):
        a, b, labels = planted(48, 30, 1.0, seed)
        found = excess_angle(a, b, labels, splits=40, rng=np.random.default_rng(seed))
        excess.append(found.excess.value)
        corrected.append(found.corrected.value)
    assert np.mean(excess) < 12
    assert np.mean(corrected) == pytest.approx(30, abs=4)


def test_unchanged_anchors_have_no_excess() -> None:
    wrong = 0
    for seed in range(40):
        a, b, labels = planted(24, 0, 0.4, seed)
        found = excess_angle(a, b, labels, splits=60, rng=np.random.default_rng(seed))
        wrong += found.excess.lo > 0
        assert found.excess.lo < 10
    assert wrong <= 2


def test_the_same_anchor_twice_is_exactly_zero() -> None:
    a, _, labels = planted(16, 0, 0.4, seed=3)
    found = excess_angle(a, a, labels, splits=50, rng=np.random.default_rng(0))
    assert found.excess == pytest.approx((0, 0, 0), abs=1e-9)


def test_excess_angle_without_categories_and_its_errors() -> None:
    a, b, labels = planted(8, 30, 0.1, seed=0)
    assert excess_angle(a, b, None, splits=20, rng=np.random.default_rng(0)).excess.value > 10
    with pytest.raises(InputError, match="same labelled prompts"):
        excess_angle(a, b, labels[:-1], rng=np.random.default_rng(0))
    few = SiteActivations(a.harmful[:3], a.harmless)
    with pytest.raises(InputError, match="at least 4 prompts"):
        excess_angle(few, few, labels[:3], rng=np.random.default_rng(0))
    broken = SiteActivations(a.harmful.clone().fill_(torch.nan), a.harmless)
    with pytest.raises(NumericalError):
        excess_angle(a, broken, labels, rng=np.random.default_rng(0))


@pytest.mark.slow
@pytest.mark.parametrize(("theta", "noise", "shared"), [(30, 0.3, 0.5), (30, 1.0, 0.9), (15, 0.6, 0.5)])
def test_coverage_of_the_interval_of_the_excess_angle(theta: float, noise: float, shared: float) -> None:
    found = []
    for seed in range(200):
        a, b, labels = planted(32, theta, noise, seed, shared=shared)
        found.append(excess_angle(a, b, labels, rng=np.random.default_rng(seed)).excess)
    truth = np.mean([interval.value for interval in found])
    covered = np.mean([interval.lo <= truth <= interval.hi for interval in found])
    assert 0.91 <= covered <= 0.99


@pytest.mark.parametrize("sizes", [(6,), (3, 3, 3), (4, 1, 1), (5, 2, 1)])
def test_a_pooled_jackknife_is_exact_for_a_mean_over_strata(sizes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    strata = [label for label, size in enumerate(sizes) for _ in range(size)]
    values = rng.normal(size=len(strata)) + 5 * np.array(strata)
    left_out = (values.sum() - values) / (len(values) - 1)
    merged = {(4, 1, 1): [0, 0, 0, 0, 1, 1], (5, 2, 1): [0] * 5 + [1] * 3}.get(sizes, strata)
    parts = [values[np.array(merged) == label] for label in set(merged)]
    exact = sum(len(part) * part.var(ddof=1) for part in parts) / len(values) ** 2
    assert jackknife_variance(left_out, strata, pooled=True) == pytest.approx(exact)


@pytest.mark.parametrize("per_category", [1, 2, 3])
def test_small_categories_do_not_narrow_the_interval_of_the_excess_angle(per_category: int) -> None:
    a, b, _ = planted(24, 30, 0.6, seed=0)
    labels = [str(i // per_category) for i in range(24)]
    whole, split = (
        excess_angle(a, b, each, splits=60, rng=np.random.default_rng(0)).excess for each in (None, labels)
    )
    assert split.hi - split.lo > 0.75 * (whole.hi - whole.lo)
