"""GCG searches from keyword arguments, for tests."""

from collections.abc import Sequence
from typing import Any

from caryatid.attacks.base import AttackResult, BlockRun, Goal
from caryatid.attacks.gcg.search import gcg_search
from caryatid.attacks.gcg.settings import GcgSettings
from caryatid.attacks.gcg.state import GcgState
from caryatid.attacks.gcg.steps import gcg_steps
from caryatid.models.batch import RowLimit
from caryatid.models.load import LoadedModel
from caryatid.models.template import ChatFormat


def search_alone(
    loaded: LoadedModel,
    chat: ChatFormat,
    goals: Sequence[Goal],
    *,
    batch_size: int,
    seed: int,
    **settings: Any,
) -> list[AttackResult]:
    """One goal after the other."""
    run = BlockRun(seed, RowLimit(batch_size))
    return [gcg_search(loaded, chat, [goal], GcgSettings(**settings), run)[0] for goal in goals]


def steps_of(
    loaded: LoadedModel,
    chat: ChatFormat,
    states: Sequence[GcgState],
    *,
    batch_size: int,
    generator: Any,
    on_step: Any = None,
    **settings: Any,
) -> list[GcgState]:
    """`gcg_steps` without re-scoring."""
    return gcg_steps(
        loaded,
        chat,
        states,
        GcgSettings(**settings),
        batch_size=batch_size,
        generator=generator,
        on_step=on_step,
    )
