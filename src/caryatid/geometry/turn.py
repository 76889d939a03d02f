"""How far the direction of refusal turned between two anchors, corrected for noise (protocol §5).

cos = U(a, b)/√(U(a, a)·U(b, b)), where U is the mean of ⟨x₁, y₂⟩ over all splits of the prompts into disjoint halves:
unlike the plain inner product it holds no noise of the means, so that the angle does not depend on how many prompts
there are.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy import stats as scipy_stats

from ..errors import InputError
from ..stats import UNDEFINED, Interval
from .forms import AA, AB, BB, Estimates, Form, Groups
from .rank import SiteActivations

_ROUNDING = 1e-6  # of a cosine of float32 activations
_SMALLEST = 3  # prompts in a group whose noise can be estimated
_Z = float(scipy_stats.norm.ppf(0.975))  # of two-sided 95 %


@dataclass(frozen=True)
class CorrectedAngle:
    """The angle between the noise-free mean directions of two anchors.

    The interval contains the noise of which prompts were sampled, within their categories, and no other.

    Attributes:
        cosine: unclipped, so that it may lie outside [−1, 1], with its two-sided interval: its bounds are one-sided
            bounds of 97.5 %. All NaN where undefined.
        degrees: for show: arccos of the clipped cosine and of its clipped bounds, 0 … 180.
        reason: why it is undefined, or None.
    """

    cosine: Interval
    degrees: Interval
    reason: str | None = None


def small_groups_joined(labels: Sequence[object]) -> Int[np.ndarray, "items"]:
    """Numbers of the labels' groups, 0 … G − 1, those of fewer than 3 items together as one.

    Where these are still too few together, the smallest other group joins them.
    """
    members: dict[object, list[int]] = {}
    for item, label in enumerate(labels):
        members.setdefault(label, []).append(item)
    groups = sorted(members.values(), key=len)
    small = [items for items in groups if len(items) < _SMALLEST]
    large = groups[len(small) :]
    joined = [item for items in small for item in items]
    while joined and len(joined) < _SMALLEST and large:
        joined += large.pop(0)
    found = np.empty(len(labels), dtype=np.int64)
    for number, items in enumerate([*large, *([joined] if joined else [])]):
        found[items] = number
    return found


def ratio_interval(
    estimates: Estimates,
    numerator: Float[np.ndarray, "forms"],
    denominator: Float[np.ndarray, "forms"],
    point: tuple[float, float],
) -> Interval:
    """Fieller's interval (1954) of a ratio whose parts change by these linear combinations of the forms.

    All θ with |N − θ·D| ≤ z·sd(N − θ·D); NaN bounds where D itself is not positive beyond doubt.
    """
    top, bottom = point
    v_bottom = estimates.variance(denominator)
    if not bottom > _Z * math.sqrt(v_bottom):
        return UNDEFINED
    value = top / bottom
    # Around the estimate: N − θD = e − tD with e = N − value·D (0 there) and t = θ − value; a small variance of e does
    # not drown in the rounding of two large ones.
    error = numerator - value * denominator
    v_error = estimates.variance(error)
    shared = estimates.covariance(error, denominator)
    limit = math.sqrt(v_error * v_bottom)
    shared = min(max(shared, -limit), limit)
    a, b, c = bottom**2 - _Z**2 * v_bottom, _Z**2 * shared, -(_Z**2) * v_error
    root = math.sqrt(max(0.0, b * b - a * c))
    return Interval(value, value + (-b - root) / a, value + (-b + root) / a)


def _groups(
    a: SiteActivations, b: SiteActivations, categories: Sequence[object] | None, paired: bool
) -> tuple[Groups, Float[np.ndarray, "groups"]]:
    """The prompts of both anchors in groups, and the weights whose sum of group means is the direction."""
    sides = [(site.harmful.double().cpu().numpy(), site.harmless.double().cpu().numpy()) for site in (a, b)]
    labels = [list(categories) if categories is not None else [None] * len(up) for up, _ in sides]
    if paired:
        sizes = {(len(up), len(down)) for up, down in sides}
        if len(sizes) != 1 or len(labels[0]) != len(a.harmful):
            raise InputError(
                "the two anchors were not measured on the same labelled prompts", where="corrected_angle"
            )
    elif categories is not None:
        raise InputError("other prompts at each anchor have no common categories", where="corrected_angle")
    if min(len(part) for side in sides for part in side) < 4:
        raise InputError("at least 4 prompts of each kind are needed", where="corrected_angle")
    if paired:
        index = small_groups_joined(labels[0])
        kinds = int(index.max()) + 1
        numbers = np.concatenate([index, np.full(len(a.harmless), kinds)])
        weights = np.concatenate([np.bincount(index) / len(index), [-1.0]])
        return Groups(np.concatenate(sides[0]), np.concatenate(sides[1]), numbers), weights
    numbers = np.repeat(np.arange(4), [len(part) for side in sides for part in side])
    empty = [np.zeros_like(np.concatenate(side)) for side in sides]
    rows = (np.concatenate([*sides[0], empty[1]]), np.concatenate([empty[0], *sides[1]]))
    return Groups(*rows, numbers), np.array([1.0, -1.0, 1.0, -1.0])


def corrected_angle(
    a: SiteActivations,
    b: SiteActivations,
    categories: Sequence[object] | None = None,
    *,
    paired: bool = True,
) -> CorrectedAngle:
    """The noise-corrected, signed angle of protocol §5 with an interval on the unclipped cosine.

    The averages over all splits are taken in closed form: ⟨r_a, r_b⟩ minus each group's sample (cross-)covariance
    over its size, categories being halved within themselves. The interval is Fieller's, from jackknife covariances
    without the part that a jackknife counts twice; it covers 10° … 120° in 94–96 % (docs/verdict.md).

    Args:
        categories: of the harmful prompts; fixed, prompts are drawn within them (of fewer than three: together).
        paired: the same prompts at both anchors, in the same order. Otherwise other prompts at b than at a.

    Raises:
        InputError: not the same prompts, or fewer than 4 of a kind. NumericalError: not finite.
    """
    groups, weights = _groups(a, b, categories, paired)
    matrix = np.outer(weights, weights)
    found = groups.estimate([Form(AA, matrix), Form(AB, matrix), Form(BB, matrix)])
    return _angle(found, ("first anchor's direction", "second anchor's direction"))


def contrast_angle(
    groups: Sequence[Float[np.ndarray, "_ d"]],
    one: Float[np.ndarray, "groups"],
    other: Float[np.ndarray, "groups"],
) -> CorrectedAngle:
    """The noise-corrected angle between two directions of one anchor that share prompts.

    Both are weighted sums of the same groups' means, as harmful − harmless is of refused and answered prompts of each
    kind. The noise that they share would make them look more alike than they are; U leaves it out.

    Args:
        groups: activations of disjoint groups of prompts, at least 2 in each. one, other: weights of their means.

    Raises:
        InputError: a group of fewer than 2. NumericalError: not finite.
    """
    rows = np.concatenate(groups)
    numbers = np.repeat(np.arange(len(groups)), [len(part) for part in groups])
    mixed = np.outer(one, other)
    forms = [np.outer(one, one), (mixed + mixed.T) / 2, np.outer(other, other)]
    found = Groups(rows, rows, numbers).estimate([Form(AA, each) for each in forms])
    return _angle(found, ("first direction", "second direction"))


def _angle(found: Estimates, names: tuple[str, str]) -> CorrectedAngle:
    """From the estimates of U(a, a), U(a, b) and U(b, b)."""
    for name, number in zip(names, (0, 2), strict=True):
        if not found.values[number] > _Z * math.sqrt(found.variance(np.eye(3)[number])):
            return CorrectedAngle(UNDEFINED, UNDEFINED, f"the {name} is not told from noise")
    cosine = _cosine_interval(found)
    if math.isnan(cosine.value):
        return CorrectedAngle(cosine, cosine, "the directions are not told from noise")
    cosine = Interval(cosine.value, cosine.lo - _ROUNDING, cosine.hi + _ROUNDING)
    value, hi, lo = (math.degrees(math.acos(min(1.0, max(-1.0, each)))) for each in cosine)
    return CorrectedAngle(cosine, Interval(value, lo, hi))


def _cosine_interval(found: Estimates) -> Interval:
    """All θ with |N − θ·D| ≤ z·sd(N − θ·D), N = U(a, b) and D = √(U(a, a)·U(b, b)), as if θ were the true cosine.

    The variance of N − θ·D has a part of order ‖b − θa‖² = (1 − θ²)·D, linear in the noise, and one that is quadratic
    in it. Taken at the estimate instead of at θ, the first would be small just where the estimate is too large, and
    the bound then wrong in one case of seven.
    """
    u_aa, u_ab, u_bb = found.values.tolist()
    length = math.sqrt(u_aa * u_bb)
    value = u_ab / length
    below = np.array([length / u_aa, 0.0, length / u_bb]) / 2  # the change of D
    error = np.array([0.0, 1.0, 0.0]) - value * below
    own_a, shared, own_b = (found.plain / np.array([u_aa, length, u_bb])).tolist()
    apart = (1 + value**2) * (own_a + own_b) / 2 - 2 * value * shared  # ‖b − θa‖²/D with its noise
    turn = min(max(1 - value**2, 0.0), apart)  # and without
    whole, second = (float(error @ part @ error) for part in (found.jackknife, found.second))
    linear = max(found.variance(error) - second, 0.0)
    # Variance per ‖b − θa‖²: along the turn as far as it stands out from the noise, otherwise along both together.
    per_turn = (linear + (1 - turn / apart) * whole) / apart if apart > 0 else 0.0
    v_below, both = found.variance(below), found.covariance(error, below)
    # With t = θ − value: (D t)² = z²·(second + per_turn·(1 − θ²) − 2·both·t + v_below·t²)
    a = length**2 - _Z**2 * (v_below - per_turn)
    b = _Z**2 * (per_turn * value + both)
    c = -(_Z**2) * (second + per_turn * (1 - value**2))
    if not a > 0 or not length**2 > _Z**2 * v_below:
        return UNDEFINED
    root = math.sqrt(max(0.0, b * b - a * c))
    return Interval(value, value + (-b - root) / a, value + (-b + root) / a)
