"""Residual activations of prompts: per prompt, or summed per category in one streaming pass (protocol §5).

Read at block inputs, at the last `n_positions` tokens of each prompt (its post-instruction tokens); the tokens before
them, a BOS token included, never enter.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError, NumericalError
from ..geometry.rank import SiteActivations
from ..models.forward import block_inputs
from ..models.layout import num_layers
from ..models.load import LoadedModel
from ..progress import NO_PROGRESS, Progress


def prompt_activations(
    loaded: LoadedModel,
    seqs: Sequence[Sequence[int]],
    *,
    n_positions: int,
    batch_size: int,
    layers: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> Float[Tensor, "prompts layers positions d"]:
    """Per-prompt activations of token rows at every block input (or at `layers`), float32 on the CPU.

    Raises:
        InputError: a prompt shorter than `n_positions`, or an unknown layer.
    """
    chosen = range(num_layers(loaded.model)) if layers is None else layers
    report = progress or NO_PROGRESS
    if not seqs:
        raise InputError("there are no prompts to read activations of", where="prompt_activations")
    parts = []
    for start in range(0, len(seqs), batch_size):
        rows = seqs[start : start + batch_size]
        parts.append(
            block_inputs(loaded, rows, layers=chosen, n_positions=n_positions, batch_size=batch_size)
        )
        report.advance(len(rows))
    return torch.cat(parts)


@dataclass(frozen=True)
class ActivationSums:
    """Sums of activations per category, float64, from which difference-in-means directions follow.

    Attributes:
        names: categories, sorted. counts: prompts in each. sums: over the prompts of each.
    """

    names: tuple[str, ...]
    counts: tuple[int, ...]
    sums: Float[Tensor, "categories layers positions d"]

    @property
    def mean(self) -> Float[Tensor, "layers positions d"]:
        """Mean over all prompts."""
        return self.sums.sum(dim=0) / sum(self.counts)

    @property
    def category_means(self) -> Float[Tensor, "categories layers positions d"]:
        """Mean over the prompts of each category."""
        return self.sums / torch.tensor(self.counts, dtype=self.sums.dtype)[:, None, None, None]


def activation_sums(
    loaded: LoadedModel,
    seqs: Sequence[Sequence[int]],
    categories: Sequence[str],
    *,
    n_positions: int,
    batch_size: int,
    progress: Progress | None = None,
    keep: Callable[[Float[Tensor, "prompts layers positions d"]], None] | None = None,
) -> ActivationSums:
    """Sums of activations per category, in one pass that holds one batch of them at a time.

    Args:
        seqs: token rows. categories: one label per row.
        keep: called with each batch's activations, in the prompts' order.

    Raises:
        InputError: not one label per row, or a row shorter than `n_positions`.
    """
    if len(categories) != len(seqs) or not seqs:
        raise InputError(
            f"{len(categories)} category labels for {len(seqs)} prompts", where="activation_sums"
        )
    names = tuple(sorted(set(categories)))
    sums: Tensor | None = None
    for start in range(0, len(seqs), batch_size):
        rows = prompt_activations(
            loaded,
            seqs[start : start + batch_size],
            n_positions=n_positions,
            batch_size=batch_size,
            progress=progress,
        )
        if keep is not None:
            keep(rows)
        if sums is None:
            sums = torch.zeros(len(names), *rows.shape[1:], dtype=torch.float64)
        labels = [names.index(category) for category in categories[start : start + batch_size]]
        sums.index_add_(0, torch.tensor(labels), rows.double())
    assert sums is not None
    return ActivationSums(names, tuple(list(categories).count(name) for name in names), sums)


@dataclass(frozen=True)
class SummedDirections:
    """Directions computed from sums, float64.

    Attributes:
        overall: r[p, l]. names: categories of the harmful prompts. categories: one direction for each.
    """

    overall: Float[Tensor, "positions layers d"]
    names: tuple[str, ...]
    categories: Float[Tensor, "categories layers positions d"]


def summed_directions(harmful: ActivationSums, harmless: ActivationSums) -> SummedDirections:
    """Differences in means of all harmful prompts, and of each category of them, against all harmless ones.

    Raises:
        NumericalError: an activation is not finite.
    """
    for side, sums in (("harmful", harmful.sums), ("harmless", harmless.sums)):
        if not torch.isfinite(sums).all():
            raise NumericalError(
                f"{side} activations are not finite",
                where="directions",
                remedy="Check the model's weights, or measure it in float32.",
            )
    overall = (harmful.mean - harmless.mean).transpose(0, 1)
    return SummedDirections(overall, harmful.names, harmful.category_means - harmless.mean)


def at_site(
    harmful: Float[Tensor, "harmful layers positions d"],
    harmless: Float[Tensor, "harmless layers positions d"],
    layer_index: int,
    position: int,
) -> SiteActivations:
    """Activations of both kinds of prompts at one site; `position` −1 is the last token."""
    return SiteActivations(harmful[:, layer_index, position], harmless[:, layer_index, position])
