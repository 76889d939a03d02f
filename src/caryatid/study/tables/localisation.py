"""The carrier ablated at one layer at a time."""

from ...report.tables import Column
from ..run import Run
from ..stages.interventions import Interventions
from ..table import ANCHOR, QUANTITY, Row, Shown, Table, register_table


def _rows(run: Run) -> list[Row]:
    return [{**ref.columns, **row} for ref, found in run.each(Interventions) for row in found.localisation]


TABLE = register_table(
    Table(
        "localisation",
        "Refusal scores with the carrier ablated at the sites of one block at a time, teacher-forced.",
        (
            *ANCHOR,
            Column("layer", int, "the block"),
            *QUANTITY,
            Column("n", int, "harmful prompts"),
            Column("carrier_layer", int, "the carrier's own layer"),
            Column("carrier_position", int, "the carrier's own position"),
            Column("carrier_admissible", bool, "a profile's carrier, not a stand-in"),
        ),
        _rows,
        Shown("causal", "Layer profile"),
    )
)
