"""A GCG search for the suffixes of a block of goals, all together."""

import time
from collections.abc import Sequence

import torch

from caryatid.attacks.base import AttackResult, BlockRun, Goal
from caryatid.attacks.gcg.settings import GcgSettings, SuffixLength
from caryatid.attacks.gcg.state import GcgState, start_state
from caryatid.attacks.gcg.steps import gcg_steps
from caryatid.models.forward import check_context
from caryatid.models.load import LoadedModel
from caryatid.models.template import ChatFormat


def drawn_length(length: SuffixLength, generator: torch.Generator) -> int:
    """The number itself (nothing is drawn), or one of a range, both ends included, all equally likely."""
    if isinstance(length, int):
        return length
    low, high = length
    return int(torch.randint(low, high + 1, (), generator=generator))


def gcg_search(
    loaded: LoadedModel, chat: ChatFormat, goals: Sequence[Goal], settings: GcgSettings, run: BlockRun
) -> list[AttackResult]:
    """Search a suffix for each goal of a block, from "! ! ! …", all taking their steps together.

    Raises:
        InputError, NumericalError, MemoryExhaustedError: as `gcg_steps`.
    """
    began = time.perf_counter()
    generators = [goal.generator(run.seed) for goal in goals]
    states = []
    for goal, generator in zip(goals, generators, strict=True):
        start = start_state(chat, goal, length=drawn_length(settings.suffix_length, generator))
        sent = chat.ids(f"{goal.user_text} {start.suffix_text}")
        check_context(loaded, len(sent) + len(chat.answer_ids(goal.target)))
        states.append(start)
    found = gcg_steps(
        loaded,
        chat,
        states,
        settings,
        batch_size=run.limit,
        generator=generators,
        exact=True,
        on_step=lambda: run.on_step(len(goals)),
    )
    seconds = (time.perf_counter() - began) / max(len(goals), 1)
    return [_result(state, settings.steps, seconds, run.limit.rows) for state in found]


def _result(state: GcgState, steps: int, seconds: float, rows: int) -> AttackResult:
    goal = state.goal
    return AttackResult(
        attack="gcg",
        behavior_id=goal.behavior_id,
        user_text=goal.user_text,
        target=goal.target,
        sent_text=f"{goal.user_text} {state.best_text}",
        loss=state.best_loss,
        losses=state.losses,
        steps=steps,
        candidates=state.candidates,
        forward_tokens=state.forward_tokens,
        backward_tokens=state.backward_tokens,
        seconds=seconds,
        stalled_steps=state.stalled_steps,
        batch_size=rows,
        suffix_text=state.best_text,
        suffix_ids=state.best_ids,
        scored=state.scored,
    )
