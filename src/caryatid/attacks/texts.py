"""Target losses of whole texts as a user would send them, and the record of a search over texts."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..models.batch import RowLimit, with_backoff
from ..models.forward import AnswerBatch, answer_logprobs, check_context
from ..models.load import LoadedModel
from ..models.template import ChatFormat
from .base import AttackResult, Goal


class TextLosses(NamedTuple):
    """Losses of texts, in nats, and the real tokens that were run forward for each.

    Attributes:
        target: mean cross-entropy of the target's tokens. first: that of its first token alone.
    """

    target: Float[Tensor, "texts"]
    first: Float[Tensor, "texts"]
    tokens: tuple[int, ...]


def target_losses(
    loaded: LoadedModel, chat: ChatFormat, texts: Sequence[str], target: str | Sequence[str], limit: RowLimit
) -> TextLosses:
    """How unlikely a target is after each text, as it follows the templated prompt; whole rows, no cache.

    Args:
        target: of all texts, or one for each.
        limit: rows per forward; lowered where memory runs out.

    Raises:
        InputError: a text beyond the model's context. MemoryExhaustedError: out of memory at one row.
    """
    if not texts:
        return TextLosses(torch.zeros(0), torch.zeros(0), ())
    prompts = chat.ids_many(texts)
    targets = [target] * len(texts) if isinstance(target, str) else list(target)
    answers = [chat.answer_ids(one, end_of_turn=False) for one in targets]
    tokens = tuple(len(one) + len(other) for one, other in zip(prompts, answers, strict=True))
    check_context(loaded, max(tokens))

    def both(batch: AnswerBatch) -> Tensor:
        losses = -batch.token_logprobs()
        return torch.stack([losses.nanmean(dim=1), losses[:, 0]], dim=1)

    def run(rows: int) -> Tensor:
        return answer_logprobs(loaded, prompts, answers, batch_size=rows, reduce=both).cpu()

    found, limit.rows = with_backoff(run, limit.rows)
    return TextLosses(found[:, 0], found[:, 1], tokens)


@dataclass
class TextRecord:
    """What a search over texts for one goal has come to.

    Attributes:
        text, loss: what is kept, and its target loss. losses: at the start, then after each step.
        candidates, forward_tokens: spent so far. stopped: the rule that ended it; `steps` while none has.
    """

    goal: Goal
    attack: str
    text: str = ""
    loss: float = float("nan")
    losses: list[float] = field(default_factory=list)
    candidates: int = 0
    forward_tokens: int = 0
    stopped: str = "steps"
    began: float = field(default_factory=time.perf_counter)

    def spend(self, candidates: int, tokens: int) -> None:
        """Count texts that were scored or asked."""
        self.candidates += candidates
        self.forward_tokens += tokens

    def keep(self, text: str, loss: float) -> None:
        """Take a text in place of the present one."""
        self.text, self.loss = text, loss

    def step(self) -> None:
        """Note the loss of what is kept."""
        self.losses.append(self.loss)

    def ends(self, stop_below: float | None, token_budget: int | None, next_tokens: int) -> bool:
        """Whether a rule ends the search: the loss is low enough, or the next step would go beyond the budget."""
        if stop_below is not None and self.loss < stop_below:
            self.stopped = "stop_below"
        elif token_budget is not None and self.forward_tokens + next_tokens > token_budget:
            self.stopped = "token_budget"
        return self.stopped != "steps"

    def result(self, batch_size: int, seconds: float | None = None, **more: Any) -> AttackResult:
        """The result; `seconds`: since the record began, unless given; `more`: further fields of `AttackResult`."""
        return AttackResult(
            attack=self.attack,
            behavior_id=self.goal.behavior_id,
            user_text=self.goal.user_text,
            target=self.goal.target,
            sent_text=self.text,
            loss=self.loss,
            losses=tuple(self.losses),
            steps=len(self.losses) - 1,
            candidates=self.candidates,
            forward_tokens=self.forward_tokens,
            seconds=time.perf_counter() - self.began if seconds is None else seconds,
            stopped=self.stopped,
            batch_size=batch_size,
            scored="whole texts",
            **more,
        )
