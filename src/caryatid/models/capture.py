"""Capture of the residual stream at block inputs, and at block outputs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import InputError
from .hooks import Hooks, block_input
from .layout import num_layers


class CapturedInputs:
    """Block inputs of the forward passes made inside one `capture_block_inputs` context."""

    def __init__(self, layers: Sequence[int], positions: int) -> None:
        self._layers = tuple(layers)
        self._positions = positions
        self._passes: list[dict[int, Tensor]] = []

    def _store(self, layer: int, hidden: Tensor) -> None:
        if hidden.shape[1] < self._positions:
            raise InputError(
                f"{self._positions} positions asked of a sequence of {hidden.shape[1]} tokens",
                where="capture_block_inputs",
            )
        if not self._passes or layer in self._passes[-1]:
            self._passes.append({})
        # A copy even when the dtype is float32 already, so that whole sequences are not kept alive.
        self._passes[-1][layer] = hidden[:, -self._positions :].detach().to(torch.float32, copy=True)

    def of_layer(self, layer: int) -> Float[Tensor, "rows positions d"]:
        """The rows of one layer, in the order of the forward passes.

        Raises:
            InputError: no forward pass has run.
        """
        self._require_passes()
        return torch.cat([each[layer] for each in self._passes])

    def stacked(self) -> Float[Tensor, "rows layers positions d"]:
        """All rows in the order of the forward passes, on the device of the first of the layers.

        Raises:
            InputError: no forward pass has run.
        """
        self._require_passes()
        return torch.cat([_stacked([each[layer] for layer in self._layers]) for each in self._passes])

    def _require_passes(self) -> None:
        if not self._passes:
            raise InputError("no forward pass has run inside the context", where="capture_block_inputs")


def _stacked(layers: Sequence[Tensor]) -> Tensor:
    """What was read at several layers as [rows, layers, …], on the first one's device."""
    return torch.stack([one.to(layers[0].device) for one in layers], dim=1)


def _check_layers(model: nn.Module, layers: Sequence[int], where: str) -> None:
    depth = num_layers(model)
    if not layers or len(set(layers)) != len(layers) or not all(0 <= layer < depth for layer in layers):
        raise InputError(f"layers {list(layers)} are not distinct members of 0 … {depth - 1}", where=where)


@contextmanager
def capture_block_inputs(
    model: nn.Module, layers: Sequence[int], n_positions: int
) -> Iterator[CapturedInputs]:
    """Keep the stream at the inputs of blocks `layers`, at the last `n_positions` positions of left-padded rows.

    Opened inside `intervening`, it sees the changed stream. Padding is captured like any other position when a row
    is shorter than `n_positions`.

    Raises:
        InputError: an unknown layer, a layer named twice, or fewer than one position.
    """
    _check_layers(model, layers, "capture_block_inputs")
    if n_positions < 1:
        raise InputError(f"{n_positions} positions asked, at least 1 is needed", where="capture_block_inputs")
    captured = CapturedInputs(layers, n_positions)
    hooks = Hooks(model)

    def keep(layer: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            captured._store(layer, block_input(args, kwargs))

        return hook

    try:
        for layer in layers:
            hooks.on_input(layer, keep(layer))
        yield captured
    finally:
        hooks.remove()


class CapturedOutputs:
    """Block outputs at the last position, of the forward passes inside one `capture_block_outputs` context."""

    def __init__(self, layers: Sequence[int]) -> None:
        self._outputs: dict[int, list[Tensor]] = {layer: [] for layer in layers}

    def _store(self, layer: int, hidden: Tensor) -> None:
        self._outputs[layer].append(hidden[:, -1].detach().to(torch.float32, copy=True))

    def take(self) -> Float[Tensor, "rows layers d"]:
        """All rows since the last call, in the order of the forward passes, on the device of the first of the layers.

        They are forgotten here.

        Raises:
            InputError: no forward pass has run since.
        """
        if not all(self._outputs.values()):
            raise InputError("no forward pass has run inside the context", where="capture_block_outputs")
        rows = _stacked([torch.cat(parts) for parts in self._outputs.values()])
        for parts in self._outputs.values():
            parts.clear()
        return rows


@contextmanager
def capture_block_outputs(model: nn.Module, layers: Sequence[int]) -> Iterator[CapturedOutputs]:
    """Keep what blocks `layers` put out at the last position of left-padded rows.

    Raises:
        InputError: an unknown layer, or a layer named twice.
    """
    _check_layers(model, layers, "capture_block_outputs")
    captured = CapturedOutputs(layers)
    hooks = Hooks(model)

    def keep(layer: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            captured._store(layer, output[0] if isinstance(output, tuple) else output)

        return hook

    try:
        for layer in layers:
            hooks.on_output(hooks.layers[layer], keep(layer))
        yield captured
    finally:
        hooks.remove()
