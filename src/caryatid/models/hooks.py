"""Hooks on a decoder's blocks that read or replace the residual stream, and always come off."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..errors import InputError
from .layout import SublayerSites, decoder_layers, sublayer_outputs, unwrapped

StreamFunction = Callable[[Tensor], Tensor]
"""From a tensor [rows, tokens, d] of the stream to what replaces it."""


def on_each_device(make: Callable[[torch.device], StreamFunction]) -> StreamFunction:
    """One change of the stream on whatever device it comes: `make` is called once for each, with its tensors there.

    The stream at a block's input may still lie on the device of the block before it.
    """
    made: dict[torch.device, StreamFunction] = {}

    def change(hidden: Tensor) -> Tensor:
        device = hidden.device
        if device not in made:
            made[device] = make(device)
        return made[device](hidden)

    return change


def block_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The stream that a block receives, by position or by keyword."""
    return cast(Tensor, args[0] if args else kwargs["hidden_states"])


def input_hook(apply: StreamFunction) -> Callable[..., Any]:
    """A forward pre-hook (with keywords) that replaces a block's input by `apply` of it."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (apply(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": apply(kwargs["hidden_states"])}

    return hook


def output_hook(apply: StreamFunction) -> Callable[..., Any]:
    """A forward hook that replaces a sublayer's output, alone or first of a tuple, by `apply` of it."""

    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return (apply(output[0]), *output[1:]) if isinstance(output, tuple) else apply(output)

    return hook


class Hooks:
    """Registers hooks on one model and removes all of them.

    Attributes:
        layers: the model's blocks.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.layers = decoder_layers(model)
        self._sites: list[SublayerSites] = []
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def _block(self, layer: int) -> nn.Module:
        """Raises InputError where the model has no such block."""
        if not 0 <= layer < len(self.layers):
            raise InputError(f"layer {layer} is not one of 0 … {len(self.layers) - 1}", where="intervention")
        return self.layers[layer]

    def on_input(self, layer: int, hook: Callable[..., Any]) -> None:
        """Call a forward pre-hook, given keyword arguments too, at the input of a block."""
        self._handles.append(self._block(layer).register_forward_pre_hook(hook, with_kwargs=True))

    def on_output(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        """Call a forward hook of a module."""
        self._handles.append(module.register_forward_hook(hook))

    def change_input(self, layer: int, change: StreamFunction) -> None:
        """Replace the stream that a block reads. Raises InputError for an unknown block."""
        self.on_input(layer, input_hook(change))

    def change_sublayers(self, layer: int, change: StreamFunction) -> None:
        """Replace what a block's attention and MLP each add to the stream. Raises InputError for an unknown block."""
        self._block(layer)
        self._sites = self._sites or sublayer_outputs(self.model)
        for module in self._sites[layer].modules:
            self.on_output(module, output_hook(change))

    def around(self, enter: Callable[..., Any], leave: Callable[..., Any]) -> None:
        """Call `enter` (with keywords) before every forward pass, and `leave` after it, errors included.

        On the model inside a peft wrapper, whose `generate` passes the wrapper's own forward by.
        """
        inner = unwrapped(self.model)
        self._handles.append(inner.register_forward_pre_hook(enter, with_kwargs=True))
        self._handles.append(inner.register_forward_hook(leave, always_call=True))

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
