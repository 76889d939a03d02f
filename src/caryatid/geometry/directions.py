"""Directions: differences of mean activations between harmful and harmless prompts (protocol §5, arXiv 2406.11717).

Activations have one row per prompt and any number of site dimensions (layer, position) before the width d.
Means are taken in float64.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import InputError, NumericalError

# Directions this small beside the largest candidate are rounding: the token read there is the same for all prompts.
_ZERO = 1e-8


def _mean(activations: Float[Tensor, "prompts *site d"], side: str) -> Float[Tensor, "*site d"]:
    if len(activations) == 0:
        raise InputError(f"there are no {side} activations to average", where="directions")
    mean = activations.double().mean(dim=0)
    if not torch.isfinite(mean).all():
        raise NumericalError(
            f"{side} activations are not finite",
            where="directions",
            remedy="Check the anchor's weights, or measure it in float32.",
        )
    return mean


def mean_difference(
    harmful: Float[Tensor, "harmful *site d"], harmless: Float[Tensor, "harmless *site d"]
) -> Float[Tensor, "*site d"]:
    """r = mean over harmful − mean over harmless prompts, float64, at every site.

    Raises:
        InputError: one side has no prompts. NumericalError: an activation is not finite.
    """
    return _mean(harmful, "harmful") - _mean(harmless, "harmless")


def candidate_directions(
    harmful: Float[Tensor, "harmful layers positions d"],
    harmless: Float[Tensor, "harmless layers positions d"],
) -> Float[Tensor, "positions layers d"]:
    """Candidate directions r[p, l] from captured block inputs, float64."""
    return mean_difference(harmful, harmless).transpose(0, 1)


@dataclass(frozen=True)
class CategoryDirections:
    """One difference in means per harm category, each against all harmless prompts.

    Attributes:
        names: the categories, sorted. counts: harmful prompts in each.
        rows: float64, one direction per category at every site.
    """

    names: tuple[str, ...]
    counts: tuple[int, ...]
    rows: Float[Tensor, "categories *site d"]


def category_directions(
    harmful: Float[Tensor, "harmful *site d"],
    harmless: Float[Tensor, "harmless *site d"],
    categories: Sequence[str],
) -> CategoryDirections:
    """Per-category directions r_c = mean over harmful prompts of category c − mean over harmless prompts.

    Raises:
        InputError: labels do not fit, or a side is empty. NumericalError: an activation is not finite.
    """
    if len(categories) != len(harmful):
        raise InputError(
            f"{len(categories)} category labels for {len(harmful)} prompts", where="category_directions"
        )
    reference = _mean(harmless, "harmless")
    names = tuple(sorted(set(categories)))
    members = [[i for i, label in enumerate(categories) if label == name] for name in names]
    if not names:
        raise InputError("there are no harmful activations to average", where="directions")
    rows = torch.stack([_mean(harmful[index], "harmful") - reference for index in members])
    return CategoryDirections(names, tuple(map(len, members)), rows)


def refused_minus_answered(
    activations: Float[Tensor, "prompts *site d"], refused: Bool[Tensor, "prompts"]
) -> Float[Tensor, "*site d"]:
    """mean over refused − mean over answered prompts, for a model that refuses without discriminating (protocol §5).

    Raises:
        InputError: all prompts, or none, were refused.
    """
    if bool(refused.all()) or not bool(refused.any()):
        which = "every prompt was" if bool(refused.any()) else "no prompt was"
        raise InputError(
            f"{which} refused, so that there is nothing to compare", where="refused_minus_answered"
        )
    return _mean(activations[refused], "refused") - _mean(activations[~refused], "answered")


NULLSPACE_SHARE = 0.95
"""Of the variance of harmless activations that `in_nullspace` takes out."""


def orthogonalised(
    direction: Float[Tensor, "d"], harmless: Float[Tensor, "harmless d"]
) -> Float[Tensor, "d"]:
    """r − ⟨r, μ̂⟩ μ̂, float64: without its part along the mean μ of harmless activations (projected abliteration).

    Raises:
        InputError: no activations. NumericalError: one is not finite.
    """
    mean = unit(_mean(harmless, "harmless"))
    return direction.double() - (direction.double() @ mean) * mean


def in_nullspace(direction: Float[Tensor, "d"], harmless: Float[Tensor, "harmless d"]) -> Float[Tensor, "d"]:
    """r without its part in the span of harmless activations, float64 (null-space projection, arXiv 2410.02355).

    The span is that of their mean and of the fewest principal axes that hold 95 % of their variance. (Published is the
    second moment of 100,000 activations without axes below 1e-2; of some tens, nearly every axis would be taken.)

    Raises:
        InputError: no activations. NumericalError: one is not finite.
    """
    mean = _mean(harmless, "harmless")
    _, values, axes = torch.linalg.svd(harmless.double() - mean, full_matrices=False)
    held = values.square().cumsum(0) / values.square().sum().clamp_min(torch.finfo(torch.float64).tiny)
    count = min(numerical_rank(values, harmless.shape), int((held < NULLSPACE_SHARE).sum()) + 1)
    _, sizes, span = torch.linalg.svd(torch.cat([unit(mean)[None], axes[:count]]), full_matrices=False)
    span = span[: numerical_rank(sizes, span.shape)]
    return direction.double() - (span @ direction.double()) @ span


def unit(directions: Float[Tensor, "*site d"]) -> Float[Tensor, "*site d"]:
    """r̂ = r/‖r‖; a zero direction stays zero."""
    norm = directions.norm(dim=-1, keepdim=True)
    return directions / torch.where(norm == 0, 1.0, norm)


def is_candidate(directions: Float[Tensor, "positions layers d"]) -> Bool[Tensor, "positions layers"]:
    """Which directions can be candidates: not zero (up to rounding).

    Raises:
        NumericalError: a direction is not finite.
    """
    if not torch.isfinite(directions).all():
        raise NumericalError("a direction is not finite", where="candidate directions")
    norms = directions.double().norm(dim=-1)
    return norms > _ZERO * norms.max()


@dataclass(frozen=True)
class Subspace:
    """A rank-k carrier: orthonormal rows, strongest first.

    Attributes:
        basis: as many rows as asked for, or as the directions have dimensions.
        singular_values: of the per-category directions along these rows.
        requested: the k asked for.
    """

    basis: Float[Tensor, "rank d"]
    singular_values: Float[Tensor, "rank"]
    requested: int

    @property
    def rank(self) -> int:
        """Rows of the basis; below `requested` when the directions span less."""
        return self.basis.shape[0]


def subspace(directions: Float[Tensor, "categories d"], k: int) -> Subspace:
    """Top-k right singular vectors of per-category directions, each signed so that the directions' mean is positive.

    Raises:
        InputError: k < 1, or every direction is zero. NumericalError: a direction is not finite.
    """
    if k < 1:
        raise InputError(f"rank {k} is below 1", where="subspace")
    if not torch.isfinite(directions).all():
        raise NumericalError("a direction is not finite", where="subspace")
    rows = directions.double()
    _, values, vectors = torch.linalg.svd(rows, full_matrices=False)  # vectors: [min(categories, d), d]
    keep = min(k, numerical_rank(values, rows.shape))
    if keep == 0:
        raise InputError("every direction is zero", where="subspace")
    basis = vectors[:keep]
    signs = torch.where((rows @ basis.T).sum(dim=0) < 0, -1.0, 1.0).to(basis.dtype)
    return Subspace(basis * signs[:, None], values[:keep], k)


def numerical_rank(singular_values: Float[Tensor, "values"], shape: Sequence[int]) -> int:
    """How many singular values of a float64 matrix of `shape` are not rounding (numpy's `matrix_rank` rule)."""
    if singular_values.numel() == 0:
        return 0
    tolerance = singular_values.max() * max(shape) * torch.finfo(torch.float64).eps
    return int((singular_values > tolerance).sum())
