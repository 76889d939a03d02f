"""Refusal cones of every anchor."""

from ...report.tables import Column
from ..run import Run
from ..stages.cone import Cone
from ..table import ANCHOR, NOISE, QUANTITY, SITE, Row, Shown, Table, register_table


def _rows(run: Run) -> list[Row]:
    return [{**ref.columns, **row} for ref, found in run.each(Cone) for row in found.rows]


TABLE = register_table(
    Table(
        "cone",
        "Cones of orthonormal directions that each carry refusal, found by gradient: what their weakest edge removes "
        "beside controls, in shares of the gap, and how many dimensions this shows (docs/geometry.md).",
        (
            *ANCHOR,
            Column("cone", int, "dimension of the cone; empty for what is said of the anchor"),
            *QUANTITY,
            *SITE,
            Column("n", int, "harmful prompts that it was not fitted to"),
            NOISE,
            Column("note", str, "what to know about the value"),
        ),
        _rows,
        Shown("geometry", "Refusal cones"),
    )
)
