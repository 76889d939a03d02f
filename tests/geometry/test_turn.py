"""The corrected angle against brute force over splits, against a planted turn, and the coverage of its interval."""

import itertools
import math

import numpy as np
import pytest
import torch

from caryatid.errors import InputError, NumericalError
from caryatid.geometry.forms import AA, AB, BB, Form, Groups
from caryatid.geometry.rank import SiteActivations
from caryatid.geometry.turn import contrast_angle, corrected_angle, small_groups_joined


def planted(
    rng: np.random.Generator,
    n: int,
    degrees: float,
    *,
    shared: float = 0.0,
    noise: float = 0.234,
    d: int = 64,
) -> tuple[SiteActivations, SiteActivations]:
    """A direction of length 1, turned at b; each prompt's noise has length 1.9 (as in small backbones)."""
    common = rng.normal(size=(2, n, d))
    found = []
    for turn in (0.0, math.radians(degrees)):
        rows = noise * (math.sqrt(shared) * common + math.sqrt(1 - shared) * rng.normal(size=(2, n, d)))
        rows[0, :, 0] += math.cos(turn)
        rows[0, :, 1] += math.sin(turn)
        found.append(SiteActivations(*(torch.tensor(side) for side in rows)))
    return found[0], found[1]


def halvings(n: int, labels: list[int]) -> list[np.ndarray]:
    """All splits of n items into halves, each group halved within itself."""
    whole = [np.array(mask, dtype=bool) for mask in itertools.product((False, True), repeat=n)]
    groups = [np.flatnonzero(np.array(labels) == label) for label in sorted(set(labels))]
    return [mask for mask in whole if all(2 * mask[items].sum() == len(items) for items in groups)]


@pytest.mark.parametrize("labels", [[0] * 6, [0, 0, 1, 1, 1, 1]])
def test_the_closed_form_is_the_mean_over_all_splits_into_halves(labels: list[int]) -> None:
    rng = np.random.default_rng(0)
    a, b = planted(rng, 6, 40)
    u = {}
    for name, (one, two) in {"aa": (a, a), "ab": (a, b), "bb": (b, b)}.items():
        products = []
        for up, down in itertools.product(halvings(6, labels), halvings(6, [0] * 6)):
            first = one.harmful[up].mean(0) - one.harmless[down].mean(0)
            second = two.harmful[~up].mean(0) - two.harmless[~down].mean(0)
            products.append(float(first @ second))
        u[name] = float(np.mean(products))
    index = np.concatenate([labels, np.full(6, max(labels) + 1)])
    weights = np.append(np.bincount(labels) / 6, -1.0)
    groups = Groups(*(torch.cat([*site]).numpy() for site in (a, b)), index)
    forms = [Form(which, np.outer(weights, weights)) for which in (AA, AB, BB)]
    np.testing.assert_allclose(groups.estimate(forms).values, list(u.values()), rtol=1e-12)


@pytest.mark.parametrize("degrees", [0.0, 30.0, 90.0, 135.0, 180.0])
def test_without_noise_the_angle_is_signed_and_exact(degrees: float) -> None:
    rng = np.random.default_rng(1)
    a, b = planted(rng, 24, degrees, noise=1e-9)
    found = corrected_angle(a, SiteActivations(3 * b.harmful, 3 * b.harmless), [i // 3 for i in range(24)])
    assert found.cosine.value == pytest.approx(math.cos(math.radians(degrees)), abs=1e-6)
    assert found.degrees.value == pytest.approx(degrees, abs=0.1)
    assert found.cosine.lo < found.cosine.value < found.cosine.hi


def test_the_angle_does_not_depend_on_the_number_of_prompts() -> None:
    """Excess angles of a turn of 30° read 6° at 24 prompts and 20° at 256."""
    means = []
    for n in (24, 96):
        rng = np.random.default_rng(2)
        cosines = [corrected_angle(*planted(rng, n, 30)).cosine.value for _ in range(150)]
        means.append(np.mean(cosines))
    np.testing.assert_allclose(means, math.cos(math.radians(30)), atol=0.015)


def coverage(n: int, degrees: float, shared: float, size: int, draws: int, paired: bool = True) -> np.ndarray:
    """Shares of intervals that lie above, contain, and lie below the true cosine."""
    rng, true = np.random.default_rng(3), math.cos(math.radians(degrees))
    labels = [i // size for i in range(n)] if paired else None
    found = [
        corrected_angle(*planted(rng, n, degrees, shared=shared), labels, paired=paired).cosine
        for _ in range(draws)
    ]
    return np.mean([[each.lo > true, each.lo <= true <= each.hi, each.hi < true] for each in found], axis=0)


@pytest.mark.parametrize("size", [3, 24])
@pytest.mark.parametrize(("degrees", "shared"), [(0, 0.8), (10, 0.0), (30, 0.8), (120, 0.0)])
def test_the_interval_covers_the_true_cosine(degrees: float, shared: float, size: int) -> None:
    """500 draws at 24 prompts; a plain jackknife covers 86 to 100 %, and clipped cosines have no width at 0°."""
    above, inside, below = coverage(24, degrees, shared, size, 500)
    assert 0.92 <= inside <= (1 if degrees == 0 else 0.98)
    assert max(above, below) <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("size", [3, 16])
@pytest.mark.parametrize(("degrees", "shared"), [(0, 0.0), (10, 0.8), (20, 0.0), (45, 0.8), (120, 0.0)])
def test_the_interval_covers_with_many_prompts_too(degrees: float, shared: float, size: int) -> None:
    _, inside, _ = coverage(128, degrees, shared, size, 500)
    assert 0.92 <= inside <= (1 if degrees == 0 else 0.98)


def test_other_prompts_at_each_anchor_are_covered_too() -> None:
    for degrees in (0, 30):
        _, inside, _ = coverage(24, degrees, 0.0, 24, 500, paired=False)
        assert 0.92 <= inside <= (1 if degrees == 0 else 0.98)


def test_prompts_that_are_the_same_must_be_said_to_be() -> None:
    """Correlated noise makes two anchors look alike if the prompts are taken for different ones."""
    rng = np.random.default_rng(4)
    pairs = [planted(rng, 24, 60, shared=0.95) for _ in range(150)]
    paired, wrong = (
        np.mean([corrected_angle(*pair, paired=flag).cosine.value for pair in pairs])
        for flag in (True, False)
    )
    assert paired == pytest.approx(0.5, abs=0.02)
    assert wrong > 0.7


def test_small_groups_are_joined() -> None:
    assert small_groups_joined(["a"] * 3 + ["b", "c", "d"]).tolist() == [0, 0, 0, 1, 1, 1]
    assert small_groups_joined(["a"] * 4 + ["b"] * 3 + ["c"]).tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert len(set(small_groups_joined(["a", "b", "c", "d"]).tolist())) == 1


def test_a_direction_within_its_noise_has_no_angle() -> None:
    rng = np.random.default_rng(5)
    noise = SiteActivations(torch.tensor(rng.normal(size=(24, 64))), torch.tensor(rng.normal(size=(24, 64))))
    clear, _ = planted(rng, 24, 0)
    for pair, which in (((clear, noise), "second"), ((noise, clear), "first")):
        found = corrected_angle(*pair)
        assert found.reason is not None
        assert which in found.reason
        assert all(math.isnan(value) for value in (*found.cosine, *found.degrees))


def test_identical_anchors_have_not_turned() -> None:
    rng = np.random.default_rng(6)
    a, _ = planted(rng, 24, 0)
    found = corrected_angle(a, a)
    assert found.cosine.value == pytest.approx(1, abs=1e-9)
    assert found.degrees.hi < 0.2


def test_errors() -> None:
    rng = np.random.default_rng(7)
    a, b = planted(rng, 8, 0)
    short = SiteActivations(b.harmful[:6], b.harmless)
    with pytest.raises(InputError, match="same labelled prompts"):
        corrected_angle(a, short)
    with pytest.raises(InputError, match="same labelled prompts"):
        corrected_angle(a, b, ["x"] * 7)
    with pytest.raises(InputError, match="no common categories"):
        corrected_angle(a, short, ["x"] * 8, paired=False)
    with pytest.raises(InputError, match="at least 4"):
        corrected_angle(*(SiteActivations(s.harmful[:3], s.harmless) for s in (a, b)))
    with pytest.raises(NumericalError):
        corrected_angle(a, SiteActivations(b.harmful * math.nan, b.harmless))


ALL, FILTERED = np.array([0.5, 0.5, -1.0]), np.array([1.0, 0.0, -1.0])  # refused, answered, harmless


def behaving(rng: np.random.Generator, degrees: float, n: int = 24, noise: float = 0.234) -> list[np.ndarray]:
    """Refused, answered and harmless prompts; without noise `FILTERED` is this far from `ALL`, both of length 1."""
    turn = math.radians(degrees)
    found = [noise * rng.normal(size=(count, 64)) for count in (n, n, 2 * n)]
    found[0][:, :2] += [math.cos(turn), math.sin(turn)]
    found[1][:, :2] += [2 - math.cos(turn), -math.sin(turn)]  # so that the mean of both is the first axis
    return found


def test_two_directions_that_share_prompts_are_compared_over_all_splits_of_these() -> None:
    groups = [part[:4] for part in behaving(np.random.default_rng(0), 30, noise=0.05)]
    halves = halvings(4, [0] * 4)
    products = {}
    for name, (one, two) in {"11": (ALL, ALL), "12": (ALL, FILTERED), "22": (FILTERED, FILTERED)}.items():
        drawn = []
        for masks in itertools.product(halves, repeat=3):
            first = sum(w * part[mask].mean(0) for w, part, mask in zip(one, groups, masks, strict=True))
            second = sum(w * part[~mask].mean(0) for w, part, mask in zip(two, groups, masks, strict=True))
            drawn.append(float(first @ second))
        products[name] = float(np.mean(drawn))
    expected = products["12"] / math.sqrt(products["11"] * products["22"])
    found = contrast_angle(groups, ALL, FILTERED)
    assert found.reason is None
    assert found.cosine.value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("degrees", [10, 30])
def test_the_angle_of_two_directions_that_share_prompts_is_covered(degrees: float) -> None:
    rng = np.random.default_rng(1)
    found = [contrast_angle(behaving(rng, degrees), ALL, FILTERED).degrees for _ in range(200)]
    assert 0.91 <= np.mean([each.lo <= degrees <= each.hi for each in found]) <= 0.99


def test_a_filter_that_changes_nothing_shows_an_angle_only_without_the_correction() -> None:
    rng, plain, cosines = np.random.default_rng(3), [], []
    for _ in range(100):
        groups = behaving(rng, 0)
        one, two = (
            sum(w * part.mean(0) for w, part in zip(each, groups, strict=True)) for each in (ALL, FILTERED)
        )
        plain.append(math.degrees(math.acos(one @ two / np.linalg.norm(one) / np.linalg.norm(two))))
        cosines.append(contrast_angle(groups, ALL, FILTERED).cosine.value)
    assert np.mean(plain) > 8
    assert np.mean(cosines) == pytest.approx(1, abs=0.005)


def test_the_same_contrast_twice_has_no_angle() -> None:
    found = contrast_angle(behaving(np.random.default_rng(2), 30), ALL, ALL)
    assert found.cosine.value == pytest.approx(1, abs=1e-9)
