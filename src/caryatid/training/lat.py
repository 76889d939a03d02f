"""Targeted latent adversarial training: R2D2's terms under a perturbed residual stream (arXiv 2407.15549)."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..models.hooks import Hooks, block_input
from ..models.layout import hidden_size
from .losses import away_loss, toward_loss
from .perturb import (
    Deltas,
    Site,
    attack_latents,
    check_no_checkpointing,
    perturbed,
    places,
    prompt_tokens,
    twice,
)
from .settings import R2D2Settings
from .terms import Terms, away_and_toward, my_share, token_count
from .trainee import DrawnCases, Example, Trainee


def lat_terms(trainee: Trainee, drawn: DrawnCases, settings: R2D2Settings) -> Terms:
    """The adversary lowers CE(target) − log(1 − p(refusal)); the model is trained by `away_and_toward` under it."""
    check_no_checkpointing(trainee, "lat")
    lat, model = trainee.settings.lat, trainee.loaded.model
    away_rows, _ = my_share(trainee.ranks, drawn.away)
    toward_rows, _ = my_share(trainee.ranks, drawn.toward)
    every = token_count([*drawn.away, *drawn.toward])
    run = lat.steps * every + token_count(drawn.away)
    if not away_rows:
        terms = away_and_toward(trainee, drawn, settings)
        return replace(terms, forward_tokens=run, backward_tokens=lat.steps * every)
    where = places(model, lat.depths, lat.embedding)
    sites = {}
    for place, length in stream_lengths(trainee, away_rows, where).items():
        radius = lat.radius * length
        sites[place] = Site(radius, lat.rate * radius / math.sqrt(hidden_size(model)))

    def harmful(deltas: Deltas) -> tuple[Tensor, int]:
        with perturbed(model, twice(deltas)):
            out = trainee.forward([*away_rows, *toward_rows])
        split = sum(out.lengths[: len(away_rows)])
        target = toward_loss(out.logits[:split], out.targets[:split])
        refusal = away_loss(out.logits[split:], out.targets[split:], settings.away_variant)
        return target + refusal, out.tokens

    found = attack_latents(trainee, away_rows, sites, harmful, lat.steps, signed=False)
    with perturbed(model, twice(found.deltas)):
        terms = away_and_toward(trainee, drawn, settings)
    return replace(terms, forward_tokens=run, backward_tokens=lat.steps * every, attack_loss=found.loss)


@torch.no_grad()
def stream_lengths(trainee: Trainee, rows: list[Example], where: list[int]) -> dict[int, float]:
    """Median length of the stream over the prompts' tokens, by place; a few tokens have lengths far beyond it."""
    model = trainee.loaded.model
    inside = prompt_tokens(rows, trainee.loaded.device)
    found: dict[int, float] = {}
    hooks = Hooks(model)

    def measure(place: int) -> Callable[..., None]:
        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            lengths = block_input(args, kwargs)[:, : inside.longest].float().norm(dim=-1)
            found[place] = float(lengths[inside.inside].median())

        return hook

    try:
        for place in where:
            # The embeddings are measured where the first block reads them: scaled, and with learnt positions added.
            hooks.on_input(max(place, 0), measure(place))
        trainee.forward(rows)
    finally:
        hooks.remove()
    return {place: found[place] for place in where}
