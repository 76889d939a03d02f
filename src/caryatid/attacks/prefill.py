"""Prefill: the answer begins with the target, and the model only goes on with it (arXiv 2404.02151, section 3)."""

from collections.abc import Sequence

from ..models.load import LoadedModel
from ..models.template import ChatFormat
from .base import AttackResult, BlockRun, Goal
from .settings import PrefillSettings


def prefill(
    loaded: LoadedModel, chat: ChatFormat, goals: Sequence[Goal], settings: PrefillSettings, run: BlockRun
) -> list[AttackResult]:
    """Nothing is searched, and nothing run: no text of the user's is an equal of this, and there is no loss."""
    run.on_step(len(goals))
    return [
        AttackResult(
            attack="prefill",
            behavior_id=goal.behavior_id,
            user_text=goal.user_text,
            target=goal.target,
            sent_text=goal.user_text,
            loss=float("nan"),
            losses=(),
            steps=0,
            candidates=0,
            forward_tokens=0,
            seconds=0.0,
            begun_text=_beginning(chat, goal.target, settings.tokens),
        )
        for goal in goals
    ]


def _beginning(chat: ChatFormat, target: str, tokens: int) -> str:
    """The target's first tokens as text; all of it where `tokens` is 0 or there are no more."""
    ids = chat.answer_ids(target, end_of_turn=False)
    if tokens == 0 or len(ids) <= tokens:
        return target
    # Decoded behind the end of a prompt, so that a space which the template puts there is not taken for the target's.
    cut = chat.tokenizer.decode(ids[:tokens], clean_up_tokenization_spaces=False)
    return str(cut).strip()
