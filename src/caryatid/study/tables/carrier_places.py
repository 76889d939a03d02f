"""How often each layer and position is the best carrier's over the draws."""

from ...report.tables import Column
from ..run import Run
from ..table import ANCHOR, NOISE, PROFILE, SELECTOR, Row, Shown, Table, register_table
from .carrier_summary import bootstraps


def _rows(run: Run) -> list[Row]:
    rows: list[Row] = []
    for where, _, draws in bootstraps(run):
        for axis, shares in (("layer", draws.layer_share), ("position", draws.position_share)):
            rows += [
                {**where, "axis": axis, "place": place, "probability": share}
                for place, share in shares.items()
            ]
    return rows


TABLE = register_table(
    Table(
        "carrier_places",
        "P(layer) and P(position) of the best candidate; what is missing to 1 are draws without a carrier.",
        (
            *ANCHOR,
            PROFILE,
            SELECTOR,
            NOISE,
            Column("axis", str, "layer or position"),
            Column("place", int, "which"),
            Column("probability", float, "share of all draws"),
        ),
        _rows,
        Shown("carriers", "P(layer) and P(position) of the best carrier"),
    )
)
