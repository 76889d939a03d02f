"""PEFT adapters on a model that is measured: merged into float32 weights, kept beside 16-bit ones.

A 16-bit weight is a multiple of a step of 2^-7 … 2^-8 of itself; a merged change below half a step is gone. Adding the
adapter's product to a layer's finished output loses it in the same way, at the output's step. Here both products are
added up before the one rounding: y = [x, D x] · [W, U]ᵀ, with ΔW = U D.
"""

import copy
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..errors import DataMissingError, InputError
from .adapter_files import PREFIX, AdapterFile, as_folder, read_adapter, refuse_unused
from .placement import refuse_offloaded
from .plain_lora import LoraFactors, read_plain_lora, without_factors
from .quiet import Say, last_line, quiet_transformers, warn

_PROBE = 16  # tokens on which a merged model is compared with the unmerged one
_MERGE_TOLERANCE = 1e-3  # rounding in float32 stays far below
STORES_NOTHING = "{folder}: it stores nothing for {count} of the layers that it names, first {first}"
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


def add_adapter(model: PreTrainedModel, folder: Path, say: Say = warn) -> PreTrainedModel:
    """Add a peft adapter to a model, in memory: merged into float32 weights, else as `AdaptedLinear` layers.

    Module names stay the base model's. Several adapters are added one after the other. Where an adapted weight is tied
    to another module's, only the adapted module changes, as PEFT computes it unmerged. Embeddings get as many rows as
    the adapter stores. `say` is told what is unusual.

    Raises:
        DataMissingError: some of its tensors have no place in the model, or it has none.
        InputError: the adapter does not fit the model, or is of a kind that cannot be merged or kept.
    """
    refuse_offloaded(model, folder)
    adapter = read_adapter(model, folder, say)
    plain = read_plain_lora(model, adapter)
    return _add_wrapped(model, adapter, say) if plain is None else _add_plain(model, adapter, plain, say)


def with_adapter(model: PreTrainedModel, folder: Path, say: Say = warn) -> PreTrainedModel:
    """A second model: `model` with a peft adapter added as by `add_adapter`, to the bit; `model` stays as it is.

    The two share every weight that a plain LoRA adapter leaves alone. For other kinds all weights are copied.

    Raises:
        DataMissingError, InputError: as `add_adapter`.
    """
    refuse_offloaded(model, folder)
    adapter = read_adapter(model, folder, say)
    plain = read_plain_lora(model, adapter)
    if plain is None:
        return _add_wrapped(copy.deepcopy(model), adapter, say)
    shared = (*model.parameters(), *model.buffers())
    return _add_plain(copy.deepcopy(model, {id(tensor): tensor for tensor in shared}), adapter, plain, say)


@torch.no_grad()
def _add_plain(
    model: PreTrainedModel, adapter: AdapterFile, factors: Sequence[LoraFactors], say: Say
) -> PreTrainedModel:
    """Add plain LoRA; puts new weights in the place of old ones and writes into none."""
    lacking = without_factors(model, adapter, factors)
    if lacking:
        say(STORES_NOTHING.format(folder=adapter.folder, count=len(lacking), first=lacking[0]))
    if not any(bool(value.any()) for key, value in adapter.tensors.items() if "lora_B" in key):
        say(f"{adapter.folder}: it changes nothing: all its B are zero")
    tied = _tied_weights(model)
    for one in factors:
        layer: Any = model.get_submodule(one.layer)
        if _own_weight(layer) in tied:
            _mark_untied(model)
        if layer.weight.dtype.itemsize < 4:
            _keep(model, _Factors(one.layer, one.down, one.up * one.scale))
            continue
        product = one.up @ one.down
        change = (product.T if isinstance(layer, Conv1D) else product) * one.scale
        layer.weight = nn.Parameter(layer.weight + change, requires_grad=False)
    model.eval().requires_grad_(False)
    return model


def _own_weight(module: nn.Module) -> int:
    """Which weight a module has itself; a PEFT wrapper's `weight` is its base layer's."""
    return id(module._parameters.get("weight"))


def _tied_weights(model: nn.Module) -> set[int]:
    """The weights that several modules have."""
    counts = Counter(map(_own_weight, model.modules()))
    return {weight for weight, count in counts.items() if count > 1} - {id(None)}


def _mark_untied(model: PreTrainedModel) -> None:
    """The configuration says from now on that embedding and output matrix are not tied."""
    for config in (model.config, model.config.get_text_config()):
        if getattr(config, "tie_word_embeddings", False):
            config.tie_word_embeddings = False


def _add_wrapped(model: PreTrainedModel, adapter: AdapterFile, say: Say) -> PreTrainedModel:
    """Add an adapter of any kind through PEFT; writes into the model's weights."""
    _resize_embeddings(model, adapter, say)
    notes: list[str] = []
    with quiet_transformers():
        wrapped = _wrapped(model, adapter, notes.append)
        if _narrow(wrapped):
            _untie(wrapped)
            found = _factors(wrapped, adapter.folder)
            replaced = _replaced(wrapped)
            plain = wrapped.unload()
            for factors in found:
                _keep(plain, factors)
            for name, module in replaced.items():
                plain.set_submodule(name, module)
        else:
            plain = _merged(wrapped, adapter.folder)
    for line in notes:
        say(line)
    plain.eval().requires_grad_(False)
    return cast(PreTrainedModel, plain)


def _merged(wrapped: Any, folder: Path) -> Any:
    """The base model with the adapter in its weights.

    Raises:
        InputError: PEFT cannot merge this adapter, or makes another model of it.
    """
    kind = wrapped.peft_config["default"].peft_type
    what = f"this adapter ({getattr(kind, 'value', kind)}) cannot be merged"
    remedy = "Use LoRA or another mergeable kind, over a base model that is not quantised."
    _untie(wrapped)
    try:
        unmerged = _probed(wrapped)
        plain = wrapped.merge_and_unload()
        merged = _probed(plain)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # only PEFT and a forward pass run here; no class covers what they raise
        raise InputError(f"{what}: {last_line(error)}", where=str(folder), remedy=remedy) from error
    if unmerged is not None and merged is not None and bool(unmerged.isfinite().all()):
        apart = float((merged - unmerged).norm() / unmerged.norm().clamp_min(1e-30))
        if not apart <= _MERGE_TOLERANCE:
            changed = (
                f"the merged model's logits differ by {apart:.2g} of their size from those beside its base"
            )
            raise InputError(f"{what}: {changed}", where=str(folder), remedy=remedy)
    return plain


@torch.no_grad()
def _probed(model: Any) -> Tensor | None:
    """Logits of a few tokens; None where there are no weights, only their sizes."""
    weight = next(model.parameters())
    if weight.is_meta:
        return None
    model.eval()
    ids = torch.arange(_PROBE, device=weight.device)[None] % model.config.get_text_config().vocab_size
    logits: Tensor = model(input_ids=ids, use_cache=False).logits.float()
    return logits


@torch.no_grad()
def _resize_embeddings(model: PreTrainedModel, adapter: AdapterFile, say: Say) -> None:
    """Give the embeddings as many rows as the adapter was trained with.

    Raises:
        InputError: it was trained with more tokens and does not store their embeddings.
    """
    modules = {id(module): name for name, module in model.named_modules()}
    held: Any = (model.get_input_embeddings(), model.get_output_embeddings())
    own = len(held[0].weight)
    whole: set[int] = set()
    partial: set[int] = set()
    for module in held:
        name = PREFIX + modules.get(id(module), "?")
        for suffix, dimension, stored in (
            (".weight", 0, whole), (".base_layer.weight", 0, whole),
            (".lora_embedding_A", 1, partial), (".lora_B.weight", 0, partial),
        ):  # fmt: skip
            tensor = adapter.tensors.get(name + suffix)
            if tensor is not None and tensor.ndim == 2:
                stored.add(tensor.shape[dimension])
    indices = adapter.config.get("trainable_token_indices") or adapter.config.get("token_indices") or ()
    listed = [i for some in indices.values() for i in some] if isinstance(indices, dict) else list(indices)
    if listed and max(listed) >= own:
        whole.add(max(listed) + 1)
    rows = max(whole, default=own)
    if partial - {rows}:
        raise InputError(
            f"it was trained with {max(partial)} tokens, its base model has {own}, and it does not store the new ones",
            where=str(adapter.folder),
            remedy="Save it again with save_embedding_layers=True.",
        )
    if rows != own:
        if held[1] is not None and held[0].weight is not held[1].weight:
            _mark_untied(model)  # whatever its config.json says: resizing would tie them
        model.resize_token_embeddings(rows, mean_resizing=False)
        resized: Any = (model.get_input_embeddings(), model.get_output_embeddings())
        for module in resized:
            if module is not None:  # what the adapter does not store must not be random
                module.weight[own:] = 0
        say(f"{adapter.folder}: embeddings resized from {own} to {rows} tokens, as the adapter stores them")


def _wrapped(model: PreTrainedModel, adapter: AdapterFile, say: Say) -> Any:
    """The model inside PEFT's wrapper, with every stored tensor of the adapter in its place."""
    from peft import PeftConfig, PeftModel
    from peft.auto import MODEL_TYPE_TO_PEFT_MODEL_MAPPING

    try:
        with as_folder(adapter) as place:
            config: Any = PeftConfig.from_pretrained(place)
            config.inference_mode = True
            kind = MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(config.task_type, PeftModel)
            wrapped: Any = kind(cast(Any, model), config)
            mapping = getattr(model, "_checkpoint_conversion_mapping", {})
            result = wrapped.load_adapter(place, "default", use_safetensors=True, key_mapping=mapping)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # raised by PEFT for a file of the user's
        if isinstance(error, KeyError) and str(error.args[0]).startswith(PREFIX):
            raise DataMissingError(
                f"it does not store {error.args[0]}, which its configuration says it does (modules_to_save, …)",
                where=str(adapter.folder),
                remedy="Save it again from the trained model (with ZeRO-3 or FSDP: gather the weights first).",
            ) from error
        raise InputError(
            f"the adapter does not fit its base model: {last_line(error)}",
            where=str(adapter.folder),
            remedy="Check base_model_name_or_path in its adapter_config.json.",
        ) from error
    refuse_unused(adapter.folder, result.unexpected_keys, len(adapter.tensors))
    lacking = sorted({name.partition(".lora_")[0].removeprefix(PREFIX) for name in result.missing_keys})
    if lacking and config.peft_type == "LORA":  # other kinds make some of their tensors anew, from a seed
        say(STORES_NOTHING.format(folder=adapter.folder, count=len(lacking), first=lacking[0]))
    return wrapped


def _untie(wrapped: Any) -> None:
    """Give adapted layers whose weight is tied to another module's a weight of their own."""
    model = wrapped.get_base_model()
    tied = _tied_weights(model)
    for _, adapted in _adapted(wrapped):
        layer = adapted.get_base_layer()
        if _own_weight(layer) in tied:
            _mark_untied(model)
            layer.weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=False)


def _replaced(wrapped: Any) -> dict[str, nn.Module]:
    """The modules that an adapter stores whole, or token by token, in the base weights' dtype."""
    from peft.tuners.trainable_tokens.layer import TrainableTokensLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    found = {}
    for name, module in wrapped.get_base_model().named_modules():
        if (
            isinstance(module, TrainableTokensLayer) and name.rpartition(".")[0] not in found
        ):  # no LoRA beside it
            module.merge()
            found[name] = module.get_base_layer()
        if isinstance(module, AuxiliaryTrainingWrapper):
            dtype = next(module.original_module.parameters()).dtype
            merged = module.unload_and_optionally_merge_module(
                merge=True, safe_merge=False, adapter_names=None
            )
            found[name] = merged.to(dtype)
    return found


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
    from peft.tuners.trainable_tokens.layer import TrainableTokensLayer

    found = []
    for name, layer in _adapted(wrapped):
        if isinstance(
            layer, TrainableTokensLayer
        ):  # whole rows, as stored: nothing is rounded away (see `_replaced`)
            continue
        base = layer.get_base_layer()
        if getattr(base, "weight", torch.empty(0)).dtype.itemsize == 1:
            raise InputError(
                f"its base model is quantised ({name}: {type(base).__name__}), and adapters are added to plain weights",
                where=str(folder),
                remedy="Set base_model_name_or_path in its adapter_config.json to the model that was not quantised.",
            )
        plain = isinstance(layer, Linear) and isinstance(base, nn.Linear | Conv1D)
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
