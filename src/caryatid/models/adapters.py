"""PEFT adapters on a model that is measured: merged into float32 weights, kept beside 16-bit ones.

A 16-bit weight is a multiple of a step of 2^-7 … 2^-8 of itself; a merged change below half a step is gone. Adding the
adapter's product to a layer's finished output loses it in the same way, at the output's step. Here both products are
added up before the one rounding: y = [x, D x] · [W, U]ᵀ, with ΔW = U D.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from caryatid.errors import InputError
from caryatid.models.plain_lora import LoraFactors, read_plain_lora
from caryatid.models.quiet import quiet_transformers

_ALIGNED = 8  # matrix products on CUDA want inner sizes that are multiples of this


def aligned(rank: int) -> int:
    """A rank filled up to what matrix products want."""
    return rank + -rank % _ALIGNED


class AdaptedLinear(nn.Linear):
    """A linear layer in 16 bits and what adapters change about it; for inference, and for gradients in x.

    Its parameters are `joined` and `down` instead of `weight`, so that saved weights cannot pass for the base model's.

    Args:
        weight: W. bias: of the layer.
        down: D, the adapters' A, one below the other. up: U, the adapters' scale · B, side by side.
    """

    def __init__(
        self,
        weight: Float[Tensor, "d_out d_in"],
        bias: nn.Parameter | None,
        down: Float[Tensor, "r d_in"],
        up: Float[Tensor, "d_out r"],
    ) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape
        filling = aligned(len(down)) - len(down)
        down = torch.cat([down.to(weight), weight.new_zeros(filling, self.in_features)])
        up = torch.cat([up.to(weight), weight.new_zeros(self.out_features, filling)], dim=1)
        self.joined = nn.Parameter(torch.cat([weight, up], dim=1), requires_grad=False)
        self.down = nn.Parameter(down, requires_grad=False)
        self.register_parameter("bias", bias)

    @property
    def weight(self) -> Float[Tensor, "d_out d_in"]:  # type: ignore[override]
        """W, without the adapters."""
        return self.joined[:, : self.in_features]

    @property
    def up(self) -> Float[Tensor, "d_out r"]:
        """U."""
        return self.joined[:, self.in_features :]

    def rest(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_out"]:
        """U D x, what is added to W x."""
        return nn.functional.linear(nn.functional.linear(x, self.down), self.up)

    def beside(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_joined"]:
        """[x, D x], what `joined` is multiplied with."""
        return torch.cat([x, nn.functional.linear(x, self.down)], dim=-1)

    def forward(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_out"]:
        """W x + U D x + bias, rounded once."""
        return nn.functional.linear(self.beside(x), self.joined, self.bias)


class _Factors(NamedTuple):
    name: str
    down: Tensor
    up: Tensor


def add_adapter(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Add a peft adapter to a model, in memory: merged into float32 weights, else as `AdaptedLinear` layers.

    Module names stay the base model's. Several adapters are added one after the other.

    Raises:
        InputError: the adapter does not fit the model, or is of a kind that cannot be merged or kept.
    """
    plain = read_plain_lora(model, folder)
    return _add_wrapped(model, folder) if plain is None else _add_plain(model, plain)


def with_adapter(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """A second model: `model` with a peft adapter added as by `add_adapter`, to the bit; `model` stays as it is.

    The two share every weight that a plain LoRA adapter leaves alone. For other kinds all weights are copied.

    Raises:
        InputError: as `add_adapter`.
    """
    plain = read_plain_lora(model, folder)
    if plain is None:
        return _add_wrapped(copy.deepcopy(model), folder)
    shared = (*model.parameters(), *model.buffers())
    return _add_plain(copy.deepcopy(model, {id(tensor): tensor for tensor in shared}), plain)


@torch.no_grad()
def _add_plain(model: PreTrainedModel, adapter: Sequence[LoraFactors]) -> PreTrainedModel:
    """Add plain LoRA; puts new weights in the place of old ones and writes into none."""
    changed: dict[int, Tensor] = {}
    for one in adapter:
        layer: Any = model.get_submodule(one.layer)
        if layer.weight.dtype.itemsize < 4:
            _keep(model, _Factors(one.layer, one.down, one.up * one.scale))
            continue
        product = one.up @ one.down
        change = (product.T if isinstance(layer, Conv1D) else product) * one.scale
        changed[id(layer.weight)] = changed.get(id(layer.weight), layer.weight) + change
    if changed:
        weights = {key: nn.Parameter(value, requires_grad=False) for key, value in changed.items()}
        for module in model.modules():  # all of them: a changed weight may be tied
            for name, parameter in module.named_parameters(recurse=False):
                if id(parameter) in weights:
                    setattr(module, name, weights[id(parameter)])
    model.eval().requires_grad_(False)
    return model


def _add_wrapped(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Add an adapter of any kind through PEFT; writes into the model's weights."""
    with quiet_transformers():
        wrapped = _wrapped(model, folder)
        if _narrow(wrapped):
            found = _factors(wrapped, folder)
            plain = wrapped.unload()
            for factors in found:
                _keep(plain, factors)
        else:
            plain = wrapped.merge_and_unload()
    plain.eval().requires_grad_(False)
    return cast(PreTrainedModel, plain)


def _wrapped(model: PreTrainedModel, folder: Path) -> Any:
    from peft import PeftModel

    try:
        wrapped: Any = PeftModel.from_pretrained(
            cast(Any, model), str(folder), is_trainable=False, use_safetensors=True
        )
    except (ValueError, RuntimeError, TypeError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(
            f"the adapter does not fit its base model: {lines[0]}",
            where=str(folder),
            remedy="Check base_model_name_or_path in its adapter_config.json.",
        ) from error
    if not hasattr(wrapped.base_model, "merge_and_unload"):
        raise InputError(
            "this kind of adapter cannot be merged",
            where=str(folder),
            remedy="Use LoRA or another mergeable kind.",
        )
    return wrapped


def _adapted(wrapped: Any) -> list[tuple[str, Any]]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    modules = wrapped.get_base_model().named_modules()
    return [(name, module) for name, module in modules if isinstance(module, BaseTunerLayer)]


def _narrow(wrapped: Any) -> bool:
    """Whether some adapted weights are narrower than float32."""
    weights = (getattr(layer.get_base_layer(), "weight", None) for _, layer in _adapted(wrapped))
    return any(isinstance(weight, Tensor) and weight.dtype.itemsize < 4 for weight in weights)


@torch.no_grad()
def _factors(wrapped: Any, folder: Path) -> list[_Factors]:
    """D and U of every adapted layer, in the adapter's own precision."""
    from peft.tuners.lora.layer import Linear

    found = []
    for name, layer in _adapted(wrapped):
        plain = isinstance(layer, Linear) and isinstance(layer.get_base_layer(), nn.Linear | Conv1D)
        for adapter in layer.active_adapters if plain else ():
            plain = plain and not layer.lora_bias[adapter] and adapter not in layer.lora_variant
        if not plain:
            raise InputError(
                f"{name} has an adapter that is not plain LoRA on a linear layer; 16-bit weights would round it away",
                where=str(folder),
                remedy="Open it in float32 (dtype: float32).",
            )
        for adapter in layer.active_adapters:
            scaled = layer.lora_B[adapter].weight.float() * layer.scaling[adapter]
            found.append(_Factors(name, layer.lora_A[adapter].weight.detach().clone(), scaled))
    return found


@torch.no_grad()
def _keep(model: nn.Module, factors: _Factors) -> None:
    """Put an `AdaptedLinear` in the place of a linear layer, or add to the one that is there."""
    name, down, up = factors
    layer: Any = model.get_submodule(name)
    weight = layer.weight.T if isinstance(layer, Conv1D) else layer.weight
    if isinstance(layer, AdaptedLinear):
        down, up = torch.cat([layer.down, down.to(weight)]), torch.cat([layer.up, up.to(weight)], dim=1)
    new = AdaptedLinear(weight, layer.bias, down, up)
    new.train(layer.training)
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, new)
