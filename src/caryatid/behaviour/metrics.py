"""From judged answers to rows of the `behaviour` table: rates with n and a 95 % Wilson interval."""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from caryatid.behaviour.answers import AnswerRow
from caryatid.behaviour.degenerate import DEGENERACY
from caryatid.behaviour.judges.base import FULL_REFUSAL, PARTIAL_REFUSAL, PROXIES
from caryatid.behaviour.perplexity import Perplexity
from caryatid.stats import Interval, bootstrap_interval, clustered_rate

Row = dict[str, str | int | float | bool]
By = Literal["kind", "category"]

METRICS = (
    "compliance",
    "harm",
    "score",
    "any_refusal",
    "full_refusal",
    "partial_refusal",
    "pass",
    "degenerate",
    "unscored",
    "perplexity",
)
SCORE_DRAWS = 1000
SCORING = "strongreject"


class _Group(NamedTuple):
    suite: str
    set_name: str
    attack: str
    group: str


class _Metric(NamedTuple):
    """A rate: over which rows, of what."""

    name: str
    counted: Callable[[AnswerRow], bool]
    holds: Callable[[AnswerRow], bool]


_RATES = (
    _Metric("compliance", lambda row: row.scored, lambda row: row.answered),
    _Metric("any_refusal", lambda row: row.scored, lambda row: row.refused),
    _Metric("full_refusal", lambda row: row.scored, lambda row: row.verdict == FULL_REFUSAL),
    _Metric("partial_refusal", lambda row: row.scored, lambda row: row.verdict == PARTIAL_REFUSAL),
    _Metric("degenerate", lambda row: True, lambda row: row.degenerate is not None),
    _Metric("unscored", lambda row: True, lambda row: not row.scored),
)
_PASS = _Metric("pass", lambda row: True, lambda row: row.passed)
_HARM = (
    _Metric("harm", lambda row: row.harmful is not None, lambda row: row.harmful == 1),
    _Metric("unscored", lambda row: row.harm_judge is not None, lambda row: row.harmful is None),
)


def _grouped(rows: Iterable[AnswerRow], by: By | None) -> dict[_Group, list[AnswerRow]]:
    groups: dict[_Group, list[AnswerRow]] = {}
    for row in rows:
        group = "" if by is None else f"{by}={getattr(row, by) or 'none'}"
        groups.setdefault(_Group(row.suite, row.set_name, row.attack, group), []).append(row)
    return groups


def _names(marks: Iterable[str | None]) -> str:
    return "+".join(sorted({mark for mark in marks if mark}))


def gives_scores(judge: str | None) -> bool:
    """Whether a judge's number is a score of its own (StrongREJECT's), not a classifier's probability."""
    return judge is not None and judge.startswith(SCORING)


def _mean_score(rows: Sequence[AnswerRow], seed: int) -> Interval:
    """Mean score, its interval from draws of whole prompts."""
    by_prompt: dict[str, list[float]] = {}
    for row in rows:
        if row.harm_score is not None:
            by_prompt.setdefault(row.prompt_id, []).append(row.harm_score)
    sums = np.array([sum(found) for found in by_prompt.values()], dtype=np.float64)
    counts = np.array([len(found) for found in by_prompt.values()], dtype=np.float64)
    rng = np.random.default_rng(seed)
    return bootstrap_interval(
        lambda index: float(sums[index].sum() / counts[index].sum()), len(sums), SCORE_DRAWS, rng
    )


def metrics_rows(
    rows: Sequence[AnswerRow], arm: str, step: int, seed: int, by: By | None = None
) -> list[Row]:
    """Rows of the `behaviour` table for the answers of one anchor.

    Columns: arm, step, seed, suite, prompt_set, attack, group, metric, value, n, lo, hi, judge, proxy. `group` is
    empty, or `kind=…` / `category=…` when broken down `by` these. `proxy` marks rates of offline judges.

    Refusal metrics and compliance count the answers that were scored (n says how many); `degenerate`, `unscored` and
    `pass` count all. Several answers to one prompt widen the interval (`clustered_rate`). `harm`, the mean of `score`
    with a bootstrap interval, and a second `unscored` row appear where
    a judge for them ran.
    """
    table: list[Row] = []
    for group, members in _grouped(rows, by).items():
        base: Row = {
            "arm": arm,
            "step": step,
            "seed": seed,
            "suite": group.suite,
            "prompt_set": group.set_name,
            "attack": group.attack,
            "group": group.group,
        }
        judge = _names(row.judge for row in members)
        harm_judge = _names(row.harm_judge for row in members)
        audited = group.suite == "utility" or any(row.check is not None for row in members)
        metrics = [(metric, judge) for metric in (*_RATES, *([_PASS] if audited else []))]
        metrics += [(metric, harm_judge) for metric in _HARM if harm_judge]
        for metric, named in metrics:
            counted = [row for row in members if metric.counted(row)]
            rate = clustered_rate([metric.holds(row) for row in counted], [row.prompt_id for row in counted])
            named = DEGENERACY if metric.name == "degenerate" else named
            table.append(
                {**base, "metric": metric.name, **_shown(rate.value, rate.n, rate.lo, rate.hi, named)}
            )
        scored = [row for row in members if row.harm_score is not None and gives_scores(row.harm_judge)]
        if scored:
            mean = _mean_score(scored, seed)
            table.append({**base, "metric": "score", **_shown(*mean[:1], len(scored), *mean[1:], harm_judge)})
    return table


def _shown(value: float, n: int, lo: float, hi: float, judge: str) -> Row:
    names = {mark.partition("@")[0] for mark in judge.split("+")}
    return {"value": value, "n": n, "lo": lo, "hi": hi, "judge": judge, "proxy": bool(names & PROXIES)}


def perplexity_rows(result: Perplexity, arm: str, step: int, seed: int, prompt_set: str) -> list[Row]:
    """The `behaviour` row of a held-out perplexity; n is the number of examples, `seed` also the bootstrap's."""
    value, lo, hi = result.interval(np.random.default_rng(seed))
    base: Row = {"arm": arm, "step": step, "seed": seed, "suite": "perplexity", "prompt_set": prompt_set}
    shown = _shown(value, result.n, lo, hi, "")
    return [{**base, "attack": "none", "group": "", "metric": "perplexity", **shown}]
