"""Read-outs of every anchor under interventions and controls."""

from ...report.tables import Column
from ..run import Run
from ..stages.interventions import Interventions
from ..table import ANCHOR, RATE, Row, Table, register_table

CARRIER_SITE = (
    Column("layer", int, "block at whose input the carrier is read and added"),
    Column("position", int, "prompt position at which it was extracted; −1 is the last token"),
    Column("carrier_admissible", bool, "a profile's carrier, not a stand-in"),
)


def _rows(run: Run) -> list[Row]:
    return [{**ref.columns, **row} for ref, found in run.each(Interventions) for row in found.causal]


TABLE = register_table(
    Table(
        "causal",
        "Refusal, over-refusal, usefulness, benign KL and perplexity with directions ablated, added or set.",
        (
            *ANCHOR,
            Column("intervention", str, "none, ablate, add or affine"),
            Column("rank", int, "number of directions; 0 for none"),
            Column(
                "alpha",
                float,
                "strength of an ablation, of an addition in units of ‖r‖, or of an affine edit",
            ),
            Column(
                "control",
                str,
                "none, carrier, random (matched), another random kind, or another direction's name",
            ),
            Column("read_out", str, "what is measured"),
            *RATE,
            *CARRIER_SITE,
            Column("draw", int, "number of a random control"),
            Column("note", str, "why a value is undefined"),
        ),
        _rows,
    )
)
