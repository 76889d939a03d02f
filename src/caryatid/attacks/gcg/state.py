"""A goal under attack, its present suffix, and the loss of the text that a user would send."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...models.heads import logits_at
from ...models.load import LoadedModel
from ...models.template import ChatFormat
from ..base import Goal
from .graphs import Replay
from .layout import token_losses
from .slot import given_suffix, initial_suffix


@dataclass(frozen=True)
class GcgState:
    """A case: a goal with its present suffix.

    A record of losses covers one call of `gcg_steps`, because weights may change between calls.

    Attributes:
        suffix_ids, suffix_text: the present suffix; the ids are those of the templated prompt's tokens.
        loss: of the present suffix; NaN before a first step.
        best_ids, best_text, best_loss: the best suffix seen in this record.
        losses: initial loss, then the best so far after each step.
        stalled_steps: steps without a surviving candidate, which kept their suffix.
        candidates: suffixes scored. forward_tokens: real tokens run forward: prefix, gradients, candidates, re-scored
            winners. backward_tokens: those of them that gradients ran backward, too.
        scored: how candidates were scored, in words.
    """

    goal: Goal
    suffix_ids: tuple[int, ...]
    suffix_text: str
    loss: float = float("nan")
    best_ids: tuple[int, ...] = ()
    best_text: str = ""
    best_loss: float = float("inf")
    losses: tuple[float, ...] = ()
    stalled_steps: int = 0
    candidates: int = 0
    forward_tokens: int = 0
    backward_tokens: int = 0
    scored: str = ""

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "GcgState":
        """From the values of `asdict` after JSON."""
        lists = {name: tuple(value[name]) for name in ("suffix_ids", "best_ids", "losses")}
        return cls(**{**value, **lists, "goal": Goal(**value["goal"])})


def start_state(chat: ChatFormat, goal: Goal, *, length: int) -> GcgState:
    """A fresh case with the initial suffix of `length` tokens."""
    placed = initial_suffix(chat, goal.user_text, length)
    return GcgState(goal, placed.ids, placed.text)


def resume_state(chat: ChatFormat, goal: Goal, suffix_ids: Sequence[int]) -> GcgState:
    """A case with given suffix ids, re-encoded in its prompt (see `given_suffix`)."""
    placed = given_suffix(chat, goal.user_text, suffix_ids)
    return GcgState(goal, placed.ids, placed.text)


@torch.no_grad()
def text_loss(
    loaded: LoadedModel,
    chat: ChatFormat,
    goal: Goal,
    suffix_text: str,
    replay: Replay[Tensor] | None = None,
) -> float:
    """Target loss of behaviour + space + suffix as a user would send it: one row, no cache, no padding.

    Args:
        replay: of this case alone, where its texts are scored again and again.
    """
    target = chat.answer_ids(goal.target, end_of_turn=False)
    targets = torch.tensor(target, device=loaded.device)
    row = torch.tensor([[*chat.ids(f"{goal.user_text} {suffix_text}"), *target[:-1]]], device=loaded.device)
    positions = torch.arange(row.shape[1], device=loaded.device).unsqueeze(0)
    columns = torch.arange(row.shape[1] - targets.shape[0], row.shape[1], device=loaded.device)
    first = torch.zeros_like(columns)

    def mean_loss(ids: Tensor) -> Tensor:
        logits = logits_at(
            loaded.model, ids=ids, mask=None, positions=positions, cache=None, rows=first, columns=columns
        )
        return token_losses(logits, targets).mean()

    return float(mean_loss(row) if replay is None else replay(mean_loss, row))
