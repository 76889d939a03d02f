"""Drift between two anchors at every layer."""

from ...report.tables import Column
from ..run import Run
from ..stages.comparison import Comparison
from ..table import PAIR, Row, Shown, Table, register_table


def _rows(run: Run) -> list[Row]:
    return [{**pair.columns, **row} for pair, found in run.each(Comparison) for row in found.by_layer]


TABLE = register_table(
    Table(
        "drift_by_layer",
        "Angles and distances at every block input, last position, except where nothing differs; point values.",
        (
            *PAIR,
            Column("layer", int, "block at whose input it is read"),
            Column("quantity", str, "what is measured"),
            Column("value", float, "its value"),
            Column("unit", str, "of the value"),
        ),
        _rows,
        Shown("geometry", "Drift at every layer"),
    )
)
