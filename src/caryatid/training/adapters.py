"""LoRA adapters of 16-bit models: added to their layers' products before these are rounded."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..models.adapters import AdaptedLinear


class _Factors(NamedTuple):
    """One adapter: `down` is A transposed, `up` is scale · B transposed, both in the base layer's precision."""

    layer: Any
    down: Float[Tensor, "d_in r"]
    up: Float[Tensor, "r d_out"]


class LowPrecisionAdapters:
    """Runs the adapters of a 16-bit model, which PEFT keeps in float32, so that small changes are not rounded away.

    PEFT adds its float32 branch to a layer's finished 16-bit output, where a change below half a step is lost. Here
    the layer's product is accumulated onto the rounded branch, y = D + W x, and rounded once. Gradients are PEFT's.

    While `open`, D itself is computed in 16 bits: PEFT's float32 copies of inputs and outputs take at 7B about as long
    as the layers themselves, for each of a GCG step's candidates. The rounded factors stay at the same addresses for
    the life of this object.

    Args:
        peft: a PEFT model with LoRA on linear layers; its layers run as described from now on.
    """

    def __init__(self, peft: Any) -> None:
        self._factors: list[_Factors] = []
        self._open = False
        for layer in _adapted(peft):
            a, b = _weights(layer)
            weight = layer.get_base_layer().weight
            down = torch.empty(a.shape[::-1], dtype=weight.dtype, device=weight.device)
            up = torch.empty(b.shape[::-1], dtype=weight.dtype, device=weight.device)
            factors = _Factors(layer, down, up)
            self._factors.append(factors)
            layer.forward = partial(self._forward, factors)

    @staticmethod
    def suit(peft: Any) -> bool:
        """Whether all adapters are on linear layers that are in a narrower precision."""
        layers = _adapted(peft)
        return all(
            isinstance(layer.get_base_layer(), nn.Linear | Conv1D)
            and layer.get_base_layer().weight.dtype.itemsize < _weights(layer)[0].dtype.itemsize
            for layer in layers
        )

    @contextmanager
    def open(self) -> Iterator[None]:
        """Inside, forward passes use the present adapters, rounded; without dropout, whatever the mode."""
        with torch.no_grad():
            for layer, down, up in self._factors:
                a, b = _weights(layer)
                down.copy_(a.T)
                up.copy_((b * _scale(layer)).T)
        self._open = True
        try:
            yield
        finally:
            self._open = False

    def _forward(self, factors: _Factors, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_out"]:
        layer, down, up = factors
        base = layer.get_base_layer()
        if layer.disable_adapters:
            return base(x)
        rows = x.reshape(-1, x.shape[-1]).to(down.dtype)
        branch = rows @ down @ up if self._open else _branch(layer, rows).to(down.dtype)
        output = branch.addmm_(*_product(base, rows))
        if base.bias is not None:
            output = output.add_(base.bias)
        return output.view(*x.shape[:-1], -1)


def _adapted(peft: Any) -> list[Any]:
    return [layer for layer in peft.modules() if hasattr(layer, "lora_A")]


def _weights(layer: Any) -> tuple[Tensor, Tensor]:
    (name,) = layer.active_adapters
    return layer.lora_A[name].weight, layer.lora_B[name].weight


def _scale(layer: Any) -> float:
    scale: float = layer.scaling[layer.active_adapters[0]]
    return scale


def _branch(layer: Any, rows: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_out"]:
    """scale · B A x in the adapter's own precision, as PEFT computes it."""
    a, b = _weights(layer)
    dropped = layer.lora_dropout[layer.active_adapters[0]](rows.to(a.dtype))
    return nn.functional.linear(nn.functional.linear(dropped, a), b) * _scale(layer)


def _product(base: nn.Module, rows: Float[Tensor, "rows d_in"]) -> tuple[Tensor, Tensor]:
    """What a linear layer multiplies: its input, and its weights [d_in, d_out]."""
    if isinstance(base, AdaptedLinear):
        return base.beside(rows), base.joined.T
    weight = base.weight
    assert isinstance(weight, Tensor)
    return rows, weight if isinstance(base, Conv1D) else weight.T
