"""Rates of every suite, attack and metric at every anchor, and answers by anchor for the tables that count them."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ...behaviour.answers import AnswerRow
from ...behaviour.metrics import By, metrics_rows, perplexity_rows
from ...behaviour.perplexity import Perplexity
from ...report.tables import Column
from ...stats import paired_difference
from ..run import Run
from ..series import BASE, AnchorRef
from ..stages.answers import Answers
from ..stages.harm import Harm
from ..table import ANCHOR, RATE, Row, Shown, Table, register_table

# Direct compliance of step 0 above which a fixed-source attack has nothing to break.
UNINFORMATIVE_ABOVE = 0.9
SUITE = (
    Column(
        "suite",
        str,
        "what was asked: harmbench, strongreject, xstest_safe, xstest_unsafe, utility, perplexity",
    ),
    Column("prompt_set", str, "the set that the prompts come from"),
    Column("attack", str, "none, direct, fixed_source, adaptive"),
    Column(
        "metric",
        str,
        "compliance, harm, score, any_refusal, full_refusal, partial_refusal, pass, degenerate, unscored, …",
    ),
)
COLUMNS = (
    *ANCHOR,
    *SUITE,
    *RATE,
    Column("group", str, "category or kind of the prompts; empty: all"),
    Column("proxy", bool, "an offline judge's rate, which stands in for human labels"),
)


class JudgedAnswers(NamedTuple):
    """The judged answers of one anchor, and its perplexity where it was taken."""

    anchor: AnchorRef
    rows: list[AnswerRow]
    perplexity: Perplexity | None


def judged_answers(run: Run) -> list[JudgedAnswers]:
    """Every anchor's answers with the verdicts of both judges."""
    return [
        JudgedAnswers(ref, run.of(Harm, ref).added_to(found.rows), found.perplexity)
        for ref, found in run.each(Answers)
    ]


def _rows(run: Run) -> list[Row]:
    rows: list[Row] = []
    for anchor, found, perplexity in judged_answers(run):
        where = (anchor.arm, anchor.step, anchor.seed)
        rows += metrics_rows(found, *where)
        rows += attacked_minus_direct(found, anchor)
        if perplexity is not None:
            rows += perplexity_rows(perplexity, *where, "chat_heldout")
    return with_notes(rows)


def rows_by_group(run: Run, *groups: By) -> Iterator[Row]:
    """The same rates by category or kind."""
    rows: list[Row] = []
    for anchor, found, _ in judged_answers(run):
        for by in groups:
            rows += metrics_rows(found, anchor.arm, anchor.step, anchor.seed, by=by)
    yield from with_notes(rows)


def with_notes(rows: Sequence[Row]) -> list[Row]:
    """Fixed-source rows say so where the attack is uninformative: its source answers direct requests anyway
    (protocol §4)."""
    wanted = (BASE, "harmbench", "direct", "compliance", "")
    source = {
        row["seed"]: row["value"]
        for row in rows
        if tuple(row[key] for key in ("arm", "suite", "attack", "metric", "group")) == wanted
    }
    noted: list[Row] = []
    for row in rows:
        rate = source.get(row["seed"], 0.0)
        if row["attack"] == "fixed_source" and rate > UNINFORMATIVE_ABOVE:
            row = {**row, "note": f"uninformative: step 0 answers {rate:.2f} of direct requests"}
        noted.append(row)
    return noted


def attacked_minus_direct(found: Sequence[AnswerRow], anchor: AnchorRef) -> Iterator[Row]:
    """Compliance under each attack minus direct compliance on the same behaviours, paired, with a score interval."""
    asked: dict[str, dict[tuple[str, int], AnswerRow]] = {}
    for row in found:
        if row.suite == "harmbench" and row.scored:
            asked.setdefault(row.attack, {})[row.prompt_id, row.sample] = row
    direct = asked.pop("direct", {})
    for attack, rows in asked.items():
        pairs = [(row, direct[place]) for place, row in rows.items() if place in direct]
        if not pairs:
            continue
        a, b = (np.array([pair[side].answered for pair in pairs], dtype=float) for side in (0, 1))
        yield {
            **anchor.columns,
            "suite": "harmbench",
            "attack": attack,
            "prompt_set": pairs[0][0].set_name,
            "group": "",
            "metric": "compliance_minus_direct",
            **paired_difference(a, b)._asdict(),
            "n": len(pairs),
            "judge": pairs[0][0].judge,
            "proxy": pairs[0][0].proxy,
        }


TABLE = register_table(
    Table(
        "behaviour",
        "Behaviour of every anchor: a rate with its 95 % Wilson interval, or a mean score with a bootstrap interval.",
        (*COLUMNS, Column("note", str, "what makes a row uninformative")),
        _rows,
        Shown(
            "behaviour",
            "All behaviour numbers, with judge and n",
            (
                "seed",
                "arm",
                "step",
                "suite",
                "prompt_set",
                "attack",
                "metric",
                "value",
                "lo",
                "hi",
                "n",
                "judge",
            ),
        ),
    )
)
