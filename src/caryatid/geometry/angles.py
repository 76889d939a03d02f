"""Angles between directions and subspaces, and how much of an angle is more than estimation noise (protocol §5)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import InputError, NumericalError
from ..stats import Interval
from .directions import numerical_rank
from .jackknife import jackknife_interval
from .rank import SiteActivations


def _row_space(rows: Float[Tensor, "k d"]) -> Float[Tensor, "rank d"]:
    """Orthonormal rows that span `rows`; zero and dependent rows add nothing."""
    if not torch.isfinite(rows).all():
        raise NumericalError("a direction is not finite", where="principal_angles")
    _, values, vectors = torch.linalg.svd(rows.double(), full_matrices=False)
    rank = numerical_rank(values, rows.shape)
    if rank == 0:
        raise InputError("a subspace without a direction has no angle to another", where="principal_angles")
    return vectors[:rank]


def principal_angles(a: Float[Tensor, "k d"], b: Float[Tensor, "m _"]) -> Float[Tensor, "angles"]:
    """Principal angles in radians, ascending, between the spans of the rows of `a` and of `b`.

    As many as the smaller span has dimensions. Cosines give the large angles and sines the small ones (Björck & Golub
    1973; Knyazev & Argentati 2002), so that both ends are exact to rounding.

    Raises:
        InputError: widths differ, or a span has no dimension. NumericalError: a direction is not finite.
    """
    if a.shape[-1] != b.shape[-1]:
        raise InputError(f"widths {a.shape[-1]} and {b.shape[-1]} differ", where="principal_angles")
    qa, qb = _row_space(a), _row_space(b)
    if len(qa) < len(qb):
        qa, qb = qb, qa
    overlap = qb @ qa.T  # [small, large]
    cosines = torch.linalg.svdvals(overlap).clamp(max=1.0)  # descending: angles ascending
    sines = torch.linalg.svdvals(qb - overlap @ qa).flip(0).clamp(max=1.0)  # ascending: angles ascending
    count = len(qb)
    sines = torch.cat([sines.new_zeros(count - len(sines)), sines]) if len(sines) < count else sines[:count]
    return torch.where(cosines**2 >= 0.5, torch.arcsin(sines), torch.arccos(cosines))


class AngleSummary(NamedTuple):
    """Principal angles of two subspaces and what is commonly made of them. Angles in degrees.

    `grassmann` = √Σθ² and `chordal` = √Σsin²θ, with θ in radians, over the angles that there are (the smaller rank).
    """

    mean: float
    max: float
    grassmann: float
    chordal: float
    angles: tuple[float, ...]


def angle_summary(a: Float[Tensor, "k d"], b: Float[Tensor, "m d"]) -> AngleSummary:
    """Mean, largest, Grassmann and chordal distance of `principal_angles`, with the same errors."""
    angles = principal_angles(a, b)
    return AngleSummary(
        mean=math.degrees(float(angles.mean())),
        max=math.degrees(float(angles.max())),
        grassmann=float(angles.square().sum().sqrt()),
        chordal=float(angles.sin().square().sum().sqrt()),
        angles=tuple(math.degrees(angle) for angle in angles.tolist()),
    )


def grassmann(a: Float[Tensor, "k d"], b: Float[Tensor, "m d"]) -> float:
    """√Σθ² of the principal angles in radians."""
    return angle_summary(a, b).grassmann


def chordal(a: Float[Tensor, "k d"], b: Float[Tensor, "m d"]) -> float:
    """√Σsin²θ of the principal angles."""
    return angle_summary(a, b).chordal


def angle_between(a: Float[Tensor, "*batch d"], b: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
    """The principal angle of two lines in radians, 0 … π/2; NaN where a vector is zero.

    2·atan2(‖â − b̂‖, ‖â + b̂‖) of the unit vectors (Kahan), which is exact for small angles.
    """
    a, b = a.double(), b.double()
    a, b = a / a.norm(dim=-1, keepdim=True), b / b.norm(dim=-1, keepdim=True)
    apart, together = (a - b).norm(dim=-1), (a + b).norm(dim=-1)
    return 2 * torch.atan2(torch.minimum(apart, together), torch.maximum(apart, together))


@dataclass(frozen=True)
class ExcessAngle:
    """How far the direction turned from anchor a to anchor b, beyond what noise of estimation turns it. In degrees.

    The intervals contain the noise of which prompts were sampled, the same prompts at both anchors. They contain no
    noise of decoding, training, or selection of the site.

    Attributes:
        excess: `across` − `within`. Below the true angle when `within` is large, because noise adds to angles
            less than linearly: a lower bound in that sense.
        across: mean angle between one half's direction at a and the other half's at b.
        within: mean angle between the two halves' directions at one anchor, over both anchors.
        corrected: the angle between the noise-free directions, arccos of the mean over splits of
            ⟨a₁, b₂⟩/√(⟨a₁, a₂⟩⟨b₁, b₂⟩) (Spearman's correction for attenuation); NaN when halves do not agree at all.
        splits: how many random splits were averaged.
    """

    excess: Interval
    across: float
    within: float
    corrected: Interval
    splits: int


def _halves(
    strata: Sequence[object], splits: int, rng: np.random.Generator
) -> Bool[np.ndarray, "splits prompts"]:
    """Which prompts are in the first half; the strata are halved, and odd ones make up for each other."""
    first = np.zeros((splits, len(strata)), dtype=bool)
    members: dict[object, list[int]] = {}
    for item, label in enumerate(strata):
        members.setdefault(label, []).append(item)
    extra = rng.random(splits) < 0.5  # which half the next odd prompt goes to
    for items in members.values():
        order = np.argsort(rng.random((splits, len(items))), axis=1)
        half = len(items) // 2 + (extra if len(items) % 2 else False)
        first[:, items] = order < np.reshape(half, (-1, 1))
        if len(items) % 2:
            extra = ~extra
    return first


class _HalfMeans:
    """Means of both halves of one kind of prompt, for every split, with or without one prompt."""

    def __init__(self, rows: Float[Tensor, "prompts d"], first: Bool[np.ndarray, "splits prompts"]) -> None:
        self.rows = rows
        self.inside = [torch.from_numpy(half) for half in (first, ~first)]
        self.counts = [half.sum(dim=1, keepdim=True).to(rows.dtype) for half in self.inside]
        self.means = [
            half.to(rows.dtype) @ rows / count for half, count in zip(self.inside, self.counts, strict=True)
        ]

    def without(self, prompt: int) -> list[Float[Tensor, "splits d"]]:
        return [
            torch.where(half[:, prompt, None], (mean * count - self.rows[prompt]) / (count - 1), mean)
            for half, count, mean in zip(self.inside, self.counts, self.means, strict=True)
        ]


class _SplitAngles(NamedTuple):
    across: float
    within: float
    corrected: float

    @property
    def excess(self) -> float:
        return self.across - self.within


def _split_angles(
    up_a: list[Tensor], down_a: list[Tensor], up_b: list[Tensor], down_b: list[Tensor]
) -> _SplitAngles:
    a1, a2 = (up - down for up, down in zip(up_a, down_a, strict=True))  # [splits, d]
    b1, b2 = (up - down for up, down in zip(up_b, down_b, strict=True))
    across = (angle_between(a1, b2) + angle_between(a2, b1)).mean() / 2
    within = (angle_between(a1, a2) + angle_between(b1, b2)).mean() / 2
    shared = float(((a1 * b2).sum(dim=1) + (a2 * b1).sum(dim=1)).mean() / 2)
    power = float((a1 * a2).sum(dim=1).mean()), float((b1 * b2).sum(dim=1).mean())
    agreement = math.sqrt(power[0] * power[1]) if min(power) > 0 else math.nan
    corrected = math.acos(min(1.0, abs(shared) / agreement)) if agreement > 0 else math.nan
    return _SplitAngles(*(math.degrees(float(angle)) for angle in (across, within, corrected)))


def coordinates(*tensors: Float[Tensor, "_ d"]) -> list[Float[Tensor, "_ coordinates"]]:
    """The rows in an orthonormal basis of their common span: same angles, fewer columns."""
    stacked = torch.cat([tensor.double().cpu() for tensor in tensors])
    if stacked.shape[1] > stacked.shape[0]:
        stacked = torch.linalg.qr(stacked.T, mode="r").R.T
    return list(stacked.split([len(tensor) for tensor in tensors]))


def _check(
    a: SiteActivations, b: SiteActivations, categories: Sequence[str] | None, splits: int
) -> list[object]:
    """The labels of the harmful prompts, where both anchors can be compared. Errors as `excess_angle`."""
    shapes = {(len(site.harmful), len(site.harmless)) for site in (a, b)}
    labels: list[object] = list(categories) if categories is not None else [None] * len(a.harmful)
    if len(shapes) != 1 or len(labels) != len(a.harmful):
        raise InputError(
            "the two anchors were not measured on the same labelled prompts", where="excess_angle"
        )
    if min(len(a.harmful), len(a.harmless)) < 4 or splits < 1:
        raise InputError("at least 4 prompts of each kind and 1 split are needed", where="excess_angle")
    if not all(bool(torch.isfinite(tensor).all()) for tensor in (*a, *b)):
        raise NumericalError("activations are not finite", where="excess_angle")
    return labels


def excess_angle_value(
    a: SiteActivations,
    b: SiteActivations,
    categories: Sequence[str] | None,
    *,
    splits: int = 200,
    rng: np.random.Generator,
) -> float:
    """`excess_angle` in degrees without its interval, which takes most of the time. Same arguments and errors."""
    labels = _check(a, b, categories, splits)
    halves = _halves(labels, splits, rng), _halves([None] * len(a.harmless), splits, rng)
    up_a, down_a, up_b, down_b = (
        _HalfMeans(each.double().cpu(), half).means for each, half in zip((*a, *b), halves * 2, strict=True)
    )
    return _split_angles(up_a, down_a, up_b, down_b).excess


def excess_angle(
    a: SiteActivations,
    b: SiteActivations,
    categories: Sequence[str] | None,
    *,
    splits: int = 200,
    rng: np.random.Generator,
) -> ExcessAngle:
    """Excess angle (protocol §5): angle(half 1 at a, half 2 at b) − mean within-anchor split-half angle.

    The prompts, the same at both anchors, are split at random into halves, harmful ones within their categories. Each
    split gives two angles across the anchors (either half at a) and one within each anchor. The interval is a
    jackknife over prompts, with the splits kept.

    Args:
        categories: of the harmful prompts, or None to split them as one group.
        splits: at least 200 for a verdict.

    Raises:
        InputError: other prompts at a than at b, or too few to split. NumericalError: not finite.
    """
    labels = _check(a, b, categories, splits)
    unlabelled: list[object] = [None] * len(a.harmless)
    first, other = _halves(labels, splits, rng), _halves(unlabelled, splits, rng)
    rows = coordinates(a.harmful, a.harmless, b.harmful, b.harmless)
    up_a, down_a, up_b, down_b = (
        _HalfMeans(each, half) for each, half in zip(rows, (first, other) * 2, strict=True)
    )
    whole = _split_angles(up_a.means, down_a.means, up_b.means, down_b.means)
    no_harmful = [
        _split_angles(up_a.without(i), down_a.means, up_b.without(i), down_b.means)
        for i in range(len(labels))
    ]
    no_harmless = [
        _split_angles(up_a.means, down_a.without(i), up_b.means, down_b.without(i))
        for i in range(len(unlabelled))
    ]

    def interval(name: str) -> Interval:
        left_out = [
            (np.array([getattr(each, name) for each in group]), strata)
            for group, strata in ((no_harmful, labels), (no_harmless, unlabelled))
        ]
        return jackknife_interval(getattr(whole, name), left_out, pooled=True)

    return ExcessAngle(interval("excess"), whole.across, whole.within, interval("corrected"), splits)
