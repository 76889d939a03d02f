"""Logits at the supervised positions of examples, and how two models' differ there."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from caryatid.models.batch import right_pad
from caryatid.models.heads import picked_head
from caryatid.models.load import LoadedModel
from caryatid.training.trainee import Example


class Logits(NamedTuple):
    """Logits at the supervised positions of a batch, row after row; `first`: whether one is a row's first."""

    logits: Float[Tensor, "tokens vocab"]
    targets: Int[Tensor, "tokens"]
    first: Tensor


def supervised(loaded: LoadedModel, turns: Sequence[Example]) -> Logits:
    """Logits at the supervised positions, the only ones that are computed; rows are padded on the right."""
    device = loaded.device
    batch = right_pad(
        [[*one.prompt, *one.answer] for one in turns], loaded.tokenizer.pad_token_id or 0, device
    )
    row = torch.arange(len(turns)).repeat_interleave(torch.tensor([len(one.answer) for one in turns]))
    column = torch.cat([torch.arange(len(one.answer)) + len(one.prompt) - 1 for one in turns])
    first = torch.cat([torch.arange(len(one.answer)) == 0 for one in turns]).to(device)
    targets = torch.tensor([token for one in turns for token in one.answer], device=device)
    model: Any = loaded.model
    with picked_head(model, row.to(device), column.to(device)) as picked:
        out = model(
            input_ids=batch.ids, attention_mask=batch.mask, position_ids=batch.position_ids, use_cache=False
        )
    return Logits(picked(out.logits).float(), targets, first)


def token_kl(
    before: Float[Tensor, "tokens vocab"], now: Float[Tensor, "tokens vocab"]
) -> Float[Tensor, "tokens"]:
    """KL(before ‖ now) of each next-token distribution, nats."""
    p, q = before.log_softmax(-1), now.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


def weighted(values: Float[Tensor, "tokens"], first: Tensor) -> Float[Tensor, ""]:
    """The mean over tokens plus the mean over rows of their first token, at which refusing is decided."""
    return values.mean() + values[first].mean()
