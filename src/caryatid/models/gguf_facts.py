"""What a GGUF file says that transformers' reader passes over: rotary scaling, and the rest by name."""

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

from ..errors import DataMissingError, InputError
from .quiet import last_line

_ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_ROPE_KEYS = re.compile(r"rope\.(scaling\.|scale_linear$)")
# Read from the tensors' shapes, or of no effect on a causal model's answers.
_READ_OTHERWISE = frozenset(
    {"vocab_size", "context_length", "block_count", "embedding_length", "feed_forward_length", "tensor_data_layout"}
    | {"rope.dimension_count", "attention.key_length", "attention.value_length", "attention.causal", "pooling_type"}
    | {"attention.head_count", "attention.head_count_kv", "use_parallel_residual", "expert_feed_forward_length"}
    | {"attention.key_length_swa", "attention.value_length_swa", "rope.dimension_count_swa", "expert_count"}
)  # fmt: skip
# Ways to split text into words (llama.cpp's names) that GPT-2's way gives the same tokens as: its own, and finer ones,
# whose vocabularies hold no token that reaches over their splits.
_SPLIT_AS_GPT2 = frozenset(
    {
        "default",
        "gpt-2",
        "mpt",
        "olmo",
        "jais",
        "trillion",
        "granite-docling",
        "falcon",
        "starcoder",
        "refact",
    }
    | {"command-r", "smollm", "codeshell", "exaone", "minerva-7b"}
)
_OTHER_KINDS = {
    "adapter": "a LoRA adapter",
    "mmproj": "a model's part for images or sound",
    "imatrix": "an importance matrix",
    "vocab": "a vocabulary",
}
_CHANGES_ANSWERS = re.compile(r"scale|softcap|clamp|temperature|alibi|freq_base|sliding_window")


class GgufFacts(NamedTuple):
    """Metadata of a GGUF file.

    Attributes:
        architecture: its name there. metadata: the architecture's own keys, without its prefix.
        tensors: names. rope: the factors that divide rotary frequencies, by tensor name.
        splits: how text is split into words before it is tokenised, by llama.cpp's name; empty: not said; None: nothing
            is split.
    """

    architecture: str
    metadata: Mapping[str, Any]
    tensors: tuple[str, ...]
    rope: Mapping[str, list[float]]
    splits: str | None = None


def read_facts(gguf: Path) -> GgufFacts:
    """Read a GGUF file's metadata and its rotary factors; the weights are left on the disk.

    Raises:
        InputError: it is damaged, or does not hold a whole model.
    """
    from gguf import GGUFReader

    try:
        reader = GGUFReader(str(gguf))
        values = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, IndexError, KeyError) as error:
        raise InputError(
            f"cannot read this GGUF file, damaged or not whole: {last_line(error)}",
            where=str(gguf),
            remedy="Download it again.",
        ) from error
    _check_whole(values, len(reader.tensors), gguf)
    architecture = str(values["general.architecture"])
    prefix = f"{architecture}."
    metadata = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
    rope = {t.name: [float(x) for x in t.data.ravel()] for t in reader.tensors if t.name in _ROPE_TENSORS}
    byte_level = values.get("tokenizer.ggml.model") == "gpt2"
    splits = str(values.get("tokenizer.ggml.pre", "")) if byte_level else None
    return GgufFacts(architecture, metadata, tuple(t.name for t in reader.tensors), rope, splits)


def _check_whole(values: Mapping[str, Any], tensors: int, gguf: Path) -> None:
    parts = int(values.get("split.count", 1))
    if parts > 1:
        raise InputError(
            f"it is part {int(values.get('split.no', 0)) + 1} of {parts} of a model",
            where=str(gguf),
            remedy="Join the parts and name the whole: llama-gguf-split --merge FIRST_PART whole.gguf.",
        )
    kind = str(values.get("general.type", "model"))
    if values.get("general.architecture") == "clip":
        kind = "mmproj"
    if kind != "model" or not tensors:
        raise InputError(
            f"it holds no model but {_OTHER_KINDS.get(kind, repr(kind) if kind != 'model' else 'metadata alone')}",
            where=str(gguf),
            remedy="Name the model's own GGUF file; an adapter is read from PEFT's folder (safetensors).",
        )


def split_otherwise(facts: GgufFacts, pre_tokenizer: Any) -> list[str]:
    """What to say where a tokenizer read from the file splits text otherwise than the file asks.

    Args:
        pre_tokenizer: of the tokenizer that was read, as `tokenizer.json` holds it.
    """
    as_gpt2 = (pre_tokenizer or {}).get("type") == "ByteLevel" and pre_tokenizer.get("use_regex", True)
    if facts.splits is None or facts.splits in _SPLIT_AS_GPT2 or not as_gpt2:
        return []
    asked = (
        f"not as it asks (tokenizer.ggml.pre = {facts.splits})" if facts.splits else "for it does not say how"
    )
    return [
        f"its text is split into words as GPT-2's, {asked}: some prompts may get other tokens than in training"
    ]


def rope_settings(facts: GgufFacts, where: str) -> dict[str, Any]:
    """`rope_parameters` for transformers that do what the file asks for; empty where it asks for nothing.

    Frequencies may be divided by stored factors, one for each (Llama 3.1's `rope_freqs`, Phi-3's short and long ones),
    or scaled linearly or as by YaRN (github.com/ggml-org/ggml, docs/gguf.md).

    Raises:
        DataMissingError: it asks for something else.
    """
    scaling = {
        name.removeprefix("rope.scaling."): value
        for name, value in facts.metadata.items()
        if name.startswith("rope.scaling.")
    }
    kind = str(scaling.get("type", "none"))
    factor = float(scaling.get("factor", facts.metadata.get("rope.scale_linear", 1.0)) or 1.0)
    trained = int(scaling.get("original_context_length", 0)) or int(facts.metadata.get("context_length", 0))
    attention = scaling.get("attn_factor")
    both, long, short = (facts.rope.get(name) for name in _ROPE_TENSORS)
    short, long = (both, both) if both is not None else (short, long)
    if short is not None or long is not None:
        if (
            short is None
            or long is None
            or kind not in ("none", "longrope", "llama3")
            or (both and factor != 1.0)
        ):
            raise _unknown(kind, where)
        if attention is None and both is not None:
            attention = 1.0
        settings: dict[str, Any] = {"rope_type": "longrope", "short_factor": short, "long_factor": long}
        settings["original_max_position_embeddings"] = trained
    elif kind == "none" and factor == 1.0:
        return {}
    elif kind in ("linear", "none"):
        settings = {"rope_type": "linear", "factor": factor}
    elif kind == "yarn":
        settings = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": trained}
        for name in ("beta_fast", "beta_slow"):
            found = scaling.get(f"yarn_{name}")
            settings |= {name: float(found)} if found is not None else {}
        if scaling.get("yarn_log_multiplier"):
            raise _unknown("yarn with yarn_log_multiplier", where)
        if attention is not None:  # a factor on what YaRN has by itself
            attention = float(attention) * (1 + 0.1 * math.log(factor))
    else:
        raise _unknown(kind, where)
    return settings | ({"attention_factor": float(attention)} if attention is not None else {})


def apply_facts(facts: GgufFacts, config: Any, where: str) -> None:
    """Write into a model's configuration what transformers' reader dropped: rotary base and scaling, sliding window.

    Where layers that see everything have rotary settings of their own (Gemma 3), these are scaled.

    Raises:
        DataMissingError: the file asks for a scaling that cannot be applied.
    """
    rope = rope_settings(facts, where)
    base = facts.metadata.get("rope.freq_base")
    present: dict[str, Any] = dict(getattr(config, "rope_parameters", None) or {})
    whole = present.get("full_attention", present)
    if base is not None and "rope_theta" in whole:
        rope["rope_theta"] = float(base)
    if rope and whole is not present:
        config.rope_parameters = {**present, "full_attention": {**whole, **rope}}
    elif rope:
        config.rope_parameters = {**present, **rope}
    window = facts.metadata.get("attention.sliding_window")
    if window and hasattr(config, "sliding_window"):
        config.sliding_window = int(window)


def _unknown(kind: str, where: str) -> DataMissingError:
    return DataMissingError(
        f"its rotary position scaling ({kind}) cannot be applied",
        where=where,
        remedy="Use the model's safetensors, or another GGUF file of it.",
    )


def unread(facts: GgufFacts, config: Any, mapped: Iterable[str], where: str) -> list[str]:
    """What of the file has no effect on the loaded model, one line each.

    Args:
        config: of the loaded model; a value that stands in it counts as read.
        mapped: names of the tensors that were read.

    Raises:
        DataMissingError: tensors, or metadata that change answers.
    """
    known = set(mapped)
    tensors = sorted(
        name
        for name in facts.tensors
        if name not in known | set(_ROPE_TENSORS) and "_exps" not in name and "rot_embd" not in name
    )
    needless = [name for name in tensors if "nextn" in name]
    tensors = [name for name in tensors if name not in needless]
    if tensors:
        raise DataMissingError(
            f"{len(tensors)} of its tensors are not used by the model, first {tensors[0]}",
            where=where,
            remedy="Use the model's safetensors, or a newer transformers.",
        )
    mapping: Any = GGUF_CONFIG_MAPPING
    names = {
        facts.architecture,
        facts.architecture.replace("moe", "_moe"),
        facts.architecture.replace("-", "_"),
    }
    read = {key for name in names for key, kept in mapping.get(name, {}).items() if kept is not None}
    values = _numbers(config.to_dict())
    lines = [f"{len(needless)} tensors are not needed, first {needless[0]}"] if needless else []
    for key, value in facts.metadata.items():
        if key in read | _READ_OTHERWISE or _ROPE_KEYS.match(key) or not isinstance(value, int | float):
            continue
        if any(math.isclose(value, other, rel_tol=1e-5) for other in (0, 1, *values)):
            continue
        if key.endswith("sliding_window") and value >= int(facts.metadata.get("context_length", 0)):
            continue
        if _CHANGES_ANSWERS.search(key):
            raise DataMissingError(
                f"its {facts.architecture}.{key} = {value:g} would be ignored",
                where=where,
                remedy="Use the model's safetensors, or a newer transformers.",
            )
        lines.append(f"its {facts.architecture}.{key} = {value:g} is not used")
    return lines


def _numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [number for item in value.values() for number in _numbers(item)]
    if isinstance(value, list | tuple):
        return [number for item in value for number in _numbers(item)]
    return [float(value)] if isinstance(value, int | float) else []
