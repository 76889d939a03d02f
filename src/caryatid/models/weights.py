"""A checkpoint's weights as a model: what its configuration asks for works or is named, nothing stored is unused."""

import importlib.util
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
)
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from ..errors import CaryatidError, DataMissingError, InputError
from .quiet import Say, last_line, quiet_transformers
from .weight_files import stored

NO_ADAPTER: dict[str, str] = {"subfolder": "no-adapter"}
"""For `adapter_kwargs`: transformers would add an adapter that lies beside the weights, without a word."""

# Tensors that a causal language model has no use for. The reasons are shown.
_UNNEEDED = (
    (re.compile(r"rotary_emb\.inv_freq$|\.(attn|attention)\.(masked_)?bias$|position_ids$"), "buffers"),
    (re.compile(r"(^|\.)(mtp|nextn)[._]"), "layers that predict further tokens"),
    (
        re.compile(r"(^|\.)(vision|visual|image|audio|video|speech|embed_vision|embed_audio|multi_modal|mm_)"),
        "parts for images and sound",
    ),
)  # fmt: skip
_SCALES = re.compile(
    r"(scale|scales|scale_inv|zero_point|qzeros|qweight|qweight_type|g_idx|absmax|quant_map|quant_state.*)$"
)
_LANGUAGE = {
    r"^(model\.)?language_model\.(?!lm_head)(model\.)?": "model.",
    r"^language_model\.lm_head": "lm_head",
}
_FLASH = {
    "flash_attention_2": "flash_attn",
    "flash_attention_3": "flash_attn_3",
    "flash_attention_4": "flash_attn_4",
}


def load_weights(
    folder: Path,
    spec: str,
    *,
    dtype: torch.dtype | str,
    device_map: str | dict[str, Any] | None,
    trust_remote_code: bool,
    say: Say,
) -> PreTrainedModel:
    """The model in a folder of safetensors, without an adapter that may lie beside it; None places it on the CPU.

    `say` is told what was changed or left out. Of a vision-language checkpoint the text part is loaded.

    Raises:
        DataMissingError: the weights are damaged, or hold tensors that the model does not use.
        InputError: transformers cannot load them, a package is missing, or tensors are missing.
    """
    config, mapping = _configuration(folder, spec, trust_remote_code, say)
    wrapper, integers = stored(folder, spec)
    if integers and _quantisation(config) is None:
        raise InputError(
            f"{len(integers)} of its weights are integers, first {integers[0]}, and nothing says what they stand for",
            where=spec,
            remedy="Put quantization_config into its config.json, or use its plain weights.",
        )
    if wrapper:
        say(f"{spec}: its tensors' names were read without {wrapper}")
        mapping = {f"^{re.escape(wrapper)}": "", **(mapping or {})}
    arguments: dict[str, Any] = {"config": config, "adapter_kwargs": NO_ADAPTER, "key_mapping": mapping}
    attention = _attention(config, spec, say)
    try:
        with quiet_transformers():
            loading: Any = _loader(config).from_pretrained(
                str(folder),
                dtype=dtype,
                device_map=device_map,
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below, in one line
                **attention,
                **{name: value for name, value in arguments.items() if value is not None},
            )
    except SafetensorError as error:
        raise DataMissingError(
            f"its weights are damaged: {last_line(error)}", where=spec, remedy="Download the model again."
        ) from error
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # raised by transformers for files of the user's
        raise _explained(error, config, spec) from error
    model, info = loading
    _check_keys(info, spec, say)
    return cast(PreTrainedModel, model)


def without_weights(folder: Path, spec: str, dtype: str | None, trust_remote_code: bool) -> PreTrainedModel:
    """The model in a folder with its modules and their sizes, on the meta device: nothing is read but config.json.

    Raises:
        InputError: transformers cannot make it.
    """
    config, _ = _configuration(folder, spec, trust_remote_code, lambda _line: None)
    _attention(config, spec, lambda _line: None)
    try:
        with quiet_transformers(), torch.device("meta"):
            model: Any = _loader(config).from_config(
                config, dtype=getattr(torch, dtype or "float32"), trust_remote_code=trust_remote_code
            )
    except Exception as error:  # transformers raises anything for configurations that it cannot build
        raise _explained(error, config, spec) from error
    return cast(PreTrainedModel, model.eval())


def _configuration(
    folder: Path, spec: str, trust_remote_code: bool, say: Say
) -> tuple[Any, dict[str, str] | None]:
    """The configuration to load with, and new names for tensors where only a part of the checkpoint is loaded."""
    try:
        with quiet_transformers():
            config: Any = AutoConfig.from_pretrained(
                str(folder), trust_remote_code=trust_remote_code, local_files_only=True
            )
    except Exception as error:  # raised by transformers, or by code that came with the model
        raise _explained(error, None, spec) from error
    mapping = None
    text = config.get_text_config()
    if text is not config and type(text) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        say(f"{spec}: this {config.model_type} checkpoint is loaded whole and is sent text only")
    elif text is not config:
        say(f"{spec}: only the text part of this {config.model_type} checkpoint is loaded")
        if getattr(text, "dtype", None) is None:
            text.dtype = getattr(config, "dtype", None)
        if hasattr(config, "quantization_config"):
            text.quantization_config = config.quantization_config
        config, mapping = text, _LANGUAGE
    text = config.get_text_config()
    for one in (config, text):
        one.return_dict = True  # where it says otherwise, outputs have no names
    pad, rows = getattr(text, "pad_token_id", None), getattr(text, "vocab_size", None)
    if isinstance(pad, int) and isinstance(rows, int) and not 0 <= pad < rows:
        say(f"{spec}: its pad_token_id {pad} is beyond its {rows} tokens and is not used")
        text.pad_token_id = None
    _check_rope(text, spec)
    method = _quantisation(config)
    if method is not None and method not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        raise InputError(
            f"it is quantised with {method}, which transformers does not know and would ignore"
            if method != "None"
            else "its quantization_config names no method (quant_method)",
            where=spec,
            remedy=f"Use its plain weights, or one of {', '.join(sorted(AUTO_QUANTIZATION_CONFIG_MAPPING))}.",
        )
    return config, mapping


def _loader(config: Any) -> Any:
    """The class of loaders: for text, or for a vision-language model whose text part has no class of its own."""
    images = (
        type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
        and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING
    )
    return AutoModelForImageTextToText if images else AutoModelForCausalLM


def _check_rope(config: Any, spec: str) -> None:
    """Refuse a rotary position scaling that transformers does not know."""
    found = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    for one in [found, *found.values()] if isinstance(found, dict) else ():
        kind = one.get("rope_type", one.get("type", "default")) if isinstance(one, dict) else "default"
        if kind not in ("default", "mrope", "proportional") and kind not in ROPE_INIT_FUNCTIONS:
            raise InputError(
                f"its position scaling (rope_type {kind!r}) is unknown to transformers",
                where=spec,
                remedy=f"Use the checkpoint's current config.json; known are {', '.join(sorted(ROPE_INIT_FUNCTIONS))}.",
            )


def _attention(config: Any, spec: str, say: Say) -> dict[str, str]:
    """Another implementation of attention where the one that the configuration asks for is not installed."""
    asked = getattr(config, "_attn_implementation", None)
    package = _FLASH.get(str(asked))
    if package is None or importlib.util.find_spec(package) is not None:
        return {}
    say(f"{spec}: it asks for {asked}, which is not installed ({package}); torch's own attention is used")
    config._attn_implementation = None
    return {}


def _explained(error: Exception, config: Any, spec: str) -> CaryatidError:
    """A user's error with the last line of transformers' own, and a remedy."""
    if isinstance(error, CaryatidError):
        return error
    reason = last_line(error)
    if isinstance(error, ImportError):
        method = _quantisation(config)
        remedy = "Install it, or use a checkpoint that does not need it"
        remedy += (
            f" (this one is quantised with {method}; its plain weights need nothing)." if method else "."
        )
        return InputError(f"it needs a package that is not installed: {reason}", where=spec, remedy=remedy)
    return InputError(
        f"it cannot be loaded: {reason}", where=spec, remedy="Check its config.json against its weights."
    )


def _quantisation(config: Any) -> str | None:
    settings = getattr(config, "quantization_config", None)
    if not settings:
        return None
    method = settings.get("quant_method") if isinstance(settings, dict) else settings.quant_method
    named = str(getattr(method, "value", method))
    if isinstance(settings, dict) and (settings.get("load_in_4bit") or settings.get("load_in_8bit")):
        return (
            "bitsandbytes_4bit" if settings.get("load_in_4bit") else "bitsandbytes_8bit"
        )  # as transformers does
    return named


def _check_keys(info: Any, spec: str, say: Say) -> None:
    unexpected = info.get("unexpected_keys", ())
    for problem in ("missing_keys", "mismatched_keys"):
        keys = sorted(str(key) for key in info.get(problem, ()))
        if keys and any(".lora_" in str(key) or ".base_layer." in str(key) for key in unexpected):
            raise InputError(
                "its weights are those of a model inside PEFT, with an adapter that is not merged",
                where=spec,
                remedy="Save the adapter alone (PEFT's save_pretrained), or call merge_and_unload before saving.",
            )
        if keys:
            raise InputError(
                f"{len(keys)} {problem.replace('_', ' ')} in its weights, first {keys[0]}",
                where=spec,
                remedy="Use weights that belong to its config.json.",
            )
    refuse_unused(unexpected, spec, say)


def refuse_unused(keys: Iterable[str], spec: str, say: Say) -> None:
    """Name stored tensors that are not needed; refuse others that the model does not use.

    Raises:
        DataMissingError: there are some.
    """
    unused = sorted(str(key) for key in keys)
    for pattern, what in _UNNEEDED:
        unneeded = [key for key in unused if pattern.search(key)]
        if unneeded:
            say(f"{spec}: {len(unneeded)} stored tensors are not needed ({what}), first {unneeded[0]}")
        unused = [key for key in unused if key not in unneeded]
    if not unused:
        return
    scales = [key for key in unused if _SCALES.search(key)]
    first = (scales or unused)[0]
    reason = (
        "scales of quantised weights among them" if scales else "its config.json describes a smaller model"
    )
    remedy = (
        "Put quantization_config into its config.json." if scales else "Use the config.json of these weights."
    )
    raise DataMissingError(
        f"{len(unused)} stored tensors are not used by the model, first {first} ({reason})",
        where=spec,
        remedy=remedy,
    )


@torch.no_grad()
def check_finite(model: nn.Module, spec: str) -> None:
    """Refuse weights that are not numbers, or infinite.

    Raises:
        InputError: some are; names them.
    """
    broken = [name for name, value in model.state_dict().items() if not _finite(value)]
    if broken:
        shown = ", ".join(broken[:3]) + (", …" if len(broken) > 3 else "")
        raise InputError(
            f"{len(broken)} of its weights are not finite (NaN or infinite): {shown}",
            where=spec,
            remedy="Download them again, or use a checkpoint from before the training diverged.",
        )


def _finite(value: torch.Tensor) -> bool:
    if not value.is_floating_point() or value.is_meta or not value.numel():
        return True
    if value.dtype.itemsize == 1:
        return bool(torch.isfinite(value.float()).all())
    # A sum is not finite if a term is not; the reverse is checked, for a sum can overflow.
    return bool(torch.isfinite(value.sum(dtype=torch.float32))) or bool(torch.isfinite(value).all())
