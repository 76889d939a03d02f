"""How many seeds agree on a label."""

from ...report.tables import Column
from ..decision import agreement
from ..run import Run
from ..table import Row, Table, register_table
from . import verdict


def _rows(run: Run) -> list[Row]:
    rows = [{**row, "rank": row["rank_change"]} for row in verdict.TABLE.rows(run)]
    return list(agreement(rows))


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
            Column("expansions", int, "seeds that show more dimensions"),
            Column("contractions", int, "seeds that show fewer"),
        ),
        _rows,
    )
)
