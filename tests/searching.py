"""GCG searches from keyword arguments, and gradient and losses of one case, for tests."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from caryatid.attacks.base import AttackResult, BlockRun, Goal
from caryatid.attacks.gcg.gradient import SuffixGradient, suffix_gradients
from caryatid.attacks.gcg.layout import PromptLayout, build_prefix_cache
from caryatid.attacks.gcg.scoring import Scoring, score_candidates, usable_scoring
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


def suffix_gradient(loaded: LoadedModel, layout: PromptLayout, *, use_cache: bool = True) -> SuffixGradient:
    """Gradient of one case's target loss with respect to its one-hot suffix, [length, vocabulary]."""
    prefix = build_prefix_cache(loaded, [layout]) if use_cache else None
    return suffix_gradients(loaded, [layout], prefix=prefix, batch_size=1).cases[0]


def candidate_losses(
    loaded: LoadedModel,
    layout: PromptLayout,
    candidates: Int[Tensor, "candidates length"],
    *,
    batch_size: int,
    scoring: Scoring = "prefix",
) -> Float[Tensor, "candidates"]:
    """Mean cross-entropy of the target after each candidate, on the CPU, float32 (float64 for a float64 model)."""
    prefix = None if scoring == "plain" else build_prefix_cache(loaded, [layout])
    usable = usable_scoring(loaded, [layout], prefix, scoring)
    scored = score_candidates(
        loaded, [layout], [candidates], batch_size=batch_size, prefix=prefix, scoring=usable
    )
    return scored.losses[0]
