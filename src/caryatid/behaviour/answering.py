"""What a refusal judge says of answers that an attack draws while it searches."""

from collections.abc import Sequence

from ..attacks.base import Answered, Goal
from .judges.base import Exchange, Judge
from .outcomes import outcomes


def answered_by(judge: Judge) -> Answered:
    """Takes an answer for one that is neither refused, degenerate nor unscored (`Outcome.answered`)."""

    def answered(pairs: Sequence[tuple[Goal, str]]) -> list[bool]:
        return [one.answered for one in outcomes(judge, [Exchange(g.user_text, text) for g, text in pairs])]

    return answered
