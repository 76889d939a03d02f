"""A PEFT adapter's files: its configuration checked, its tensors named as the base model's modules are.

Everything here is known before the base model's weights are needed, but for the names of its modules.
"""

import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..errors import DataMissingError, InputError
from .quiet import Say, last_line

PREFIX = "base_model.model."
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX_PARTS = ["base_model", "model"]
# Modules that training libraries put around a model (torch.compile, DDP, FSDP, Fabric, activation checkpointing), and
# the text part of a vision-language model. They are left out of a name where the base model has no such module.
_WRAPPERS = frozenset(
    {"_orig_mod", "module", "_fsdp_wrapped_module", "_forward_module", "_checkpoint_wrapped_module"}
    | {"_ddp_module", "language_model", "text_model"}
)  # fmt: skip
_OWN = frozenset(
    {"default", "modules_to_save"}
)  # inserted by PEFT into a live adapter's names, not into saved ones


class AdapterFile(NamedTuple):
    """An adapter as stored.

    Attributes:
        folder: where it lies. config: its adapter_config.json.
        tensors: by name, in the base model's module names after `PREFIX`.
        renamed: whether some of the names differ from the stored ones.
    """

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    renamed: bool


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """An adapter's configuration, of a kind that can be added to a model's weights.

    Raises:
        InputError: not JSON, no or an unknown `peft_type`, a kind that cannot be merged, or a setting that the
            installed peft does not know and would ignore.
    """
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"not readable as JSON: {last_line(error)}", where=str(path), remedy="Save it again."
        ) from error
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if not kind:
        raise InputError(
            "it does not say what kind of adapter this is (peft_type)",
            where=str(path),
            remedy='Set it, for LoRA: "peft_type": "LORA".',
        )
    known = {str(getattr(name, "value", name)): name for name in PEFT_TYPE_TO_CONFIG_MAPPING}
    upgrade = "Upgrade peft (pip install -U peft), or use an adapter that this version knows."
    if kind not in known:
        raise InputError(
            f"the installed peft knows no adapter type {kind!r}", where=str(path), remedy=upgrade
        )
    if not hasattr(PEFT_TYPE_TO_TUNER_MAPPING[known[kind]], "merge_and_unload"):
        raise InputError(
            f"this kind of adapter ({kind}) cannot be merged",
            where=str(folder),
            remedy="Use LoRA or another mergeable kind.",
        )
    settings = {field.name for field in fields(PEFT_TYPE_TO_CONFIG_MAPPING[known[kind]])}
    ignored = sorted(name for name, value in config.items() if value and name not in settings)
    if ignored:
        raise InputError(
            f"the installed peft does not know its setting {ignored[0]!r}", where=str(path), remedy=upgrade
        )
    return dict(config)


def _walk(model: nn.Module, parts: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """A tensor's name as (path of a module, what follows it, what was left out)."""
    here, path, dropped = model, [], []
    for index, part in enumerate(parts):
        child = here._modules.get(part)
        if child is not None:
            here = child
            path.append(part)
        elif part in _WRAPPERS:
            dropped.append(part)
        else:
            return path, list(parts[index:]), dropped
    return path, [], dropped


class _Name(NamedTuple):
    """A stored name in the base model's terms.

    Attributes:
        key: with `PREFIX`. layer: the adapted module; empty where the tensor is a module's own, or has no place.
        dropped: what was left out of it.
    """

    key: str
    layer: str
    dropped: list[str]


def _named(model: nn.Module, key: str) -> _Name:
    parts, dropped = key.split("."), []
    while parts and parts[0] in _WRAPPERS and parts[0] not in model._modules:
        dropped.append(parts.pop(0))
    while parts[:2] == _PREFIX_PARTS:
        if len(parts) < len(key.split(".")) - len(dropped):  # a PEFT model in another one
            dropped.append("base_model.model")
        parts = parts[2:]
    path, rest, inside = _walk(model, parts)
    if not path:
        return _Name(key, "", [])
    own = [index for index, part in enumerate(rest) if part in _OWN or _adapters_name(rest, index)]
    kept = [part for index, part in enumerate(rest) if index not in own]
    dropped += [*inside, *(rest[index] for index in own)]
    adapted = bool(kept) and kept[0] not in ("weight", "bias", "base_layer", "token_adapter")
    return _Name(PREFIX + ".".join([*path, *kept]), ".".join(path) if adapted else "", dropped)


def _adapters_name(rest: Sequence[str], index: int) -> bool:
    """Whether a part is the name that a live LoRA adapter has inside its model, which is not saved with it."""
    return index > 0 and rest[index - 1].startswith("lora_") and rest[index] not in ("weight", "bias")


def _renamed_settings(config: dict[str, Any], dropped: set[str], layers: set[str]) -> dict[str, Any]:
    """The settings that name modules, in the base model's terms; else PEFT would find no modules, or no ranks."""
    changed = dict(config)
    for setting in ("rank_pattern", "alpha_pattern", "trainable_token_indices"):
        if isinstance(config.get(setting), dict):
            changed[setting] = {_without(name, dropped): value for name, value in config[setting].items()}
    targets = config.get("target_modules")
    if isinstance(targets, str) and targets != "all-linear":
        changed |= {"target_modules": sorted(layers), "exclude_modules": None}
    elif isinstance(targets, list):
        changed["target_modules"] = [_without(str(name), dropped) for name in targets]
    return changed


def _without(name: str, dropped: set[str]) -> str:
    for part in dropped:
        name = re.sub(rf"(?<![^.]){re.escape(part)}\\?\.", "", name)
    return name


def read_adapter(model: nn.Module, folder: Path, say: Say) -> AdapterFile:
    """An adapter's tensors under the names that they have in `model`; `say` is told of renamed ones.

    Raises:
        DataMissingError: it stores no tensor, its file is damaged, or two names mean the same tensor.
        InputError: as `read_adapter_config`, or a tensor is not finite.
    """
    config = read_adapter_config(folder)
    path = folder / WEIGHTS
    if not path.is_file() and (folder / "adapter_model.bin").is_file():
        raise InputError(
            "its tensors are pickled (adapter_model.bin) and not loaded for safety",
            where=str(folder),
            remedy="Save it again with peft: save_pretrained writes safetensors.",
        )
    try:
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataMissingError(
            f"does not fit its base model: its tensors cannot be read: {last_line(error)}",
            where=str(path),
            remedy="Save or download it again.",
        ) from error
    empty = sorted(key for key, value in stored.items() if not value.numel())
    if empty or not stored:
        what = f"{len(empty)} of its {len(stored)} tensors are empty, first {empty[0]}" if empty else ""
        raise DataMissingError(
            what or "the adapter stores no tensor, so that it would change nothing",
            where=str(path),
            remedy="Save it again from the trained model (with ZeRO-3 or FSDP: gather the weights first).",
        )
    broken = sorted(key for key, value in stored.items() if not torch.isfinite(value.float()).all())
    if broken:
        raise InputError(
            f"{len(broken)} of its {len(stored)} tensors are not finite, first {broken[0]}",
            where=str(path),
            remedy="Use a checkpoint from before the training diverged.",
        )
    names = {key: _named(model, key) for key in stored}
    unknown = [
        key for key, one in names.items() if "base_model" in one.key.removeprefix(PREFIX).split(".")[1:]
    ]
    refuse_unused(folder, unknown, len(stored))  # inside something whose name is not known
    tensors: dict[str, Tensor] = {}
    for key, value in stored.items():
        name = names[key].key
        if name in tensors:
            raise DataMissingError(f"two of its tensors are {name}", where=str(path), remedy="Save it again.")
        tensors[name] = value
    dropped = {part for one in names.values() for part in one.dropped}
    if dropped:
        say(f"{folder}: its tensors' names were read without {', '.join(sorted(dropped))}")
        config = _renamed_settings(config, dropped, {one.layer for one in names.values()} - {""})
    return AdapterFile(folder, config, tensors, tensors.keys() != stored.keys())


@contextmanager
def as_folder(adapter: AdapterFile) -> Iterator[str]:
    """A folder from which PEFT reads the adapter: its own, or a temporary one with the new names."""
    if not adapter.renamed:
        yield str(adapter.folder)
        return
    with tempfile.TemporaryDirectory() as place:
        Path(place, CONFIG).write_text(json.dumps(adapter.config), encoding="utf-8")
        save_file(adapter.tensors, Path(place, WEIGHTS))
        yield place


def refuse_unused(folder: Path, unused: Sequence[str], stored: int) -> None:
    """Refuse an adapter of which some tensors have no place in the base model.

    Raises:
        DataMissingError: there are some.
    """
    if unused:
        shown = ", ".join(sorted(unused)[:3]) + (", …" if len(unused) > 3 else "")
        raise DataMissingError(
            f"{len(unused)} of the adapter's {stored} tensors have no place in its base model: {shown}",
            where=str(folder),
            remedy="Check base_model_name_or_path in its adapter_config.json, or save the adapter again unwrapped.",
        )
