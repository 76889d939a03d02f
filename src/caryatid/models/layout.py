"""Where a decoder keeps its blocks, and which modules' outputs are added to the residual stream."""

from dataclasses import dataclass
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel

from caryatid.errors import InputError

_ATTENTION_NAMES = ("self_attn", "attn", "attention", "self_attention")
_MLP_NAMES = ("mlp", "feed_forward", "feedforward", "ffn", "block_sparse_moe", "moe")
# Blocks that normalise a sublayer's output before adding it: the norm's output is what reaches the stream.
_OUTPUT_NORMS = (
    ("post_attention_layernorm", "post_feedforward_layernorm"),  # Gemma 2 and 3, OLMo 2
    ("post_self_attn_layernorm", "post_mlp_layernorm"),  # GLM 4
)


@dataclass(frozen=True)
class SublayerSites:
    """The two modules of one block whose forward output is added to the residual stream."""

    attn: nn.Module
    mlp: nn.Module


def unwrapped(model: nn.Module) -> nn.Module:
    """The transformers model inside a peft wrapper, or `model` itself."""
    unwrap: Any = getattr(model, "get_base_model", None)
    return cast(nn.Module, unwrap()) if callable(unwrap) else model


def _text_config(model: nn.Module) -> Any:
    config: Any = unwrapped(model).config
    return config.get_text_config()


def num_layers(model: nn.Module) -> int:
    """Number of decoder blocks L."""
    return int(_text_config(model).num_hidden_layers)


def hidden_size(model: nn.Module) -> int:
    """Width d of the residual stream."""
    return int(_text_config(model).hidden_size)


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The decoder blocks in order: the decoder's first `ModuleList` with as many entries as the model has layers.

    Raises:
        InputError: no such list is found.
    """
    inner = unwrapped(model)
    decoder = inner.get_decoder() if isinstance(inner, PreTrainedModel) else inner
    layers = num_layers(model)
    for module in decoder.modules():
        if isinstance(module, nn.ModuleList) and len(module) == layers:
            return module
    raise InputError(
        f"{type(inner).__name__} has no list of {layers} decoder blocks that caryatid can find",
        where="model layout",
        remedy="Use a decoder-only transformer with one list of blocks (Llama, Mistral, Qwen, Gemma, GPT-2, …).",
    )


def _child(block: nn.Module, names: tuple[str, ...]) -> nn.Module | None:
    return next((c for n in names if isinstance(c := getattr(block, n, None), nn.Module)), None)


def sublayer_outputs(model: nn.Module) -> list[SublayerSites]:
    """For every block the modules whose forward output is what the block adds to the stream.

    The output is a tensor [rows, tokens, d], or a tuple that starts with one.

    Raises:
        InputError: a block has no attention or no MLP that caryatid recognises.
    """
    sites = []
    for index, block in enumerate(decoder_layers(model)):
        for attn_norm, mlp_norm in _OUTPUT_NORMS:
            attn, mlp = _child(block, (attn_norm,)), _child(block, (mlp_norm,))
            if attn is not None and mlp is not None:
                break
        else:
            attn, mlp = _child(block, _ATTENTION_NAMES), _child(block, _MLP_NAMES)
        if attn is None or mlp is None:
            missing = "attention" if attn is None else "MLP"
            raise InputError(
                f"block {index} ({type(block).__name__}) has no {missing} module under a known name",
                where="model layout",
                remedy="Use a decoder-only transformer whose blocks have separate attention and MLP modules.",
            )
        sites.append(SublayerSites(attn=attn, mlp=mlp))
    return sites
