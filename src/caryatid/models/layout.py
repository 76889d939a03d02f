"""Where a decoder keeps its blocks, and which modules' outputs are added to the residual stream."""

from dataclasses import dataclass
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel

from ..errors import InputError

# Modules that mix tokens: attention, and what stands in its place in some or all blocks of hybrid models.
_MIXER_NAMES = (
    *("self_attn", "attn", "attention", "self_attention"),
    *(
        "linear_attn",
        "conv",
        "mamba",
        "mixer",
        "temporal_block",
    ),  # Qwen3-Next, LFM2, Jamba, Nemotron-H, Griffin
)
_MLP_NAMES = (
    *("mlp", "feed_forward", "feedforward", "ffn", "mlp_block"),
    *(
        "block_sparse_moe",
        "moe",
        "shared_mlp",
    ),  # a mixture of experts: the routed sum, and what all tokens share
)
# Blocks that normalise a sublayer's output before adding it: the norm's output is what reaches the stream.
_OUTPUT_NORMS = (
    ("post_attention_layernorm", "post_feedforward_layernorm"),  # Gemma 2, 3 and 4, OLMo 2
    ("post_self_attn_layernorm", "post_mlp_layernorm"),  # GLM 4
    ("post_attention_layernorm", "post_mlp_layernorm"),  # AFMoE
)
_FURTHER = ("post_per_layer_input_norm",)  # Gemma 4's third sublayer


@dataclass(frozen=True)
class SublayerSites:
    """The modules of one block whose forward output is added to the residual stream, each times a number.

    Attributes:
        attn: what mixes tokens. mlp: what does not; the same module where the block has only one sublayer.
        more: further ones, where the block has more than two.
    """

    attn: nn.Module
    mlp: nn.Module
    more: tuple[nn.Module, ...] = ()

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """All of them, each once."""
        return tuple(dict.fromkeys((self.attn, self.mlp, *self.more)))


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


def decoder(model: nn.Module) -> nn.Module:
    """The model without its output matrix: embeddings, blocks and the last norm."""
    inner = unwrapped(model)
    return cast(nn.Module, inner.get_decoder()) if isinstance(inner, PreTrainedModel) else inner


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The decoder blocks in order: the decoder's first `ModuleList` with as many entries as the model has layers.

    Raises:
        InputError: no such list is found.
    """
    layers = num_layers(model)
    for module in decoder(model).modules():
        if isinstance(module, nn.ModuleList) and len(module) == layers:
            return module
    raise InputError(
        f"{type(unwrapped(model)).__name__} has no list of {layers} decoder blocks that caryatid can find",
        where="model layout",
        remedy="Use a decoder-only transformer with one list of blocks (Llama, Mistral, Qwen, Gemma, GPT-2, …).",
    )


def _children(block: nn.Module, names: tuple[str, ...]) -> list[nn.Module]:
    return [found for name in names if isinstance(found := getattr(block, name, None), nn.Module)]


def sublayer_outputs(model: nn.Module) -> list[SublayerSites]:
    """For every block the modules whose forward output is what the block adds to the stream.

    The output is a tensor [rows, tokens, d], or a tuple that starts with one. Whether these are all, and are added, is
    checked by `caryatid.models.check.stream_residuals`.

    Raises:
        InputError: a block has no sublayer that caryatid recognises.
    """
    sites = []
    for index, block in enumerate(decoder_layers(model)):
        normed = [found for names in _OUTPUT_NORMS if len(found := _children(block, names)) == 2]
        mixers, mlps = _children(block, _MIXER_NAMES), _children(block, _MLP_NAMES)
        if normed:
            mixers, mlps = normed[0][:1], normed[0][1:]
        if (not mixers and not mlps) or (mixers and not mlps and not hasattr(block, "mixer")):
            missing = "MLP" if mixers else "attention"
            raise InputError(
                f"block {index} ({type(block).__name__}) has no {missing} module under a known name",
                where="model layout",
                remedy="Use a decoder-only transformer whose blocks have separate attention and MLP modules.",
            )
        first = (mixers or mlps)[0]
        last = (mlps or mixers)[0]
        sites.append(SublayerSites(first, last, (*mixers[1:], *mlps[1:], *_children(block, _FURTHER))))
    return sites
