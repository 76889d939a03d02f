"""Carriers in files: what `directions extract` writes, what a study writes, or a direction of one's own."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import DataMissingError, InputError
from ..geometry.directions import subspace, unit
from ..models.layout import hidden_size, num_layers
from ..models.load import LoadedModel


@dataclass(frozen=True)
class CarrierFile:
    """A safetensors file with `direction` [d] (and perhaps `basis` [rank, d] and `layer`), or with `directions`
    [positions, layers, d] (and perhaps `category_directions` [categories, layers, positions, d]), of which the last
    position is used.

    Attributes:
        width, n_layers: of the model.
    """

    file: Path
    tensors: Mapping[str, Tensor]
    width: int
    n_layers: int

    @property
    def layer(self) -> int | None:
        """The layer that the file names."""
        return int(self.tensors["layer"]) if "layer" in self.tensors else None

    def usable(self, layer: int) -> bool:
        """Whether there is a direction for the layer that is not zero."""
        rows = self.tensors.get("directions")
        return rows is None or (layer < rows.shape[1] and bool(rows[-1, layer].any()))

    def direction(self, layer: int) -> Float[Tensor, "d"]:
        """r at a layer, float32, not normalised.

        Raises:
            InputError: unknown layer; or the direction is of another width, zero or not finite.
        """
        if not 0 <= layer < self.n_layers:
            raise InputError(
                f"no layer {layer}", where="--layer", remedy=f"The model has layers 0 … {self.n_layers - 1}."
            )
        if "direction" in self.tensors:
            found = self.tensors["direction"]
        else:
            self._check_layer(layer, self.tensors["directions"].shape[1])
            found = self.tensors["directions"][-1, layer]
        return self._checked(found[None])[0]

    def basis(self, rank: int, layer: int) -> Float[Tensor, "rank d"]:
        """Orthonormal rows: the direction itself at rank 1, above it the subspace of the file.

        Raises:
            InputError: the file has no such subspace.
        """
        self.check_rank(rank)
        if rank == 1:
            return unit(self.direction(layer))[None]
        if "basis" in self.tensors:
            rows = self._checked(self.tensors["basis"][:rank])
        elif "category_directions" in self.tensors:
            self._check_layer(layer, self.tensors["category_directions"].shape[1])
            rows = self._checked(self.tensors["category_directions"][:, layer, -1])
        else:
            rows = torch.empty(0, self.width)
        found = subspace(rows, rank).basis.float() if len(rows) >= rank else rows
        if len(found) < rank:
            raise InputError(
                f"no subspace of rank {rank}, only {max(1, len(found))}",
                where=str(self.file),
                remedy="Use a file with `basis` or `category_directions` of as many rows.",
            )
        return found

    def check_rank(self, rank: int) -> None:
        """Raises:
        InputError: a rank below 1 or above the width.
        """
        if not 1 <= rank <= self.width:
            raise InputError(f"rank {rank} is not one of 1 … {self.width}, the model's width", where="--rank")

    def _check_layer(self, layer: int, layers: int) -> None:
        if layer >= layers:
            raise InputError(f"no layer {layer}, only {layers}", where=str(self.file))

    def _checked(self, rows: Float[Tensor, "rows _"]) -> Float[Tensor, "rows _"]:
        if rows.shape[-1] != self.width:
            raise InputError(
                f"directions of width {rows.shape[-1]}, the model's is {self.width}", where=str(self.file)
            )
        if not torch.isfinite(rows).all() or not rows.any():
            raise InputError("the direction is zero or not finite", where=str(self.file))
        return rows.float()


_SHAPES = {"direction": 1, "basis": 2, "layer": 0, "directions": 3, "category_directions": 4}


def read_carrier(file: Path, loaded: LoadedModel) -> CarrierFile:
    """Read a carrier for a model.

    Raises:
        DataMissingError: no such file. InputError: not such a file.
    """
    if not file.is_file():
        raise DataMissingError(
            "no such file", where=str(file), remedy="Make one with `caryatid directions extract`."
        )
    try:
        tensors = load_file(file)
    except SafetensorError as error:
        raise InputError(f"not a safetensors file ({error})", where=str(file)) from error
    if "direction" not in tensors and "directions" not in tensors:
        raise InputError(
            "neither `direction` nor `directions` in it",
            where=str(file),
            remedy="Make one with `caryatid directions extract`.",
        )
    for name, ndim in _SHAPES.items():
        if name in tensors and tensors[name].ndim != ndim:
            raise InputError(
                f"`{name}` has shape {list(tensors[name].shape)}, not {ndim} dimensions", where=str(file)
            )
    return CarrierFile(file, tensors, hidden_size(loaded.model), num_layers(loaded.model))
