"""Paired comparisons of arms at the same step and at matched benign KL: the same prompts, two models."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ..errors import InputError
from ..stats import Interval, holm, mcnemar_exact, paired_bootstrap_test, paired_difference
from .answers import AnswerRow
from .metrics import ANY_REFUSAL, COMPLIANCE, HARM, PASS, SCORE, Metric, names

Row = dict[str, str | int | float]


_SUITE_METRICS = {"utility": (PASS,), "xstest_safe": (ANY_REFUSAL,), "xstest_unsafe": (ANY_REFUSAL,)}
_OF_REQUESTS = (COMPLIANCE, HARM, SCORE)
KL_WITHIN = 1.5  # times; anchors whose benign KLs differ by more are not matched


class AnchorAnswers(NamedTuple):
    """The judged answers of one anchor, and its mean KL from step 0 on benign text where it is known."""

    arm: str
    step: int
    seed: int
    rows: Sequence[AnswerRow]
    benign_kl: float = math.nan


class _Key(NamedTuple):
    suite: str
    set_name: str
    attack: str
    prompt_id: str


def _by_prompt(anchor: AnchorAnswers) -> dict[_Key, AnswerRow]:
    found = {_Key(row.suite, row.set_name, row.attack, row.prompt_id): row for row in anchor.rows}
    if len(found) != len(anchor.rows):
        raise InputError("a prompt has several answers", where=f"{anchor.arm}@{anchor.step}")
    return found


class _Pair(NamedTuple):
    """Anchors of two arms, and what they have in common."""

    a: AnchorAnswers
    b: AnchorAnswers
    matched: str


def _apart(a: AnchorAnswers, b: AnchorAnswers) -> float:
    """How many times one benign KL is the other; infinite where it is unknown, or 0 as at step 0."""
    low, high = sorted((a.benign_kl, b.benign_kl))
    return high / low if low > 0 and math.isfinite(high) else math.inf


def _pairs(anchors: Sequence[AnchorAnswers]) -> Iterator[_Pair]:
    """Of every two arms of a seed the anchors at the same step; then, at different steps, those that are each other's
    nearest by benign KL, at most `KL_WITHIN` times apart."""
    arms: dict[tuple[int, str], list[AnchorAnswers]] = {}
    for one in sorted(anchors, key=lambda one: (one.seed, one.step)):
        arms.setdefault((one.seed, one.arm), []).append(one)
    for (left, ours), (right, theirs) in itertools.combinations(arms.items(), 2):
        if left[0] != right[0]:
            continue
        for a, b in itertools.product(ours, theirs):
            nearest = min(_apart(a, other) for other in theirs), min(_apart(other, b) for other in ours)
            if a.step == b.step:
                yield _Pair(a, b, "step")
            elif _apart(a, b) <= min(KL_WITHIN, *nearest):
                yield _Pair(a, b, "benign KL")


def _test(
    pair: _Pair,
    suite: tuple[str, str, str],
    metric: Metric,
    draws: int,
    rng: np.random.Generator,
) -> Row | None:
    a, b, matched = pair
    left, right = _by_prompt(a), _by_prompt(b)
    shared = [(left[key], right[key]) for key in left if key in right and key[:3] == suite]
    # unscored answers are left out, in pairs
    pairs = [pair for pair in shared if all(metric.value(row) is not None for row in pair)]
    if not pairs:
        return None
    x, y = (np.array([metric.value(pair[side]) for pair in pairs], dtype=float) for side in (0, 1))
    if metric.graded:
        *bounds, p = paired_bootstrap_test(x, y, draws, rng)
        difference = Interval(*bounds)
    else:
        difference, p = paired_difference(x, y), mcnemar_exact(x, y)
    return {
        "matched": matched,
        "step_a": a.step,
        "step_b": b.step,
        "benign_kl_a": a.benign_kl,
        "benign_kl_b": b.benign_kl,
        "seed": a.seed,
        "arm_a": a.arm,
        "arm_b": b.arm,
        "suite": suite[0],
        "prompt_set": suite[1],
        "attack": suite[2],
        "metric": metric.name,
        "value_a": float(x.mean()),
        "value_b": float(y.mean()),
        "difference": difference.value,
        "lo": difference.lo,
        "hi": difference.hi,
        "n": len(pairs),
        "only_a": int((x > y).sum()),
        "only_b": int((y > x).sum()),
        "p": p,
        "test": "paired bootstrap" if metric.graded else "McNemar exact",
        "judge": names(metric.judge(row) for pair in pairs for row in pair),
    }


def compare_arms(anchors: Sequence[AnchorAnswers], *, draws: int, rng: np.random.Generator) -> list[Row]:
    """Tests between every two arms of a seed, at equal step and at matched benign KL (protocol §3).

    Compliance, and harm and mean score where judges for them ran, in suites of harmful requests; any-refusal in
    XSTest; pass in the utility audit. On prompts that both arms answered and that were scored: McNemar's exact test,
    with Newcombe's interval of the difference a − b (`stats.paired_difference`), for scores the paired bootstrap's test
    and percentile interval. `only_a` counts the pairs in which a has more.
    `p_holm` is adjusted over the whole table.

    Raises:
        InputError: an anchor has several answers to a prompt in one suite and attack.
    """
    table: list[Row] = []
    for pair in _pairs(anchors):
        for suite in dict.fromkeys((row.suite, row.set_name, row.attack) for row in pair.a.rows):
            for metric in _SUITE_METRICS.get(suite[0], _OF_REQUESTS):
                row = _test(pair, suite, metric, draws, rng)
                if row is not None:
                    table.append(row)
    adjusted = holm([float(row["p"]) for row in table])
    return [{**row, "p_holm": float(p)} for row, p in zip(table, adjusted, strict=True)]
