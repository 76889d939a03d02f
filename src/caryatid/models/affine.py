"""Affine concept editing, ACE: the stream's component along a direction is set, not removed (arXiv 2411.09003)."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import InputError
from .hooks import Hooks, StreamFunction, on_each_device
from .residual import Intervention, register_intervention


@dataclass(frozen=True)
class Affine(Intervention):
    """Set the component along a direction at one block's input, at all positions: h ← h − P h + P μ + α r.

    P projects onto r, the difference of means; μ is the mean of activations without the concept (the harmless ones).
    α = 0 puts every token where the mean harmless activation is along r, α = 1 where the mean harmful one is. Ablation
    (h − P h) is the case P μ = 0, α = 0; it moves the stream to the origin along r, wherever activations are.

    Attributes:
        vector: r, unscaled; a row of zeros is left untouched bit for bit. reference: μ. strength: α.
        layer: the block at whose input the row's component is set.

    Each may have one row, which then holds for every row of a batch.
    """

    references: ClassVar[int] = 1

    vector: Float[Tensor, "#rows d"]
    reference: Float[Tensor, "#rows d"]
    strength: Float[Tensor, "#rows"]
    layer: Int[Tensor, "#rows"]

    @classmethod
    def build(
        cls,
        directions: Float[Tensor, "rank d"],
        alpha: float,
        *,
        layer: int | None = None,
        layers: tuple[int, ...] | None = None,
    ) -> "Affine":
        """From two rows, r and μ, with strength α at the input of block `layer`.

        Raises:
            InputError: other than two rows, r of length zero, or no layer.
        """
        if layer is None or len(directions) != 2 or not bool((directions[0] != 0).any()):
            raise InputError(
                f"an affine edit needs a layer and two rows, a direction and a mean; got {len(directions)}",
                where="Affine",
            )
        rows = directions.float()
        return cls(rows[:1], rows[1:], torch.tensor([alpha], dtype=torch.float32), torch.tensor([layer]))

    def first_layers(self) -> Int[Tensor, "rows"]:
        """Each row's own layer."""
        return self.layer

    def attach(self, hooks: Hooks) -> None:
        """Register h ↦ h + r̂ (⟨μ, r̂⟩ + α ‖r‖ − ⟨h, r̂⟩) for the rows of every layer at which one has a direction."""
        active = (self.vector != 0).any(dim=1)
        for number in self.layer[active].unique().tolist():
            hooks.change_input(number, on_each_device(partial(self._set, number)))

    def _set(self, number: int, device: torch.device) -> StreamFunction:
        """The function of block `number` on a device."""
        vector = self.vector.to(device, torch.float32)
        length = vector.norm(dim=1, keepdim=True)
        unit = vector / torch.where(length == 0, 1.0, length)
        level = (unit * self.reference.to(unit)).sum(1, keepdim=True)
        wanted = level + self.strength.to(unit)[:, None] * length
        here = ((self.layer.to(device) == number) & (length[:, 0] != 0))[:, None, None]

        def apply(hidden: Tensor) -> Tensor:  # [rows, tokens, d]
            wide = hidden.float()
            along = (wide * unit[:, None]).sum(dim=2, keepdim=True)  # [rows, tokens, 1]
            changed = wide + (wanted[:, :, None] - along) * unit[:, None]
            return torch.where(here, changed.to(hidden.dtype), hidden)

        return apply


register_intervention("affine", Affine)
