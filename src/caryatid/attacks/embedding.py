"""The embedding attack: signed gradient descent on the embeddings of a suffix (arXiv 2402.09063).

What it finds is no text: no user can send it. It bounds from above what a search over suffixes of that length can
reach, at a small part of the cost. The goals of a block share their forward passes.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import NumericalError
from ..models.batch import right_pad, with_backoff
from ..models.forward import check_context, pad_id
from ..models.heads import logits_at
from ..models.load import LoadedModel
from ..models.template import ChatFormat
from ..models.turns import SoftTokens
from .base import AttackResult, BlockRun, Goal
from .gcg.layout import evaluation_mode, token_losses
from .gcg.search import drawn_length
from .gcg.slot import PlacedSuffix, initial_suffix
from .settings import EmbeddingSettings

_VOCABULARY_CHUNK = 16384


@dataclass(frozen=True)
class EmbeddingScale:
    """Size of a model's embeddings, as their module gives them: root mean square of entries, mean length."""

    rms: float
    length: float


@torch.no_grad()
def embedding_scale(embedding: nn.Module, vocabulary: int, device: torch.device) -> EmbeddingScale:
    """Over all tokens of the vocabulary."""
    squares, lengths, width = 0.0, 0.0, 1
    for start in range(0, vocabulary, _VOCABULARY_CHUNK):
        ids = torch.arange(start, min(start + _VOCABULARY_CHUNK, vocabulary), device=device)
        rows = embedding(ids).double()
        squares, lengths, width = (
            squares + float(rows.square().sum()),
            lengths + float(rows.norm(dim=1).sum()),
            rows.shape[1],
        )
    return EmbeddingScale((squares / (vocabulary * width)) ** 0.5, lengths / vocabulary)


def sign_step(
    delta: Float[Tensor, "rows tokens d"],
    gradient: Float[Tensor, "rows tokens d"],
    rate: float,
    radius: float | None,
) -> Float[Tensor, "rows tokens d"]:
    """δ − rate · sign(∇), each token's perturbation scaled down to the length `radius`, if there is one."""
    moved = delta - rate * gradient.sign()
    if radius is None:
        return moved
    return moved * (radius / moved.norm(dim=-1, keepdim=True).clamp_min(radius))


@dataclass
class _Case:
    """A goal with its suffix, and what the descent has come to."""

    goal: Goal
    placed: PlacedSuffix
    target: list[int]
    losses: list[float]
    best: Tensor | None = None
    tokens: int = 0
    backward: int = 0
    stopped: str = "steps"

    @property
    def prompt(self) -> list[int]:
        return self.placed.slot.prompt_ids(self.placed.ids)

    @property
    def start(self) -> int:
        return len(self.placed.slot.prefix_ids)

    @property
    def row(self) -> int:
        """Tokens of a pass."""
        return len(self.prompt) + len(self.target) - 1


def embedding_search(
    loaded: LoadedModel, chat: ChatFormat, goals: Sequence[Goal], settings: EmbeddingSettings, run: BlockRun
) -> list[AttackResult]:
    """Embeddings of a suffix for each goal of a block, from those of "! ! ! …".

    Raises:
        InputError: a prompt beyond the model's context. NumericalError: a gradient is not finite.
    """
    began = time.perf_counter()
    cases = []
    for goal in goals:
        length = drawn_length(settings.suffix_length, goal.generator(run.seed))
        placed = initial_suffix(chat, goal.user_text, length)
        cases.append(_Case(goal, placed, chat.answer_ids(goal.target, end_of_turn=False), []))
        check_context(loaded, cases[-1].row + 1)
    vocabulary = int(loaded.model.config.get_text_config().vocab_size)
    scale = embedding_scale(loaded.model.get_input_embeddings(), vocabulary, loaded.device)

    def descend(rows: int) -> None:
        for first in range(0, len(cases), rows):
            part = cases[first : first + rows]
            for case in part:
                case.losses, case.tokens, case.backward, case.stopped = [], 0, 0, "steps"
            _descend(loaded, part, settings, scale)

    with evaluation_mode(loaded.model):
        _, rows = with_backoff(descend, min(run.limit.rows, len(cases)))
    run.on_step(settings.steps * len(cases))
    seconds = (time.perf_counter() - began) / len(cases)
    return [_result(case, rows, seconds) for case in cases]


@torch.enable_grad()
def _descend(
    loaded: LoadedModel, cases: Sequence[_Case], settings: EmbeddingSettings, scale: EmbeddingScale
) -> None:
    """All steps of cases that share their passes; a case that has stopped rides along, and is counted no more."""
    batch = right_pad([[*c.prompt, *c.target[:-1]] for c in cases], pad_id(loaded), loaded.device)
    embedded = loaded.model.get_input_embeddings()(batch.ids).detach()
    column = torch.arange(batch.ids.shape[1], device=loaded.device)
    inside = torch.stack([(column >= c.start) & (column < c.start + len(c.placed.ids)) for c in cases])
    rows = torch.tensor([i for i, c in enumerate(cases) for _ in c.target], device=loaded.device)
    columns = [len(c.prompt) - 1 + j for c in cases for j in range(len(c.target))]
    targets = torch.tensor([token for c in cases for token in c.target], device=loaded.device)
    lengths = [len(c.target) for c in cases]
    delta = torch.zeros_like(embedded, dtype=torch.float32)
    radius = None if settings.radius is None else settings.radius * scale.length
    for step in range(settings.steps + 1):
        last = step == settings.steps
        delta.requires_grad_(not last)
        read = embedded + (delta * inside[..., None]).to(embedded.dtype)
        with torch.set_grad_enabled(not last):
            logits = logits_at(
                loaded.model,
                embeds=read,
                mask=batch.mask,
                positions=batch.position_ids,
                cache=None,
                rows=rows,
                columns=torch.tensor(columns, device=loaded.device),
            )
            losses = torch.stack([one.mean() for one in token_losses(logits, targets).split(lengths)])
        if not _note(cases, losses.tolist(), read.detach(), settings, backward=not last) or last:
            return
        (gradient,) = torch.autograd.grad(losses.sum(), delta)
        if not bool(torch.isfinite(gradient).all()):
            raise NumericalError("the suffix gradient is not finite", where="embedding attack")
        delta = sign_step(delta.detach(), gradient, settings.rate * scale.rms, radius)


def _note(
    cases: Sequence[_Case],
    losses: Sequence[float],
    read: Float[Tensor, "rows tokens d"],
    settings: EmbeddingSettings,
    *,
    backward: bool,
) -> bool:
    """Keep what is better, count the pass, and say whether any case goes on."""
    for number, (case, loss) in enumerate(zip(cases, losses, strict=True)):
        if case.stopped != "steps":
            continue
        if not case.losses or loss < case.losses[-1]:
            case.best = read[number, case.start : case.start + len(case.placed.ids)].float().cpu()
        case.losses.append(min([loss, *case.losses[-1:]]))
        case.tokens += case.row
        if settings.stop_below is not None and case.losses[-1] < settings.stop_below:
            case.stopped = "stop_below"
        elif settings.token_budget is not None and case.tokens + case.row > settings.token_budget:
            case.stopped = "token_budget"
        elif backward:
            case.backward += case.row
    return any(case.stopped == "steps" for case in cases)


def _result(case: _Case, rows: int, seconds: float) -> AttackResult:
    assert case.best is not None
    return AttackResult(
        attack="embedding",
        behavior_id=case.goal.behavior_id,
        user_text=case.goal.user_text,
        target=case.goal.target,
        sent_text=f"{case.goal.user_text} {case.placed.text}",
        loss=case.losses[-1],
        losses=tuple(case.losses),
        steps=len(case.losses) - 1,
        candidates=len(case.losses),
        forward_tokens=case.tokens,
        backward_tokens=case.backward,
        seconds=seconds,
        stopped=case.stopped,
        batch_size=rows,
        suffix_text=case.placed.text,
        suffix_ids=case.placed.ids,
        scored="embeddings",
        soft=SoftTokens.of(case.start, case.best),
    )
