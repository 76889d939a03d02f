"""What the verdict would be with one setting changed."""

from ...report.tables import Column
from ..run import Run
from ..stages.verdict import Verdicts
from ..table import PAIR, Row, Shown, Table, register_table


def _rows(run: Run) -> list[Row]:
    return [{**pair.columns, **row} for pair, found in run.each(Verdicts) for row in found.sensitivity]


TABLE = register_table(
    Table(
        "sensitivity",
        "The label with each threshold, profile, selector and judge varied alone.",
        (
            *PAIR,
            Column("setting", str, "what is varied"),
            Column("threshold", float, "its value, where it is a number"),
            Column("choice", str, "its value, in words"),
            Column("label", str, "the label then"),
            Column("rank", str, "expansion, contraction or none then"),
            Column("note", str, "what stays as it was"),
        ),
        _rows,
        Shown(
            "verdict",
            "Sensitivity to the thresholds",
            note="One setting at a time. Another profile or selector changes where the carrier is, not which direction "
            "was ablated; another judge reads the same answers under ablation. The note says what stays as it was.",
        ),
    )
)
