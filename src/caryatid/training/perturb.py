"""Perturbations of embeddings or of the residual stream at the tokens of prompts, for arms that train under them."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..attacks.gcg.layout import evaluation_mode
from ..errors import InputError, NumericalError
from ..models.hooks import Hooks, output_hook
from ..models.layout import hidden_size, num_layers
from .trainee import Example, Trainee

EMBEDDING = -1
"""The place of the embeddings; others are numbers of blocks, at whose input is perturbed."""

Deltas = Mapping[int, Tensor]
"""By place what is added at the first tokens of each row, which are its prompt's: [rows, prompt, d]."""


@contextmanager
def perturbed(model: PreTrainedModel, deltas: Deltas) -> Iterator[None]:
    """While open, forward passes of rows that begin with their prompts have `deltas` added. Gradients flow to them."""
    hooks = Hooks(model)

    def added(delta: Tensor) -> Callable[[Tensor], Tensor]:
        def apply(hidden: Tensor) -> Tensor:  # [rows, tokens, d]
            after = hidden.shape[1] - delta.shape[1]
            return hidden + torch.nn.functional.pad(delta, (0, 0, 0, after)).to(hidden.dtype)

        return apply

    try:
        for place, delta in deltas.items():
            if place == EMBEDDING:
                hooks.on_output(model.get_input_embeddings(), output_hook(added(delta)))
            else:
                hooks.change_input(place, added(delta))
        yield
    finally:
        hooks.remove()


def twice(deltas: Deltas) -> Deltas:
    """For a batch that holds all rows twice, one time behind the other."""
    return {place: torch.cat([delta, delta]) for place, delta in deltas.items()}


def places(model: nn.Module, depths: Sequence[float], embedding: bool = False) -> list[int]:
    """Blocks at shares of the depth, each once and in order, after the embeddings where these are asked for."""
    layers = num_layers(model)
    blocks = sorted({int(depth * layers) for depth in depths})
    return [EMBEDDING, *blocks] if embedding else blocks


def check_no_checkpointing(trainee: Trainee, arm: str) -> None:
    """Hooks at blocks may be gone when a checkpointed block is computed again, in the backward pass.

    Raises:
        InputError: gradient checkpointing is on.
    """
    if trainee.recomputing:
        raise InputError(
            f"the arm {arm} reads or changes blocks, which gradient checkpointing computes again without it",
            where="training.gradient_checkpointing",
            remedy="Switch it off, and lower training.chat_batch_size or r2d2.cases if memory is short.",
        )


class PromptTokens(NamedTuple):
    """Where perturbations may be: the longest prompt of a batch, and which of its columns are a row's own prompt."""

    longest: int
    inside: Bool[Tensor, "rows prompt"]


def prompt_tokens(rows: Sequence[Example], device: torch.device) -> PromptTokens:
    """Of rows that are padded on the right."""
    lengths = torch.tensor([len(row.prompt) for row in rows], device=device)
    longest = int(lengths.max())
    return PromptTokens(longest, torch.arange(longest, device=device) < lengths[:, None])


class Site(NamedTuple):
    """How far a token may be perturbed at a place, and the size of a step there, per entry."""

    radius: float
    rate: float


def within(
    delta: Float[Tensor, "rows prompt d"], inside: Bool[Tensor, "rows prompt"], radius: float
) -> Float[Tensor, "rows prompt d"]:
    """Each token's perturbation scaled down to the length `radius` where it is longer; none outside prompts."""
    lengths = delta.norm(dim=-1, keepdim=True)
    return delta * (radius / lengths.clamp_min(radius)) * inside[..., None]


class Attack(NamedTuple):
    """Perturbations, the adversary's loss before the last step (NaN without steps), and the tokens of all passes."""

    deltas: Deltas
    loss: float
    tokens: int


def attack_latents(
    trainee: Trainee,
    rows: Sequence[Example],
    sites: Mapping[int, Site],
    objective: Callable[[Deltas], tuple[Tensor, int]],
    steps: int,
    *,
    signed: bool,
) -> Attack:
    """Projected descent from zero on perturbations of the prompts of `rows`, dropout off.

    Args:
        objective: from perturbations to the loss that is lowered, and the tokens of its forward pass.
        signed: steps of `rate` times the gradient's sign; else Adam with that learning rate.

    Raises:
        NumericalError: a gradient is not finite.
    """
    model, device = trainee.loaded.model, trainee.loaded.device
    where, width = prompt_tokens(rows, device), hidden_size(model)
    deltas = {
        place: torch.zeros(len(rows), where.longest, width, device=device, requires_grad=True)
        for place in sites
    }
    adam = torch.optim.Adam([{"params": [deltas[place]], "lr": site.rate} for place, site in sites.items()])
    value, tokens = math.nan, 0
    with evaluation_mode(model):
        for _ in range(steps):
            loss, run = objective(deltas)
            gradients = torch.autograd.grad(loss, list(deltas.values()))
            if not all(bool(torch.isfinite(one).all()) for one in gradients):
                raise NumericalError("the attack's gradient is not finite", where="training")
            value, tokens = float(loss.detach()), tokens + run
            with torch.no_grad():
                for (place, delta), gradient in zip(deltas.items(), gradients, strict=True):
                    delta.grad = gradient
                    if signed:
                        delta -= sites[place].rate * gradient.sign()
                if not signed:
                    adam.step()
                for place, delta in deltas.items():
                    delta.copy_(within(delta, where.inside, sites[place].radius))
    return Attack({place: delta.detach() for place, delta in deltas.items()}, value, tokens)
