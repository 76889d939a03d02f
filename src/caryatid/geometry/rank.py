"""How many dimensions a set of directions takes: effective rank, participation ratio, stable rank (protocol §5)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError, NumericalError
from ..stats import UNDEFINED, Interval
from .directions import unit
from .jackknife import LeaveOneOut, jackknife_interval

_ROUNDING = 1e-6  # of rank figures of float32 activations: a smaller difference between anchors is none


class RankFigures(NamedTuple):
    """Three measures of a matrix's dimension, 1 for a single direction; NaN for a matrix of zeros."""

    effective_rank: float
    participation_ratio: float
    stable_rank: float


def _singular_values(
    matrix: Float[Tensor, "*batch rows d"], unit_norm: bool
) -> Float[Tensor, "*batch values"]:
    if matrix.ndim < 2 or matrix.shape[-1] == 0 or matrix.shape[-2] == 0:
        raise InputError(f"a tensor of shape {tuple(matrix.shape)} is no matrix", where="rank")
    if not torch.isfinite(matrix).all():
        raise NumericalError("the matrix is not finite", where="rank")
    wide = matrix.double()
    return torch.linalg.svdvals(unit(wide) if unit_norm else wide)


def _effective(values: Float[Tensor, "*batch values"]) -> Float[Tensor, "*batch"]:
    shares = values / values.sum(dim=-1, keepdim=True)  # 0/0 = NaN for zeros
    return torch.special.entr(shares).sum(dim=-1).exp()


def _figures(values: Float[Tensor, "*batch values"]) -> Float[Tensor, "*batch 3"]:
    """The three measures, in the order of `RankFigures`, from singular values; NaN for zeros."""
    # σ²/σ_max²: scale-free, so that fourth powers neither overflow nor vanish
    power = (values / values.amax(dim=-1, keepdim=True)).square()
    participation = power.sum(dim=-1) ** 2 / (power**2).sum(dim=-1)
    return torch.stack([_effective(values), participation, power.sum(dim=-1)], dim=-1)


def effective_rank(matrix: Float[Tensor, "rows d"], unit_norm: bool = False) -> float:
    """exp(H(σ/Σσ)) of the singular values σ (Roy & Vetterli 2007), between 1 and the rank.

    Args:
        unit_norm: scale every row to length 1 first (zero rows stay zero and do not count).

    Raises:
        InputError: not a matrix. NumericalError: not finite.
    """
    return rank_figures(matrix, unit_norm).effective_rank


def participation_ratio(matrix: Float[Tensor, "rows d"], unit_norm: bool = False) -> float:
    """(Σσ²)²/Σσ⁴ of the singular values σ. Arguments and errors as `effective_rank`."""
    return rank_figures(matrix, unit_norm).participation_ratio


def stable_rank(matrix: Float[Tensor, "rows d"], unit_norm: bool = False) -> float:
    """Σσ²/σ_max² of the singular values σ. Arguments and errors as `effective_rank`."""
    return rank_figures(matrix, unit_norm).stable_rank


def rank_figures(matrix: Float[Tensor, "rows d"], unit_norm: bool = False) -> RankFigures:
    """All three measures. Arguments and errors as `effective_rank`."""
    return RankFigures(*_figures(_singular_values(matrix, unit_norm)).tolist())


class SiteActivations(NamedTuple):
    """Per-prompt activations of one anchor at one fixed site (p, l)."""

    harmful: Float[Tensor, "harmful d"]
    harmless: Float[Tensor, "harmless d"]


class _RankSample(NamedTuple):
    """The three figures, and the same with each prompt left out."""

    point: Float[np.ndarray, "3"]
    without_harmful: Float[np.ndarray, "harmful 3"]
    without_harmless: Float[np.ndarray, "harmless 3"]

    def intervals(self, labels: Sequence[object]) -> list[Interval]:
        """Of each figure; `labels` are the strata of the harmful prompts."""
        harmless: list[object] = [None] * len(self.without_harmless)
        found = []
        for point, up, down in zip(self.point, self.without_harmful.T, self.without_harmless.T, strict=True):
            parts: list[LeaveOneOut] = [(up, labels), (down, harmless)]
            found.append(jackknife_interval(float(point), parts))
        return found


def _leave_one_out(site: SiteActivations, labels: Sequence[str], unit_norm: bool) -> _RankSample:
    harmful, harmless = site.harmful.double().cpu(), site.harmless.double().cpu()
    names = sorted(set(labels))
    label = torch.tensor([names.index(each) for each in labels])
    member = torch.nn.functional.one_hot(label, len(names)).to(harmful.dtype)  # [harmful, categories]
    counts = member.sum(dim=0)
    means = (member.T @ harmful) / counts[:, None]
    reference = harmless.mean(dim=0)

    def figures(rows: Tensor) -> list[float]:
        found: list[float] = _figures(_singular_values(rows, unit_norm)).tolist()
        return found

    without_harmful = []
    for row, category in zip(harmful, label.tolist(), strict=True):
        changed = means.clone()
        changed[category] = (means[category] * counts[category] - row) / (counts[category] - 1)
        without_harmful.append(figures(changed - reference))
    others = (reference * len(harmless) - harmless) / (len(harmless) - 1)  # [harmless, d]
    without_harmless = [figures(means - other) for other in others]
    return _RankSample(
        np.array(figures(means - reference)), np.array(without_harmful), np.array(without_harmless)
    )


class RankComparison(NamedTuple):
    """One figure at two anchors and the paired difference b − a.

    Intervals contain the noise of which prompts were sampled, the same prompts at both anchors; no other.

    Attributes:
        left_out: categories with a single prompt, which have no sampling noise that could be estimated.
    """

    a: Interval
    b: Interval
    difference: Interval
    left_out: tuple[str, ...]


def compare_ranks(
    a: SiteActivations,
    b: SiteActivations,
    categories: Sequence[str],
    *,
    unit_norm: bool = True,
) -> dict[str, RankComparison]:
    """Each of `RankFigures` of the per-category directions at one site of two anchors, with jackknife intervals.

    With fewer than two prompts in every category there is nothing to compare: all values are NaN.

    Args:
        categories: of the harmful prompts, which are the same at both anchors.

    Raises:
        InputError: the anchors were not measured on the same prompts. NumericalError: not finite.
    """
    shapes = {(len(site.harmful), len(site.harmless)) for site in (a, b)}
    if len(shapes) != 1 or len(categories) != len(a.harmful) or len(a.harmless) < 2:
        raise InputError(
            "the two anchors were not measured on the same labelled prompts", where="compare_ranks"
        )
    alone = tuple(sorted(name for name in set(categories) if list(categories).count(name) < 2))
    kept = [i for i, name in enumerate(categories) if name not in alone]
    if not kept:
        return {name: RankComparison(UNDEFINED, UNDEFINED, UNDEFINED, alone) for name in RankFigures._fields}
    labels = [categories[i] for i in kept]
    one, two = (
        _leave_one_out(SiteActivations(site.harmful[kept], site.harmless), labels, unit_norm)
        for site in (a, b)
    )
    difference = _RankSample(*(later - earlier for earlier, later in zip(one, two, strict=True)))
    found = [sample.intervals(labels) for sample in (one, two, difference)]
    return {
        name: RankComparison(
            first, second, Interval(paired.value, paired.lo - _ROUNDING, paired.hi + _ROUNDING), alone
        )
        for name, first, second, paired in zip(RankFigures._fields, *found, strict=True)
    }


def bank_ranks(
    harmful: Float[Tensor, "harmful candidates d"],
    harmless: Float[Tensor, "harmless candidates d"],
    *,
    unit_norm: bool = True,
) -> dict[str, Interval]:
    """Each of `RankFigures` of the matrix of candidate directions, one row per candidate (protocol §5: the picture).

    Jackknife intervals over the prompts; which candidates these are is held fixed. All NaN without any candidate.

    Raises:
        InputError: fewer than 2 prompts of a kind. NumericalError: not finite.
    """
    if min(len(harmful), len(harmless)) < 2:
        raise InputError("at least 2 prompts of each kind are needed", where="bank_ranks")
    if harmful.shape[1] == 0:
        return dict.fromkeys(RankFigures._fields, UNDEFINED)
    up, down = harmful.double().cpu(), harmless.double().cpu()
    means = up.mean(dim=0), down.mean(dim=0)

    def figures(rows: Float[Tensor, "candidates d"]) -> list[float]:
        # Values from the Gram matrix, which is small; their rounding (1e-8 of the largest) is far below the noise.
        scaled = unit(rows) if unit_norm else rows / rows.norm()
        values = torch.linalg.eigvalsh(scaled @ scaled.T).clamp(min=0).sqrt()
        found: list[float] = _figures(values).tolist()
        return found

    sample = _RankSample(
        np.array(rank_figures(means[0] - means[1], unit_norm)),
        np.array([figures(_without(row, means[0], len(up)) - means[1]) for row in up]),
        np.array([figures(means[0] - _without(row, means[1], len(down))) for row in down]),
    )
    unlabelled: list[object] = [None] * len(up)
    return dict(zip(RankFigures._fields, sample.intervals(unlabelled), strict=True))


def _without(row: Tensor, mean: Tensor, count: int) -> Tensor:
    """The mean of `count` rows with one of them left out."""
    return mean + (mean - row) / (count - 1)
