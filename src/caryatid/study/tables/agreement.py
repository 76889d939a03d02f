"""How many seeds agree on a label."""

from ...report.tables import Column
from ..run import Run
from ..table import Row, Table, register_table
from ..verdict import agreement
from . import verdict


def _rows(run: Run) -> list[Row]:
    return list(agreement(list(verdict.TABLE.rows(run))))


TABLE = register_table(
    Table(
        "agreement",
        "How many seeds give each label to a pair of anchors; seeds are never pooled.",
        (
            Column("arm", str, "training recipe, or the name of an observed series"),
            Column("from", int, "step of the earlier anchor"),
            Column("to", int, "step of the later anchor"),
            Column("label", str, "the label"),
            Column("agree", int, "seeds that give it"),
            Column("seeds", int, "seeds in all"),
            Column("which", str, "the seeds that give it"),
            Column("expansions", int, "seeds in which effective rank changed"),
        ),
        _rows,
    )
)
