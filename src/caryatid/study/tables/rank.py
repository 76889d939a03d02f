"""How many dimensions refusal takes at every anchor."""

from ...report.tables import Column
from ..run import Run
from ..stages.rank import Rank
from ..table import ANCHOR, NOISE, QUANTITY, SITE, Row, Shown, Table, register_table


def _rows(run: Run) -> list[Row]:
    return [{**ref.columns, **row} for ref, found in run.each(Rank) for row in found.rows]


TABLE = register_table(
    Table(
        "rank",
        "Rank figures of per-category directions at step 0's site (`_raw`: not unit-norm; `_change`: since step 0), "
        "and of the directions of all admissible candidates (`_bank`).",
        (
            *ANCHOR,
            *QUANTITY,
            *SITE,
            Column("n", int, "categories, or admissible candidates"),
            NOISE,
            Column("note", str, "what to know about the value"),
        ),
        _rows,
        Shown("geometry", "Rank"),
    )
)
