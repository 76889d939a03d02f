"""The verdict on every pair of anchors."""

import json

from ...report.tables import Column
from ..run import Run
from ..stages.verdict import Verdicts
from ..table import PAIR, PROFILE, SELECTOR, Row, Table, register_table


def _rows(run: Run) -> list[Row]:
    return [
        {
            **pair.columns,
            "label": found.label,
            "rank_change": found.rank,
            "reasons": " ".join(found.reasons),
            "reachable": found.reachable,
            "thresholds": json.dumps(found.thresholds, sort_keys=True),
            "profile": found.profile,
            "selector": found.selector,
            "judge": found.judge,
        }
        for pair, found in run.each(Verdicts)
    ]


TABLE = register_table(
    Table(
        "verdict",
        "One label a pair of anchors, with its reasons (docs/verdict.md).",
        (
            *PAIR,
            Column(
                "label",
                str,
                "relocation, replacement in place, re-siting, drift only, no change or undetermined",
            ),
            Column("rank_change", str, "expansion, contraction or none (none shown)"),
            Column("reasons", str, "the evidence, in sentences"),
            Column("reachable", str, "labels within reach at these sizes, and what is seen with 80 % power"),
            Column("thresholds", str, "the settings it was decided with, as JSON"),
            PROFILE,
            SELECTOR,
            Column("judge", str, "`name@version` of what judged refusals under ablation"),
        ),
        _rows,
    )
)
