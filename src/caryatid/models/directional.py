"""Interventions along directions: ablation at every site, and addition at one block's input (arXiv 2406.11717)."""

from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import InputError
from .hooks import Hooks, StreamFunction, on_each_device
from .residual import Intervention, register_intervention

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


def _check_ndim(where: str, **expected: tuple[Tensor, int]) -> None:
    for name, (tensor, ndim) in expected.items():
        if tensor.ndim != ndim:
            raise InputError(f"{name} has {tensor.ndim} dimensions instead of {ndim}", where=where)


@dataclass(frozen=True)
class Ablate(Intervention):
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
        super().__post_init__()
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
        if bool(((self.strength != 0) & ~(norms > 0.5).any(dim=1)).any()):
            raise InputError("a row to ablate has only zero directions", where="Ablate")
        if self.layers is not None and not self.layers:
            raise InputError("no layer to ablate at", where="Ablate", remedy="Pass None for all layers.")

    @classmethod
    def build(
        cls,
        directions: Float[Tensor, "rank d"],
        alpha: float,
        *,
        layer: int | None = None,
        layers: tuple[int, ...] | None = None,
    ) -> "Ablate":
        """The span of orthonormal `directions` removed with strength `alpha`, at `layers` (None: everywhere)."""
        return cls(directions.float()[None], torch.tensor([alpha], dtype=torch.float32), layers)

    def first_layers(self) -> Int[Tensor, "rows"]:
        """Block 0, or the first of `layers`."""
        return torch.full((self.rows,), 0 if self.layers is None else min(self.layers))

    def attach(self, hooks: Hooks) -> None:
        """Register h ↦ h − strength · P h at the three sites of every block, or of `layers`."""
        if not bool((self.strength != 0).any()):
            return
        remove = on_each_device(self._removal)
        for layer in range(len(hooks.layers)) if self.layers is None else self.layers:
            hooks.change_input(layer, remove)
            hooks.change_sublayers(layer, remove)

    def _removal(self, device: torch.device) -> StreamFunction:
        """The function of one site on a device."""
        strength = self.strength.to(device, torch.float32)
        active = strength != 0  # [rows]
        all_active = bool(active.all())
        basis = self.basis.to(device, torch.float32)  # [rows, rank, d]
        scaled = basis * strength[:, None, None]
        active = active[:, None, None]

        def apply(hidden: Tensor) -> Tensor:  # [rows, tokens, d]
            wide = hidden.float()
            along = wide @ basis.mT  # [rows, tokens, rank]
            removed = along * scaled if basis.shape[1] == 1 else along @ scaled  # the same in float32, sooner
            changed = (wide - removed).to(hidden.dtype)
            return changed if all_active else torch.where(active, changed, hidden)

        return apply


@dataclass(frozen=True)
class Add(Intervention):
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
        super().__post_init__()
        if bool(((self.strength != 0) & (self.vector == 0).all(dim=1)).any()):
            raise InputError("a row to add has a zero vector", where="Add")

    @classmethod
    def build(
        cls,
        directions: Float[Tensor, "rank d"],
        alpha: float,
        *,
        layer: int | None = None,
        layers: tuple[int, ...] | None = None,
    ) -> "Add":
        """`alpha` times one unscaled vector, added at the input of block `layer`."""
        if layer is None or len(directions) != 1:
            raise InputError("an addition needs one vector and a layer", where="Add")
        return cls(directions.float(), torch.tensor([layer]), torch.tensor([alpha], dtype=torch.float32))

    def first_layers(self) -> Int[Tensor, "rows"]:
        """Each row's own layer."""
        return self.layer

    def attach(self, hooks: Hooks) -> None:
        """Register h ↦ h + strength · v for the rows of every layer at which some row has a strength."""
        for number in self.layer[self.strength != 0].unique().tolist():
            hooks.change_input(number, on_each_device(partial(self._added, number)))

    def _added(self, number: int, device: torch.device) -> StreamFunction:
        """The function of block `number` on a device."""
        strength = self.strength.to(device, torch.float32)
        shift = (self.vector.to(device, torch.float32) * strength[:, None]).unsqueeze(1)  # [rows, 1, d]
        active = ((self.layer.to(device) == number) & (strength != 0))[:, None, None]

        def apply(hidden: Tensor) -> Tensor:  # [rows, tokens, d]
            return torch.where(active, (hidden.float() + shift).to(hidden.dtype), hidden)

        return apply


register_intervention("ablate", Ablate)
register_intervention("add", Add)
