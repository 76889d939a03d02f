"""Rows of the `causal` table: read-outs under conditions, and utility coupling."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from ..behaviour.degenerate import DEGENERACY
from ..behaviour.judges.base import Exchange, Judge, judge_id
from ..behaviour.outcomes import outcomes
from ..behaviour.utility import check_satisfied
from ..data.prompts import Prompt
from ..models.thoughts import part_text
from ..stats import bootstrap_indices, quantile_interval
from .conditions import RANDOM, Condition
from .coupling import utility_coupling
from .readouts import TeacherForced, mean_row, rate_row

DRAWS = 1000
FORCED = "teacher-forced"
Row = dict[str, Any]


def forced_rows(
    conditions: Sequence[Condition], forced: TeacherForced, rng: np.random.Generator
) -> list[Row]:
    """Refusal score, benign KL, NLL and perplexity of every condition, with bootstrap intervals, and the couplings."""
    rows: list[Row] = []
    for index, condition in enumerate(conditions):
        for name, values in (
            ("refusal_score", forced.refusal),
            ("benign_kl", forced.kl),
            ("benign_nll", forced.nll),
        ):
            rows.append(mean_row(condition, name, values[index], draws=DRAWS, rng=rng))
        rows.append(_perplexity_row(condition, forced.nll[index], forced.answer_tokens, rng))
    rows = [{**row, "judge": FORCED} for row in rows]
    return rows + coupling_rows(conditions, -forced.nll, forced.refusal, FORCED, rng)


def _perplexity_row(
    condition: Condition,
    nll: Float[np.ndarray, "benign"],
    tokens: Float[np.ndarray, "benign"],
    rng: np.random.Generator,
) -> Row:
    """exp of the token-weighted mean NLL, resampled over texts."""
    index = bootstrap_indices(len(nll), DRAWS, rng)
    sampled = np.exp((nll * tokens)[index].sum(axis=1) / tokens[index].sum(axis=1))
    perplexity = quantile_interval(sampled, float(np.exp(nll @ tokens / tokens.sum())))
    return {**condition.columns(), "read_out": "benign_perplexity", "n": len(nll), **perplexity._asdict()}


def coupling_rows(
    conditions: Sequence[Condition],
    utility: Float[np.ndarray, "conditions utility"],
    refusal: Float[np.ndarray, "conditions refusal"],
    judge: str,
    rng: np.random.Generator,
) -> list[Row]:
    """Utility coupling (protocol §6) of each ablated rank of the carrier that has random controls, with its two parts.

    Args:
        utility: −NLL of benign answers, or 1 and 0 for passed and failed. refusal: scores, or 1 and 0. NaN: unscored.

    `n`: prompts that a difference rests on; of the coupling, which rests on two kinds, the smaller number.
    """
    rows: list[Row] = []
    for index, condition in enumerate(conditions):
        if condition.intervention != "ablate" or condition.control != "carrier":
            continue
        mine = [
            i
            for i, other in enumerate(conditions)
            if other.control == RANDOM and other.intervention == "ablate" and other.rank == condition.rank
        ]
        if not mine:
            continue
        found = utility_coupling(
            utility[index], utility[mine], refusal[index], refusal[mine], draws=DRAWS, rng=rng
        )
        base = {**condition.columns(), "control": "carrier − random", "judge": judge}
        compared = [index, *mine]
        n_utility, n_refusal = (_scored_everywhere(side[compared]) for side in (utility, refusal))
        for name, part, n in (
            ("utility_coupling", found.ratio, min(n_utility, n_refusal)),
            ("utility_difference", found.utility, n_utility),
            ("refusal_difference", found.refusal, n_refusal),
        ):
            rows.append({**base, "read_out": name, **part._asdict(), "n": n, "note": found.reason or ""})
    return rows


def _scored_everywhere(outcomes: Float[np.ndarray, "conditions prompts"]) -> int:
    """How many prompts are scored under every condition: those that a coupling rests on."""
    return int(np.isfinite(outcomes).all(axis=0).sum())


class SuiteOutcomes(NamedTuple):
    """What one condition's answers to a suite are, per prompt: 1 or 0.

    Attributes:
        refused: any refusal; NaN where unscored. degenerate: of all answers.
        passed: the utility audit's (unscored answers did not pass); None for other suites.
    """

    refused: Float[np.ndarray, "prompts"]
    degenerate: Float[np.ndarray, "prompts"]
    passed: Float[np.ndarray, "prompts"] | None


def suite_outcomes(judge: Judge, suite: str, answered: Sequence[tuple[Prompt, str]]) -> SuiteOutcomes:
    """Judge one condition's answers to a suite."""
    found = outcomes(judge, [Exchange(row.text, text, row.context) for row, text in answered])
    refused = np.array([one.number(one.refused) for one in found])
    degenerate = np.array([float(one.degenerate is not None) for one in found])
    if suite != "utility":
        return SuiteOutcomes(refused, degenerate, None)
    said = [part_text(text).answer for _, text in answered]
    checks = [
        None if row.check is None else check_satisfied(row.check, text)
        for (row, _), text in zip(answered, said, strict=True)
    ]
    passed = [float(one.passed(check)) for one, check in zip(found, checks, strict=True)]
    return SuiteOutcomes(refused, degenerate, np.array(passed))


def outcome_rows(judge: Judge, condition: Condition, suite: str, found: SuiteOutcomes) -> list[Row]:
    """Any-refusal and degeneracy of one condition's answers to a suite, and pass where it is the utility audit."""
    rows = [
        rate_row(condition, f"{suite}_any_refusal", found.refused),
        rate_row(condition, f"{suite}_degenerate", found.degenerate),
    ]
    if found.passed is not None:
        rows.append(rate_row(condition, "utility_pass", found.passed))
    return [
        {**row, "judge": DEGENERACY if row["read_out"] == f"{suite}_degenerate" else judge_id(judge)}
        for row in rows
    ]


def generated_coupling_rows(
    judge: Judge,
    conditions: Sequence[Condition],
    utility: Sequence[SuiteOutcomes],
    harmful: Sequence[SuiteOutcomes],
    rng: np.random.Generator,
) -> list[Row]:
    """Utility coupling from generated answers: audit passed, against harmful prompts refused."""
    passed = np.array([each.passed for each in utility], dtype=np.float64)
    refused = np.array([each.refused for each in harmful], dtype=np.float64)
    return coupling_rows(conditions, passed, refused, judge_id(judge), rng)
