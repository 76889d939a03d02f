"""Interventions on the residual stream, and capture of it: the one mechanism, row-wise and out of place.

Block l reads the stream h_l; its attention and its MLP each add an output to it. An intervention changes these
tensors while a context is open; leaving the context, also by an exception, removes every hook. Each row of
a batch may have its own directions, strength and layer, so that many conditions share one forward pass.
Interventions act at run time only: no weight is ever edited.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from caryatid.errors import InputError
from caryatid.models.capture import CapturedInputs, capture_block_inputs
from caryatid.models.hooks import Hooks, StreamFunction, block_input, input_hook, output_hook
from caryatid.models.layout import hidden_size, num_layers, sublayer_outputs

__all__ = [
    "Ablate",
    "Add",
    "CapturedInputs",
    "Intervention",
    "Touched",
    "capture_block_inputs",
    "intervening",
    "orthonormal",
]

_ORTHONORMAL_TOLERANCE = 1e-2  # loose enough for directions that were stored in bfloat16


def orthonormal(rows: Float[Tensor, "k d"]) -> Float[Tensor, "k d"]:
    """An orthonormal basis (rows) of the span of `rows`, by QR in float64; returned in float32 or wider.

    Raises:
        InputError: the rows are not finite, more than d, or linearly dependent (a zero row included).
    """
    k, d = rows.shape
    if k > d:
        raise InputError(f"rank {k} is above the width {d}", where="orthonormal")
    if not torch.isfinite(rows).all():
        raise InputError("a direction is not finite", where="orthonormal")
    q, r = torch.linalg.qr(rows.double().T)  # q: [d, k]
    diagonal = r.diagonal().abs()
    if bool((diagonal <= 1e-7 * rows.double().norm(dim=1)).any()):
        raise InputError("directions are zero or linearly dependent", where="orthonormal")
    signs = r.diagonal().sign()  # the first basis row points along the first direction
    return (q * signs).T.contiguous().to(torch.promote_types(rows.dtype, torch.float32))


def _broadcast_rows(where: str, **tensors: Tensor) -> dict[str, Tensor]:
    """Expand tensors of 1 or n rows to n rows, without copying."""
    counts = {t.shape[0] for t in tensors.values()}
    rows = max(counts)
    if 0 in counts or not counts <= {1, rows}:
        found = ", ".join(f"{name} {t.shape[0]}" for name, t in tensors.items())
        raise InputError(
            f"row counts do not agree: {found}", where=where, remedy="Give 1 row, or the same number."
        )
    return {name: t.expand(rows, *t.shape[1:]) for name, t in tensors.items()}


def _check_finite(where: str, **tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise InputError(f"{name} is not finite", where=where)


def _check_ndim(where: str, **expected: tuple[Tensor, int]) -> None:
    for name, (tensor, ndim) in expected.items():
        if tensor.ndim != ndim:
            raise InputError(f"{name} has {tensor.ndim} dimensions instead of {ndim}", where=where)


@dataclass(frozen=True)
class Ablate:
    """Remove the projection onto a subspace: h ← h − strength · P h.

    Acts at every block input, attention output and MLP output, at all token positions.

    Attributes:
        basis: orthonormal rows; zero rows are padding, for batches that mix ranks.
        strength: 0 leaves a row untouched bit for bit, 1 removes the projection.
        layers: only at these blocks' sites; None means at all.

    `basis` and `strength` may have one row each, which then holds for every row of a batch.

    Raises:
        InputError: rows are not orthonormal, a row with a strength has no direction, something is not finite, or the
            rank is above the width.
    """

    basis: Float[Tensor, "#rows rank d"]
    strength: Float[Tensor, "#rows"] = field(default_factory=lambda: torch.ones(1))
    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        _check_ndim("Ablate", basis=(self.basis, 3), strength=(self.strength, 1))
        _check_finite("Ablate", basis=self.basis, strength=self.strength)
        _, rank, width = self.basis.shape
        if rank > width:
            raise InputError(f"rank {rank} is above the width {width}", where="Ablate")
        basis = self.basis.float()
        gram = basis @ basis.mT  # [rows, rank, rank]
        norms = gram.diagonal(dim1=1, dim2=2)  # 1, or 0 at padding
        target = torch.diag_embed((norms > 0.5).to(gram.dtype))
        if bool(((gram - target).abs() > _ORTHONORMAL_TOLERANCE).any()):
            raise InputError(
                "the basis rows are not orthonormal",
                where="Ablate",
                remedy="Pass them through orthonormal().",
            )
        strength = self.strength.to(basis.device)
        both = _broadcast_rows("Ablate", basis=self.basis, strength=strength)
        if bool(((both["strength"] != 0) & ~(norms > 0.5).any(dim=1)).any()):
            raise InputError("a row to ablate has only zero directions", where="Ablate")
        if self.layers is not None and not self.layers:
            raise InputError("no layer to ablate at", where="Ablate", remedy="Pass None for all layers.")
        for name, tensor in both.items():
            object.__setattr__(self, name, tensor)

    @property
    def rows(self) -> int:
        """Number of rows; 1 holds for every row of a batch."""
        return self.basis.shape[0]

    def take(self, index: Int[Tensor, "n"]) -> "Ablate":
        """The rows `index`, for one batch; an intervention of one row stays as it is."""
        if self.rows == 1:
            return self
        index = index.to(self.basis.device)
        return Ablate(self.basis[index], self.strength[index], self.layers)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Ablate":
        """On `device`, the basis in `dtype`."""
        return Ablate(self.basis.to(device, dtype), self.strength.to(device), self.layers)


@dataclass(frozen=True)
class Add:
    """Add a vector at a block's input, at all token positions: h_l ← h_l + strength · v.

    Attributes:
        vector: one per row. layer: the block at whose input the row's vector is added. strength: its factor.

    Each may have one row, which then holds for every row of a batch.

    Raises:
        InputError: a row with a strength has a zero vector, or something is not finite.
    """

    vector: Float[Tensor, "#rows d"]
    layer: Int[Tensor, "#rows"]
    strength: Float[Tensor, "#rows"] = field(default_factory=lambda: torch.ones(1))

    def __post_init__(self) -> None:
        _check_ndim("Add", vector=(self.vector, 2), layer=(self.layer, 1), strength=(self.strength, 1))
        _check_finite("Add", vector=self.vector, strength=self.strength)
        device = self.vector.device
        parts = _broadcast_rows(
            "Add", vector=self.vector, layer=self.layer.to(device), strength=self.strength.to(device)
        )
        if bool(((parts["strength"] != 0) & (parts["vector"] == 0).all(dim=1)).any()):
            raise InputError("a row to add has a zero vector", where="Add")
        for name, tensor in parts.items():
            object.__setattr__(self, name, tensor)

    @property
    def rows(self) -> int:
        """Number of rows; 1 holds for every row of a batch."""
        return self.vector.shape[0]

    def take(self, index: Int[Tensor, "n"]) -> "Add":
        """The rows `index`, for one batch; an intervention of one row stays as it is."""
        if self.rows == 1:
            return self
        index = index.to(self.vector.device)
        return Add(self.vector[index], self.layer[index], self.strength[index])

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Add":
        """On `device`, the vector in `dtype`."""
        return Add(self.vector.to(device, dtype), self.layer.to(device), self.strength.to(device))


Intervention = Ablate | Add


@dataclass
class Touched:
    """How many token positions the interventions of one context have seen.

    Attributes:
        per_intervention: tokens of all rows, one entry per intervention in the order given. Counted where the
            intervention first acts (block 0, or the first of its `layers`; for `Add` each row at its own layer).
            Padding is left out where the forward pass is given a two-dimensional mask. Positions in a cache are not
            seen again. `caryatid.models.generate.generate(touched=…)` touches and counts every token of its prompts and
            answers. A plain `model.generate` inside `intervening` samples the last token of a batch and never runs it,
            and also counts what fills up rows that ended before others.
    """

    per_intervention: list[int]

    def add(self, other: "Touched", filling: int) -> None:
        """Add the count of another context with the same interventions, less `filling` tokens in each."""
        before = self.per_intervention or [0] * len(other.per_intervention)
        self.per_intervention = [
            old + new - filling for old, new in zip(before, other.per_intervention, strict=True)
        ]

    @property
    def tokens(self) -> int:
        """The count of the intervention that saw most; 0 without interventions."""
        return max(self.per_intervention, default=0)


def _check_against_model(model: nn.Module, intervention: Intervention) -> None:
    where = type(intervention).__name__
    width, depth = hidden_size(model), num_layers(model)
    if isinstance(intervention, Ablate):
        found, layers = intervention.basis.shape[-1], intervention.layers or ()
    else:
        found, layers = intervention.vector.shape[-1], tuple(intervention.layer.unique().tolist())
    if found != width:
        raise InputError(f"directions have width {found}, the model has {width}", where=where)
    unknown = [layer for layer in layers if not 0 <= layer < depth]
    if unknown:
        raise InputError(f"layer {unknown[0]} is not one of 0 … {depth - 1}", where=where)


def _check_rows(where: str, rows: int, hidden: Tensor) -> None:
    if rows not in (1, hidden.shape[0]):
        raise InputError(
            f"{rows} rows for a batch of {hidden.shape[0]}",
            where=where,
            remedy="Give one row, or as many as the batch has (take() selects them).",
        )


def _ablation(intervention: Ablate, device: torch.device) -> StreamFunction | None:
    """The function h ↦ h − strength · P h of a site, or None when every strength is zero."""
    strength = intervention.strength.to(device, torch.float32)
    active = strength != 0  # [rows]
    if not bool(active.any()):
        return None
    all_active = bool(active.all())
    basis = intervention.basis.to(device, torch.float32)  # [rows, rank, d]
    scaled = basis * strength[:, None, None]
    active = active[:, None, None]

    def apply(hidden: Tensor) -> Tensor:  # [rows, tokens, d]
        _check_rows("Ablate", len(basis), hidden)
        wide = hidden.float()
        changed = (wide - (wide @ basis.mT) @ scaled).to(hidden.dtype)
        return changed if all_active else torch.where(active, changed, hidden)

    return apply


def _additions(intervention: Add, device: torch.device) -> dict[int, StreamFunction]:
    """For every layer at which some row has a strength, the function h ↦ h + strength · v for those rows."""
    strength = intervention.strength.to(device, torch.float32)
    shift = (intervention.vector.to(device, torch.float32) * strength[:, None]).unsqueeze(1)  # [rows, 1, d]
    layer = intervention.layer.to(device)

    def at(number: int) -> StreamFunction:
        active = ((layer == number) & (strength != 0))[:, None, None]

        def apply(hidden: Tensor) -> Tensor:  # [rows, tokens, d]
            _check_rows("Add", len(shift), hidden)
            return torch.where(active, (hidden.float() + shift).to(hidden.dtype), hidden)

        return apply

    return {number: at(number) for number in layer[strength != 0].unique().tolist()}


class _RealTokens:
    """Real tokens per row of the forward pass under way, from its mask; None without a two-dimensional one."""

    def __init__(self, hooks: Hooks) -> None:
        self._mask: Tensor | None = None
        hooks.around(self._enter, self._leave)

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        mask = kwargs.get("attention_mask")
        self._mask = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._mask = None

    def counted(self, hidden: Tensor) -> Int[Tensor, "rows"]:
        """Tokens of each row of a block's input."""
        rows, tokens, _ = hidden.shape
        if self._mask is None or self._mask.shape[0] != rows or self._mask.shape[1] < tokens:
            return torch.full((rows,), tokens)
        return (self._mask[:, -tokens:] != 0).sum(dim=1).cpu()


def _count(hooks: Hooks, real: _RealTokens, touched: Touched, slot: int, intervention: Intervention) -> None:
    if isinstance(intervention, Ablate):
        layer_of_row = torch.tensor([0 if intervention.layers is None else min(intervention.layers)])
    else:
        layer_of_row = intervention.layer.cpu()

    def counter(layer: int) -> Callable[..., None]:
        mine = layer_of_row == layer

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = block_input(args, kwargs)
            _check_rows(type(intervention).__name__, len(mine), hidden)
            counts = real.counted(hidden)
            touched.per_intervention[slot] += int((counts * mine).sum())

        return hook

    for layer in layer_of_row.unique().tolist():
        hooks.on_input(layer, counter(layer))


@contextmanager
def intervening(model: nn.Module, *interventions: Intervention) -> Iterator[Touched]:
    """Apply `interventions`, in the order given at each site, to every forward pass inside the context.

    Computed in float32 and cast back to the stream's dtype. Gradients flow through. With `model.generate` the rows
    stay aligned with the batch, and cached positions keep the values that they were given.

    Yields:
        how many tokens were touched so far.

    Raises:
        InputError: wrong width or unknown layer (here), or a batch whose rows do not match (at its forward pass).
    """
    for intervention in interventions:
        _check_against_model(model, intervention)
    touched = Touched([0] * len(interventions))
    hooks = Hooks(model)
    try:
        real = _RealTokens(hooks)
        for slot, intervention in enumerate(interventions):
            _count(hooks, real, touched, slot, intervention)
            if isinstance(intervention, Add):
                for layer, apply in _additions(intervention, hooks.device).items():
                    hooks.on_input(layer, input_hook(apply))
                continue
            remove = _ablation(intervention, hooks.device)
            if remove is None:
                continue
            sites = sublayer_outputs(model)
            for layer in range(len(sites)) if intervention.layers is None else intervention.layers:
                hooks.on_input(layer, input_hook(remove))
                for module in sites[layer].modules:
                    hooks.on_output(module, output_hook(remove))
        yield touched
    finally:
        hooks.remove()
