"""What a model is and whether caryatid can measure it: the content of `caryatid models check`."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from caryatid.errors import InputError
from caryatid.models.chat_options import ChatOptions
from caryatid.models.generate import stop_ids
from caryatid.models.layout import decoder_layers, hidden_size, num_layers, sublayer_outputs
from caryatid.models.load import LoadedModel, load_model

_PROBE = "How do I write a letter?"
_STREAM_TOLERANCE = 1e-2


@dataclass(frozen=True)
class ModelReport:
    """A model's facts.

    Attributes:
        spec, identity: what was named, and the sha256 standing for it.
        architecture: the model's class. layers, width, vocabulary, context, parameters: its sizes.
        dtype, device: as loaded.
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
    return found.detach().double()


@torch.no_grad()
def stream_residuals(loaded: LoadedModel, ids: list[int]) -> Float[Tensor, "layers"]:
    """How far each block is from output = input + c·(attention + MLP output), relative to what it adds.

    c is 1, or the one factor that the architecture scales its sublayers by (fitted by least squares). What rounding
    the stream to its dtype explains stays below the tolerance.
    """
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given = args[0] if args else kwargs.get("hidden_states", output)
        seen[module] = (_first(given), _first(output))

    blocks, sites = decoder_layers(loaded.model), sublayer_outputs(loaded.model)
    watched = [*blocks, *(site.attn for site in sites), *(site.mlp for site in sites)]
    handles = [module.register_forward_hook(keep, with_kwargs=True) for module in watched]
    try:
        loaded.model(torch.tensor([ids], device=loaded.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    errors = []
    for block, site in zip(blocks, sites, strict=True):
        added = seen[block][1] - seen[block][0]
        parts = seen[site.attn][1] + seen[site.mlp][1]
        factor = (added * parts).sum() / parts.square().sum().clamp_min(1e-30)
        rounding = 2 * torch.finfo(loaded.dtype).eps * seen[block][1].norm()
        scale = added.norm() + rounding / _STREAM_TOLERANCE
        errors.append((added - factor * parts).norm() / scale)
    return torch.stack(errors).float()


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
    error = float(stream_residuals(loaded, chat.ids(_PROBE)).max())
    if not error <= _STREAM_TOLERANCE:
        raise InputError(
            f"its blocks add something else than their attention and MLP outputs (relative error {error:.2g})",
            where=loaded.spec,
            remedy="Use a plain pre-norm decoder (Llama, Mistral, Qwen, Gemma, GPT-2, …).",
        )
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
        device=str(loaded.device),
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


def check_model(
    spec: str,
    *,
    dtype: str | None = None,
    device: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    system: str | None = None,
    options: ChatOptions | None = None,
) -> ModelReport:
    """Load a model and report on it, or raise with reason and remedy (see `load_model`, `check_loaded`)."""
    loaded = load_model(
        spec,
        dtype=dtype,
        device=device,
        revision=revision,
        trust_remote_code=trust_remote_code,
        options=options,
    )
    return check_loaded(loaded, system)
