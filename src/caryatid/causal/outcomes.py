"""Generated read-outs of conditions: which answers refuse, are degenerate, or pass, and the utility coupling."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..behaviour.judges.base import Judge
from ..data.prompts import Prompt
from .conditions import Condition
from .table import SuiteOutcomes, generated_coupling_rows, outcome_rows, suite_outcomes

Asked = Sequence[tuple[str, Prompt]]


def answered_rows(
    judge: Judge,
    conditions: Sequence[Condition],
    asked: Asked,
    answers: Sequence[Sequence[str]],
    rng: np.random.Generator,
) -> list[dict[str, Any]]:
    """Rows of the `causal` table from answers.

    Args:
        asked: suite and prompt. answers: of each condition, in the order of `asked`. rng: of the bootstrap.
    """
    rows: list[dict[str, Any]] = []
    judged: dict[str, list[SuiteOutcomes]] = {suite: [] for suite, _ in asked}
    for condition, texts in zip(conditions, answers, strict=True):
        for suite, outcomes in judged.items():
            pairs = zip(asked, texts, strict=True)
            mine = [(row, text) for (name, row), text in pairs if name == suite]
            outcomes.append(suite_outcomes(judge, suite, mine))
            rows += outcome_rows(judge, condition, suite, outcomes[-1])
    return rows + generated_coupling_rows(judge, conditions, judged["utility"], judged["harmbench"], rng)
