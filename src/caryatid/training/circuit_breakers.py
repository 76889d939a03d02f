"""Circuit breakers (arXiv 2406.04313): the stream turns away from step 0's on harmful answers, and stays on chat."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..attacks.gcg.layout import evaluation_mode
from ..models.hooks import Hooks, block_input
from ..models.layout import decoder, num_layers
from .perturb import check_no_checkpointing, places
from .robust_losses import circuit_breaker_weights, rerouting_loss, retain_loss
from .settings import R2D2Settings
from .terms import Terms, my_share, token_count
from .trainee import DrawnCases, Example, Trainee


def circuit_breaker_terms(trainee: Trainee, drawn: DrawnCases, _settings: R2D2Settings) -> Terms:
    """Rerouting on requests with their affirmative targets, retaining on the chat batch, weighted by the step."""
    check_no_checkpointing(trainee, "circuit_breakers")
    settings, model = trainee.settings.circuit_breakers, trainee.loaded.model
    reroute_weight, retain_weight = circuit_breaker_weights(trainee.step + 1, trainee.updates, settings.alpha)
    retain_weight *= settings.retain
    harmful, harmful_share = my_share(trainee.ranks, drawn.away)
    chat, chat_share = my_share(trainee.ranks, drawn.chat)
    tokens = token_count([*drawn.away, *drawn.chat])
    parts = [
        _Part(
            "reroute", rerouting_loss, harmful, reroute_weight, harmful_share, places(model, settings.depths)
        ),
        _Part("retain", retain_loss, chat, retain_weight, chat_share, list(range(num_layers(model) + 1))),
    ]
    mine = [part for part in parts if part.rows]
    with evaluation_mode(model), trainee.at_step_zero(), torch.no_grad():
        before = [hidden_states_of(trainee, part.rows, part.layers) for part in mine]
    values = {part.name: 0.0 for part in parts}
    total: Tensor | None = None
    for part, then in zip(mine, before, strict=True):
        now = hidden_states_of(trainee, part.rows, part.layers)
        loss = part.share * part.loss(now, then, real_tokens(part.rows, now.device))
        values[part.name] = float(loss.detach())
        total = part.weight * loss if total is None else total + part.weight * loss
    return Terms(total, values, tokens, tokens, 0)


class _Part(NamedTuple):
    """One of the two terms: its rows on this process, their share of all, and the hidden states that it compares."""

    name: str
    loss: Callable[[Tensor, Tensor, Tensor], Tensor]
    rows: list[Example]
    weight: float
    share: float
    layers: list[int]


def real_tokens(rows: Sequence[Example], device: torch.device) -> Bool[Tensor, "rows tokens"]:
    """Where rows that are padded on the right hold tokens."""
    lengths = torch.tensor([len(row.prompt) + len(row.answer) for row in rows], device=device)
    return torch.arange(int(lengths.max()), device=device) < lengths[:, None]


def hidden_states_of(
    trainee: Trainee, rows: Sequence[Example], where: Sequence[int]
) -> Float[Tensor, "layers rows tokens d"]:
    """transformers' `hidden_states` at these numbers, with their graph: the inputs of blocks, and behind the last
    block (its number: how many there are) the stream after the last norm."""
    model = trainee.loaded.model
    hooks, found, last = Hooks(model), dict[int, Tensor](), num_layers(model)

    def keep(layer: int) -> Callable[..., None]:
        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found[layer] = block_input(args, kwargs)

        return hook

    def keep_last(module: Any, args: tuple[Any, ...], output: Any) -> None:
        found[last] = output[0]

    try:
        for layer in where:
            if layer == last:
                hooks.on_output(decoder(model), keep_last)
            else:
                hooks.on_input(layer, keep(layer))
        trainee.forward(rows)
    finally:
        hooks.remove()
    return torch.stack([found[layer] for layer in where])
