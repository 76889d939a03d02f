"""LoRA adapters in the model's own precision, for the passes that need no gradient with respect to them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


class _Factors(NamedTuple):
    """One adapter: `down` is A transposed, `up` is scale · B transposed, both in the base layer's precision."""

    layer: Any
    down: Float[Tensor, "d_in r"]
    up: Float[Tensor, "r d_out"]


class LowPrecisionAdapters:
    """Runs a 16-bit model's adapters, which PEFT keeps in float32, in 16 bits too.

    PEFT casts every adapted layer's input to float32 and its sum back: at 7B that moves about as much memory as the
    layers themselves take time, for each of a GCG step's candidates. Here the layer's output gets x·A·B·scale added in
    place, with A and B rounded to the layer's precision at each `open`. As in PEFT, a change below half a step of the
    layer's own rounded output is lost; opened anchors keep it (`models/adapters.py`).

    The rounded factors stay at the same addresses for the life of this object.

    Args:
        peft: a PEFT model with LoRA on linear layers.
    """

    def __init__(self, peft: Any) -> None:
        self._peft = peft
        self._factors: list[_Factors] = []
        for layer in _adapted(peft):
            a, b = _weights(layer)
            weight = layer.get_base_layer().weight
            down = torch.empty(a.shape[::-1], dtype=weight.dtype, device=weight.device)
            up = torch.empty(b.shape[::-1], dtype=weight.dtype, device=weight.device)
            self._factors.append(_Factors(layer, down, up))

    @staticmethod
    def suit(peft: Any) -> bool:
        """Whether all adapters are on linear layers that are in a narrower precision."""
        layers = _adapted(peft)
        return all(
            isinstance(layer.get_base_layer(), nn.Linear | Conv1D)
            and layer.get_base_layer().weight.dtype.itemsize < _weights(layer)[0].dtype.itemsize
            for layer in layers
        )

    @torch.no_grad()
    def _refresh(self) -> None:
        for layer, down, up in self._factors:
            a, b = _weights(layer)
            down.copy_(a.T)
            up.copy_((b * layer.scaling[layer.active_adapters[0]]).T)

    @contextmanager
    def open(self) -> Iterator[None]:
        """Inside, forward passes use the present adapters, rounded; without dropout, whatever the mode."""
        self._refresh()
        handles: list[torch.utils.hooks.RemovableHandle] = []
        with self._peft.disable_adapter():
            try:
                for layer, down, up in self._factors:
                    handles.append(layer.get_base_layer().register_forward_hook(_adding(down, up)))
                yield
            finally:
                for handle in handles:
                    handle.remove()


def _adapted(peft: Any) -> list[Any]:
    return [layer for layer in peft.modules() if hasattr(layer, "lora_A")]


def _weights(layer: Any) -> tuple[Tensor, Tensor]:
    (name,) = layer.active_adapters
    return layer.lora_A[name].weight, layer.lora_B[name].weight


def _adding(down: Tensor, up: Tensor) -> Callable[..., Tensor]:
    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        (hidden,) = args
        output.view(-1, output.shape[-1]).addmm_(hidden.reshape(-1, hidden.shape[-1]) @ down, up)
        return output

    return hook
