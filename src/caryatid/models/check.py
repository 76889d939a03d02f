"""What a model is and whether caryatid can measure it: the content of `caryatid models check`."""

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import InputError
from .batch import left_pad
from .forward import batch_logits, last_logits, pad_id
from .generate import stop_ids
from .layout import (
    SublayerSites,
    decoder_layers,
    hidden_size,
    num_layers,
    sublayer_outputs,
)
from .load import LoadedModel
from .placement import described

_PROBE = "How do I write a letter?"
_STREAM_TOLERANCE = 1e-2
_PADDING_TOLERANCE = 1e-2  # ten times as much in 16 bits, where batches round differently
_LEAST_SHARE = 1e-6  # of a sublayer's part in what its block adds
_LEAST_KEPT = 1e-3  # of a block's input in its output


@dataclass(frozen=True)
class ModelReport:
    """A model's facts.

    Attributes:
        spec, identity: what was named, and the sha256 standing for it.
        architecture: the model's class. layers, width, vocabulary, context, parameters: its sizes.
        dtype, device: as loaded; of a model on several devices which blocks lie where.
        attention_site, mlp_site: classes of the modules whose output is added to the residual stream.
        stream_error: largest relative difference between a block's output and its input + both sublayers' outputs.
        template: whether there is a usable chat template (always true in a report; without one checking fails).
        post_tokens: texts of the post-instruction tokens. positions: their number.
        end_of_turn, stop: texts of the tokens that end a turn, and of all that end an answer.
        thinking: how thoughts are treated; None where the template knows none.
        notes: what is unusual about the model.
    """

    spec: str
    identity: str
    architecture: str
    layers: int
    width: int
    vocabulary: int
    context: int | None
    parameters: int
    dtype: str
    device: str
    attention_site: str
    mlp_site: str
    stream_error: float
    template: bool
    post_tokens: tuple[str, ...]
    positions: int
    end_of_turn: tuple[str, ...]
    stop: tuple[str, ...]
    thinking: str | None = None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def _first(output: Any) -> Tensor:
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found.detach().cpu().double()  # MPS has no float64


class BlockFit(NamedTuple):
    """How one block's output is made: kept · input + Σ factor · sublayer output, by least squares.

    Attributes:
        error: norm of what this leaves over, relative to what the sublayers add.
        kept: factor of the block's input. factors: of its sublayers' outputs, in `SublayerSites.modules`' order.
        shares: norms of the sublayers' parts, relative to their sum's.
    """

    error: float
    kept: float
    factors: tuple[float, ...]
    shares: tuple[float, ...]


@torch.no_grad()
def block_fits(loaded: LoadedModel, ids: list[int]) -> list[BlockFit]:
    """Whether each block's output is its input and its sublayers' outputs, each times one number, and which.

    Architectures may scale the stream or their sublayers. What rounding the stream to its dtype explains stays below
    the tolerance.
    """
    blocks, sites = decoder_layers(loaded.model), sublayer_outputs(loaded.model)
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        seen[module] = (_first(args or kwargs.get("hidden_states")), _first(output))

    watched = dict.fromkeys([*blocks, *(module for site in sites for module in site.modules)])
    handles = [module.register_forward_hook(keep, with_kwargs=True) for module in watched]
    try:
        loaded.model(torch.tensor([ids], device=loaded.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return [_fit(loaded, seen, block, site) for block, site in zip(blocks, sites, strict=True)]


def _fit(
    loaded: LoadedModel, seen: dict[nn.Module, tuple[Tensor, Tensor]], block: nn.Module, site: SublayerSites
) -> BlockFit:
    before, after = (part.flatten().cpu() for part in seen[block])
    if not bool(after.isfinite().all()):
        return BlockFit(float("nan"), 1.0, (), ())
    outputs = [seen[module][1].reshape(-1).cpu() for module in site.modules if module in seen]
    if any(one.shape != before.shape for one in (after, *outputs)):  # several streams, as Gemma 3n's
        return BlockFit(float("inf"), 1.0, (), ())
    columns = torch.stack([before, *outputs], dim=1)  # [tokens · d, 1 + sublayers]
    scales = columns.norm(dim=0).clamp_min(1e-30)
    # The default driver is wrong where a column is zero, as of a sublayer that puts out nothing.
    solved = torch.linalg.lstsq(columns / scales, after[:, None], driver="gelsd").solution[:, 0] / scales
    parts = columns[:, 1:] * solved[1:]
    rounding = 2 * torch.finfo(loaded.dtype).eps * after.norm()
    scale = parts.sum(dim=1).norm() + rounding / _STREAM_TOLERANCE
    error = (after - columns @ solved).norm() / scale
    shares = parts.norm(dim=0) / parts.sum(dim=1).norm().clamp_min(1e-30)
    shares = torch.where(
        columns[:, 1:].norm(dim=0) > 0, shares, 1.0
    )  # a sublayer of zeros adds all that it puts out
    return BlockFit(float(error), float(solved[0]), tuple(solved[1:].tolist()), tuple(shares.tolist()))


def stream_residuals(loaded: LoadedModel, ids: list[int]) -> Float[Tensor, "layers"]:
    """`BlockFit.error` of every block."""
    return torch.tensor([one.error for one in block_fits(loaded, ids)])


def _check_stream(loaded: LoadedModel, ids: list[int]) -> float:
    """The largest error of a block.

    Raises:
        InputError: a block's stream is not what caryatid would intervene on; says where.
    """
    fits = block_fits(loaded, ids)
    sites = sublayer_outputs(loaded.model)
    for index, (fit, site, block) in enumerate(zip(fits, sites, decoder_layers(loaded.model), strict=True)):
        names = [type(module).__name__ for module in site.modules]
        here = f"block {index} ({type(block).__name__})"
        if fit.error != fit.error:
            raise InputError(
                f"{here} computes numbers that are not finite in {loaded.dtype}".replace("torch.", ""),
                where=loaded.spec,
                remedy="Load it in bfloat16 or float32 (--dtype).",
            )
        idle = [name for name, share in zip(names, fit.shares, strict=False) if not share > _LEAST_SHARE]
        if not fit.error <= _STREAM_TOLERANCE:
            what = f"{here} is not its input and the outputs of {' and '.join(names)}, error {fit.error:.2g}"
        elif idle:
            what = f"{here}: the output of {idle[0]} does not reach its output"
        elif abs(fit.kept) < _LEAST_KEPT:
            what = f"{here} does not keep its input"
        else:
            continue
        raise InputError(
            f"its blocks add something else than their attention and MLP outputs ({what})",
            where=loaded.spec,
            remedy="Use a plain pre-norm decoder (Llama, Mistral, Qwen, Gemma, GPT-2, …), or see docs/models.md.",
        )
    return max(fit.error for fit in fits)


def _check_padding(loaded: LoadedModel, ids: list[int]) -> None:
    """Refuse a model whose answer depends on the padding that a longer text in the batch brings.

    Raises:
        InputError: it does, as where recurrent layers read padding.
    """
    alone = last_logits(loaded, [ids], batch_size=1)[0]
    both = left_pad([ids, ids * 2], pad_id(loaded), loaded.device)  # in one batch, whatever is faster
    with torch.no_grad():
        beside = batch_logits(loaded, both, 1)[0, -1]
    error = float((beside - alone).norm() / alone.norm().clamp_min(1e-30))
    if not error <= (_PADDING_TOLERANCE if loaded.dtype.itemsize >= 4 else 10 * _PADDING_TOLERANCE):
        raise InputError(
            f"its logits change by {error:.2g} of their size when a text is padded on the left",
            where=loaded.spec,
            remedy="Use a model whose layers leave padding out.",
        )


def check_loaded(loaded: LoadedModel, system: str | None = None) -> ModelReport:
    """Facts about a loaded model, or the reason why it cannot be measured.

    Raises:
        InputError: no usable chat template, no post-instruction token, or a layout whose residual stream is not the sum
            of the parts that caryatid would intervene on.
    """
    chat = loaded.chat(system)
    if chat.n_post == 0:
        raise InputError(
            "its chat template has no token after the user's text that is the same for all texts",
            where=loaded.spec,
            remedy="Use a chat_template.jinja with a generation prompt.",
        )
    model, sites = loaded.model, sublayer_outputs(loaded.model)
    error = _check_stream(loaded, chat.ids(_PROBE))
    _check_padding(loaded, chat.ids(_PROBE))
    text = model.config.get_text_config()

    def texts(ids: Any) -> tuple[str, ...]:
        return tuple(str(loaded.tokenizer.decode([token])) for token in ids)

    return ModelReport(
        spec=loaded.spec,
        identity=loaded.identity,
        architecture=type(model).__name__,
        layers=num_layers(model),
        width=hidden_size(model),
        vocabulary=int(text.vocab_size),
        context=getattr(text, "max_position_embeddings", None),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        dtype=str(loaded.dtype).removeprefix("torch."),
        device=described(model) or str(loaded.device),
        attention_site=type(sites[0].attn).__name__,
        mlp_site=type(sites[0].mlp).__name__,
        stream_error=error,
        template=True,
        post_tokens=tuple(chat.post_tokens),
        positions=chat.n_post,
        end_of_turn=texts(chat.end_of_turn_ids),
        stop=texts(sorted(stop_ids(loaded, chat))),
        thinking=loaded.options.thinking if chat.thoughts else None,
        notes=loaded.notes,
    )
