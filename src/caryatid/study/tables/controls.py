"""How well random controls match the carrier."""

from ...report.tables import Column
from ..run import Run
from ..stages.interventions import Interventions
from ..table import ANCHOR, Row, Shown, Table, register_table
from .causal import CARRIER_SITE


def _rows(run: Run) -> list[Row]:
    return [{**ref.columns, **row} for ref, found in run.each(Interventions) for row in found.controls]


TABLE = register_table(
    Table(
        "controls",
        "Mean ‖Px‖² over benign activations of each random subspace, beside the carrier's.",
        (
            *ANCHOR,
            Column("rank", int, "of the subspace"),
            Column("kind", str, "matched, isotropic or covariance"),
            Column("draw", int, "number of the draw"),
            Column("energy", float, "mean ‖Px‖² of the random subspace"),
            Column("carrier", float, "mean ‖Px‖² of the carrier"),
            Column("tilt", float, "exponent of the covariance that it was drawn with"),
            *CARRIER_SITE,
        ),
        _rows,
        Shown("causal", "Random controls: mean ‖Px‖² on benign activations, and the carrier's"),
    )
)
