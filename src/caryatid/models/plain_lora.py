"""Plain LoRA adapters read from their files: what they add to which linear layers, without wrapping a model.

PEFT draws random factors for every layer before it loads the stored ones; over a few hundred layers that takes longer
than everything else about opening an anchor. What is not certainly plain LoRA is left to PEFT.
"""

import re
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from .adapter_files import AdapterFile

_KEY = re.compile(r"base_model\.model\.(?P<layer>.+)\.lora_(?P<side>[AB])\.weight")
_REQUIRED = {"peft_type": "LORA", "bias": "none", "init_lora_weights": True}
# Settings that say where factors are, how they were trained, or what they are for. Any other one that is set means more
# than W + scale · B A.
_HARMLESS = frozenset(
    {"auto_mapping", "base_model_name_or_path", "exclude_modules", "fan_in_fan_out", "inference_mode", "layers_pattern"}
    | {"lora_alpha", "lora_dropout", "megatron_core", "peft_version", "qalora_group_size", "r"}
    | {"revision", "target_modules", "task_type"}
)  # fmt: skip


class LoraFactors(NamedTuple):
    """What an adapter adds to one layer: scale · B A, float32.

    Attributes:
        layer: name of the module. down: A. up: B. scale: α/r.
    """

    layer: str
    down: Float[Tensor, "r d_in"]
    up: Float[Tensor, "d_out r"]
    scale: float


def read_plain_lora(model: PreTrainedModel, adapter: AdapterFile) -> list[LoraFactors] | None:
    """The factors of a plain LoRA adapter on linear layers of `model`, on their device.

    None where the adapter is, or may be, something else, or does not fit the model.
    """
    if not _is_plain(adapter.config):
        return None
    config = adapter.config
    sides: dict[str, dict[str, Tensor]] = {}
    for key, value in adapter.tensors.items():
        match = _KEY.fullmatch(key)
        if match is None:
            return None
        sides.setdefault(match["layer"], {})[match["side"]] = value
    modules = dict(model.named_modules())
    found = []
    for layer, pair in sides.items():
        weight = _weight(modules.get(layer))
        if weight is None or set(pair) != {"A", "B"} or pair["B"].ndim != 2:
            return None
        down, up = (pair[side].to(weight.device, torch.float32) for side in "AB")
        if (down.shape, up.shape) != ((config["r"], weight.shape[1]), (weight.shape[0], config["r"])):
            return None
        found.append(LoraFactors(layer, down, up, config["lora_alpha"] / config["r"]))
    return found or None


def without_factors(model: PreTrainedModel, adapter: AdapterFile, found: Sequence[LoraFactors]) -> list[str]:
    """Layers that the adapter's configuration names and for which it stores nothing."""
    if not adapter.config.get("target_modules"):
        return []
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    known = {field.name for field in fields(LoraConfig)}
    config = LoraConfig(**{name: value for name, value in adapter.config.items() if name in known})
    layers = [name for name, module in model.named_modules() if _weight(module) is not None]
    wanted = {name for name in layers if check_target_module_exists(config, name)}
    return sorted(wanted - {one.layer for one in found})


def _is_plain(config: Any) -> bool:
    if not isinstance(config, dict) or any(config.get(name) != value for name, value in _REQUIRED.items()):
        return False
    r, alpha = config.get("r"), config.get("lora_alpha")
    if not (isinstance(r, int) and isinstance(alpha, int | float) and r > 0 and alpha > 0):
        return False
    return not any(value for name, value in config.items() if name not in _HARMLESS | _REQUIRED.keys())


def _weight(module: nn.Module | None) -> Float[Tensor, "d_out d_in"] | None:
    """The weight of a linear layer as x ↦ W x; None where it is quantised."""
    if isinstance(module, Conv1D):
        return module.weight.T
    return module.weight if isinstance(module, nn.Linear) and module.weight.dtype.itemsize > 1 else None
