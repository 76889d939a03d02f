"""Loading a backbone: hub id, local folder, GGUF file, adapter folder, or the embedded model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from caryatid.errors import DataMissingError, InputError, UsageError
from caryatid.models.adapters import add_adapter
from caryatid.models.convert import ensure_embedded
from caryatid.models.layout import decoder_layers
from caryatid.models.quiet import quiet_transformers
from caryatid.models.resolve import resolve
from caryatid.models.template import ChatFormat

__all__ = ["LoadedModel", "choose_device", "ensure_embedded", "load_model", "load_tokenizer"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class LoadedModel:
    """A decoder-only language model ready for measurement.

    Attributes:
        model: in evaluation mode, no parameter requires a gradient.
        tokenizer: pads on the left.
        spec: what the user named.
        identity: sha256 standing for weights, configuration and tokenizer (for a GGUF file: the file's own).
        dtype: of the weights and of the key-value cache.
        device: of the weights.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    spec: str
    identity: str
    dtype: torch.dtype
    device: torch.device


def choose_device(device: str | None) -> torch.device:
    """The named device; None means CUDA where there is one.

    Raises:
        UsageError: there is no such device, or caryatid does not run on it.
    """
    try:
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise UsageError(f"unknown device {device!r}", where="device", remedy="Use cpu or cuda.") from error
    if chosen.type not in ("cpu", "cuda"):
        raise UsageError(f"cannot run on device {device!r}", where="device", remedy="Use cpu or cuda.")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"there is no device {device!r} here", where="device", remedy="Use cpu.")
    return chosen


def _choose_dtype(dtype: str | None, device: torch.device) -> torch.dtype | str:
    if dtype is None:
        return torch.float32 if device.type == "cpu" else "auto"
    if dtype not in _DTYPES:
        raise UsageError(f"unknown dtype {dtype!r}", where="dtype", remedy=f"Use {', '.join(_DTYPES)}.")
    return _DTYPES[dtype]


def _load_tokenizer(folder: Path, spec: str, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder), trust_remote_code=trust_remote_code, local_files_only=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"its tokenizer cannot be loaded: {_first_line(error)}",
            where=spec,
            remedy="Put the model's tokenizer.json and tokenizer_config.json beside its weights.",
        ) from error
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token  # filling only: masks never come from ids
    return cast(PreTrainedTokenizerBase, tokenizer)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _load_weights(
    folder: Path, spec: str, dtype: torch.dtype | str, device: torch.device, trust_remote_code: bool
) -> PreTrainedModel:
    try:
        loading: Any = AutoModelForCausalLM.from_pretrained(
            str(folder),
            dtype=dtype,
            device_map={"": device} if device.type != "cpu" else None,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, in one line
        )
    except SafetensorError as error:
        raise DataMissingError(
            f"its weights are damaged: {_first_line(error)}", where=spec, remedy="Download the model again."
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(f"it cannot be loaded: {_first_line(error)}", where=spec) from error
    model, info = loading
    for problem in ("missing_keys", "mismatched_keys"):
        keys = sorted(str(key) for key in info.get(problem, ()))
        if keys:
            raise InputError(
                f"{len(keys)} {problem.replace('_', ' ')} in its weights, first {keys[0]}",
                where=spec,
                remedy="Use weights that belong to its config.json.",
            )
    return cast(PreTrainedModel, model)


def _check_vocabulary(tokenizer: PreTrainedTokenizerBase, embeddings: int, spec: str) -> None:
    """Refuse a tokenizer whose prompts or control tokens the model has no embedding for.

    Its whole length may be larger: reading a GGUF file can add an unknown-token that never occurs.
    """
    used = [token for token in (tokenizer.eos_token_id, tokenizer.pad_token_id) if token is not None]
    if tokenizer.chat_template:
        used += ChatFormat(tokenizer).ids("Hi")
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
        return _load_tokenizer(found.tokenizer_folder, spec, trust_remote_code)


def load_model(
    spec: str,
    *,
    dtype: str | None = None,
    device: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> LoadedModel:
    """Load a decoder-only model for measurement.

    Args:
        spec: hub id, model folder, `.gguf` file, adapter folder (added to its base in memory), or `embedded`.
        dtype: "float32", "bfloat16" or "float16". Default: float32 on CPU, the checkpoint's own on CUDA.
        device: default CUDA where there is one.
        revision: of a hub model.
        trust_remote_code: run code from the model's repository.

    Raises:
        DataMissingError: the model is nowhere, or damaged. InputError: it cannot be used.
        UsageError: unknown dtype or device, or a cache that cannot be written.
    """
    place = choose_device(device)
    precision = _choose_dtype(dtype, place)
    found = resolve(spec, revision=revision, trust_remote_code=trust_remote_code)
    with quiet_transformers():
        tokenizer = _load_tokenizer(found.tokenizer_folder, spec, trust_remote_code)
        model = _load_weights(found.folder, spec, precision, place, trust_remote_code)
    for adapter in found.adapters:
        model = add_adapter(model, adapter)
    model.eval().requires_grad_(False)
    decoder_layers(model)  # an unknown layout is refused here, not in the middle of a study
    embedding = cast(nn.Embedding, model.get_input_embeddings())
    _check_vocabulary(tokenizer, embedding.num_embeddings, spec)
    return LoadedModel(
        model, tokenizer, spec, found.identity, embedding.weight.dtype, embedding.weight.device
    )
