"""The rates of `behaviour` by category and by kind of prompt."""

from ...report.tables import Column
from ..run import Run
from ..table import Row, Table, register_table
from .behaviour import COLUMNS, rows_by_group


def _rows(run: Run) -> list[Row]:
    return list(rows_by_group(run, "category", "kind"))


TABLE = register_table(
    Table(
        "behaviour_by_group",
        "The rates of `behaviour` by category, and by HarmBench's kind of behaviour.",
        (*COLUMNS, Column("note", str, "what makes a row uninformative")),
        _rows,
    )
)
