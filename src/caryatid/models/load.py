"""Loading a backbone: hub id, local folder, GGUF file, adapter folder, or the embedded model."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..errors import InputError, UsageError
from .adapters import add_adapter
from .chat_options import ChatOptions
from .convert import ensure_embedded
from .device_map import DeviceMap, check_device_map
from .identity import asked_as
from .layout import decoder_layers
from .placement import check_placed, described, is_split
from .quiet import Say, last_line, quiet_transformers, warn
from .resolve import resolve
from .template import ChatFormat
from .weights import check_finite, load_weights

__all__ = ["LoadedModel", "choose_device", "ensure_embedded", "has_device", "load_model", "load_tokenizer"]

_DEVICES = "Use cpu, cuda, xpu or mps."
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class LoadedModel:
    """A decoder-only language model ready for measurement.

    Attributes:
        model: in evaluation mode, no parameter requires a gradient.
        tokenizer: pads on the left.
        spec: what the user named.
        identity: sha256 standing for weights, adapters, configuration, tokenizer and chat options (for a GGUF file with
            default options: the file's own).
        dtype: of the weights and of the key-value cache.
        device: of the embeddings: where token ids go, and where logits come back to. `split`: blocks may lie elsewhere.
        options: how its chat template is filled in.
        notes: what is unusual about it: what was renamed, left out, or does not go together.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    spec: str
    identity: str
    dtype: torch.dtype
    device: torch.device
    options: ChatOptions = field(default_factory=ChatOptions)
    notes: tuple[str, ...] = ()

    @property
    def split(self) -> bool:
        """Whether its blocks lie on several devices, or some are offloaded (`device_map`)."""
        return is_split(self.model)

    def chat(self, system: str | None = None) -> ChatFormat:
        """Its chat format with these options.

        Raises:
            InputError: as `ChatFormat`.
        """
        return ChatFormat(self.tokenizer, system, self.options, self.spec)


def _devices(kind: str) -> int:
    """How many devices of a kind there are here."""
    if kind == "mps":
        return int(torch.backends.mps.is_available())
    return 1 if kind == "cpu" else int(getattr(torch, kind).device_count())


def has_device(device: torch.device) -> bool:
    """Whether this machine has the device."""
    return (device.index or 0) < _devices(device.type)


def choose_device(device: str | None) -> torch.device:
    """The named device; None means the first of CUDA, XPU, MPS and CPU that there is.

    Raises:
        UsageError: there is no such device, or caryatid does not run on it.
    """
    chosen_kind = next(kind for kind in ("cuda", "xpu", "mps", "cpu") if _devices(kind))
    try:
        chosen = torch.device(device or chosen_kind)
    except RuntimeError as error:
        raise UsageError(f"unknown device {device!r}", where="device", remedy=_DEVICES) from error
    if chosen.type not in ("cpu", "cuda", "xpu", "mps"):
        raise UsageError(f"cannot run on device {device!r}", where="device", remedy=_DEVICES)
    if not has_device(chosen):
        raise UsageError(f"there is no device {device!r} here", where="device", remedy="Use cpu.")
    return chosen


def _placed(
    device: str | None, device_map: DeviceMap | None
) -> tuple[torch.device, str | dict[str, Any] | None]:
    """The device that decides precision and kernels, and where modules go (None: all on the CPU).

    Raises:
        UsageError: both are given, a map that places nothing, or a device that is not here.
    """
    if device_map is None:
        chosen = choose_device(device)
        return chosen, None if chosen.type == "cpu" else {"": chosen}
    if device is not None:
        raise UsageError(
            f"device {device!r} beside a device_map", where="device", remedy="Leave one of them out."
        )
    check_device_map(device_map)
    chosen = choose_device(None)
    if isinstance(device_map, str):
        return chosen, device_map
    named = {
        name: f"{chosen.type}:{place}" if isinstance(place, int) else place
        for name, place in device_map.items()
    }
    return chosen, {n: place if place == "disk" else str(choose_device(place)) for n, place in named.items()}


def _choose_dtype(dtype: str | None, device: torch.device) -> torch.dtype | str:
    if dtype is None:
        return torch.float32 if device.type == "cpu" else "auto"
    if dtype not in _DTYPES:
        raise UsageError(f"unknown dtype {dtype!r}", where="dtype", remedy=f"Use {', '.join(_DTYPES)}.")
    return _DTYPES[dtype]


def tokenizer_in(folder: Path, spec: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder, ready for batches padded on the left.

    Raises:
        InputError: it cannot be loaded; names `spec`.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder), trust_remote_code=trust_remote_code, local_files_only=True
        )
    except Exception as error:  # raised by transformers for files of the user's
        raise InputError(
            f"its tokenizer cannot be loaded: {last_line(error)}",
            where=spec,
            remedy="Put the model's tokenizer.json and tokenizer_config.json beside its weights.",
        ) from error
    if not tokenizer.chat_template:
        tokenizer.chat_template = _processors_template(folder)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token  # filling only: masks never come from ids
    return cast(PreTrainedTokenizerBase, tokenizer)


def _processors_template(folder: Path) -> str | None:
    """The chat template that a vision-language model's processor keeps in a file which tokenizers pass over."""
    try:
        found = json.loads((folder / "chat_template.json").read_text(encoding="utf-8")).get("chat_template")
    except (OSError, ValueError, AttributeError):
        return None
    return found if isinstance(found, str) else None


def fit_vocabulary(
    tokenizer: PreTrainedTokenizerBase, embeddings: int, spec: str, options: ChatOptions, say: Say
) -> None:
    """Refuse a tokenizer whose prompts or control tokens the model has no embedding for; another filling token will do.

    Its whole length may be larger: reading a GGUF file can add an unknown-token that never occurs.

    Raises:
        InputError: it writes such a token, or its chat template cannot be used.
    """
    if (tokenizer.pad_token_id or 0) >= embeddings:
        say(
            f"{spec}: its tokenizer's padding token {tokenizer.pad_token_id} has no embedding and is not used"
        )
        tokenizer.pad_token = tokenizer.eos_token
    used = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    if tokenizer.chat_template or options.template:
        used += ChatFormat(tokenizer, None, options, spec).ids("Hi")
    if max(used, default=0) >= embeddings:
        raise InputError(
            f"its tokenizer writes token {max(used)}, the model has {embeddings}",
            where=spec,
            remedy="Use the tokenizer that belongs to the model.",
        )


def load_tokenizer(
    spec: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """A model's tokenizer without its weights.

    Raises:
        DataMissingError: the model is nowhere. InputError: its tokenizer cannot be loaded.
    """
    found = resolve(spec, revision=revision, trust_remote_code=trust_remote_code)
    with quiet_transformers():
        return tokenizer_in(found.tokenizer_folder, spec, trust_remote_code)


def load_model(
    spec: str,
    *,
    dtype: str | None = None,
    device: str | None = None,
    device_map: DeviceMap | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    options: ChatOptions | None = None,
) -> LoadedModel:
    """Load a decoder-only model for measurement.

    Args:
        spec: hub id, model folder, `.gguf` file, adapter folder (added to its base in memory), `embedded`,
            or `embedded-refusing`.
        dtype: "float32", "bfloat16" or "float16". Default: float32 on CPU, the checkpoint's own elsewhere.
        device: cpu, cuda, xpu or mps; default the first of CUDA, XPU and MPS that there is, else the CPU.
        device_map: instead of `device`: its blocks are placed over several devices as transformers does it.
        revision: of a hub model.
        trust_remote_code: run code from the model's repository.
        options: how its chat template is filled in; part of its identity.

    What a user should know about it (`LoadedModel.notes`) is also issued as `LoadWarning`.

    Raises:
        DataMissingError: the model is nowhere, damaged, or some of what is stored has no place in it.
        InputError: it cannot be used.
        UsageError: unknown dtype, device or device map, or a cache that cannot be written.
    """
    place, places = _placed(device, device_map)
    precision = _choose_dtype(dtype, place)
    found = resolve(spec, revision=revision, trust_remote_code=trust_remote_code)
    options = options or ChatOptions()
    notes = list(found.notes)
    with quiet_transformers():
        tokenizer = tokenizer_in(found.tokenizer_folder, spec, trust_remote_code)
    model = load_weights(
        found.folder,
        spec,
        dtype=precision,
        device_map=places,
        trust_remote_code=trust_remote_code,
        say=notes.append,
    )
    check_placed(model, spec)
    if where := described(model):
        notes.append(f"{spec}: its blocks lie on several devices ({where})")
    for adapter in found.adapters:
        model = add_adapter(model, adapter, notes.append)
    model.eval().requires_grad_(False)
    check_finite(model, spec)
    decoder_layers(model)  # an unknown layout is refused here, not in the middle of a study
    embedding = cast(nn.Embedding, model.get_input_embeddings())
    fit_vocabulary(tokenizer, embedding.weight.shape[0], spec, options, notes.append)
    for line in notes:
        warn(line)
    identity = asked_as(found.identity, options.identity)
    weight = embedding.weight
    return LoadedModel(model, tokenizer, spec, identity, weight.dtype, weight.device, options, tuple(notes))
