"""Places of two anchors' carriers, draw by draw: what a verdict on a move reads."""

import math
from collections import Counter

import numpy as np

from ...report.tables import Column
from ..run import Run
from ..stages.verdict import Verdicts
from ..table import PAIR, Row, Table, register_table
from ..verdict import Evidence

COLUMNS = ("depth_from", "depth_to", "argmin_from", "argmin_to")


def shift_rows(evidence: Evidence) -> list[Row]:
    """The distinct places of both carriers over the draws, the most frequent first."""
    draws = np.column_stack([evidence.depth_a, evidence.depth_b, evidence.argmin_a, evidence.argmin_b])
    found = Counter(tuple(None if math.isnan(value) else float(value) for value in row) for row in draws)
    ordered = sorted(found.items(), key=lambda item: (-item[1], str(item[0])))
    return [{**dict(zip(COLUMNS, places, strict=True)), "draws": count} for places, count in ordered]


def _rows(run: Run) -> list[Row]:
    return [
        {**pair.columns, **row} for pair, found in run.each(Verdicts) for row in shift_rows(found.evidence)
    ]


TABLE = register_table(
    Table(
        "shifts",
        "The distinct places of both carriers over the draws, with their counts; empty: no carrier in these draws.",
        (
            *PAIR,
            Column("depth_from", float, "carrier depth of the earlier anchor"),
            Column("depth_to", float, "carrier depth of the later anchor"),
            Column("argmin_from", float, "depth of the best layer of the earlier anchor"),
            Column("argmin_to", float, "depth of the best layer of the later anchor"),
            Column("draws", int, "how many draws"),
        ),
        _rows,
    )
)
