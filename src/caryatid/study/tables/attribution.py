"""Which sublayers write the carrier at every anchor."""

from ...report.tables import Column
from ..run import Run
from ..stages.attribution import CarrierAttribution
from ..table import ANCHOR, SITE, Row, Shown, Table, register_table


def _rows(run: Run) -> list[Row]:
    return [{**ref.columns, **row} for ref, found in run.each(CarrierAttribution) for row in found.rows]


TABLE = register_table(
    Table(
        "attribution",
        "What embedding, sublayers and heads before the carrier add along it, harmful minus harmless prompts, and what "
        "ablating one sublayer's part takes from the refusal score (docs/geometry.md).",
        (
            *ANCHOR,
            Column("sublayer", str, "total, embedding, attention, mlp, or head (a part of attention)"),
            Column("block", int, "block that adds it"),
            Column("head", int, "number of the head"),
            Column("written", float, "difference of the mean inner products with r̂"),
            Column("share", float, "of the total"),
            Column("effect", float, "mean refusal score that goes when this part is ablated alone", "nats"),
            *SITE,
            Column("n", int, "harmful prompts"),
            Column("n_against", int, "harmless prompts"),
            Column("n_effect", int, "harmful prompts that the effect rests on"),
            Column("note", str, "why there is nothing to attribute"),
        ),
        _rows,
        Shown("geometry", "Which sublayers write the carrier"),
    )
)
