"""Places of two anchors' carriers, draw by draw: what a verdict on a move reads."""

import math
from collections import Counter

import numpy as np

from ...report.tables import Column
from ..decision import Places
from ..run import Run
from ..stages.verdict import Verdicts
from ..table import PAIR, Row, Table, register_table

DIGITS = 9  # places that agree in so many decimals are one
QUANTITIES = ("depth", "centre", "argmin")
COLUMNS = tuple(f"{name}_{side}" for name in QUANTITIES for side in ("from", "to"))


def shift_rows(places: Places) -> list[Row]:
    """The distinct places of both carriers over the draws, the most frequent first.

    Centres of mass that differ in the last bits, as sums in another order do, are one place.
    """
    sides = [getattr(places, f"{name}_{which}") for name in QUANTITIES for which in "ab"]
    draws = np.column_stack(sides)
    found = Counter(
        tuple(None if math.isnan(value) else round(float(value), DIGITS) for value in row) for row in draws
    )
    ordered = sorted(found.items(), key=lambda item: (-item[1], str(item[0])))
    return [{**dict(zip(COLUMNS, places, strict=True)), "draws": count} for places, count in ordered]


def _rows(run: Run) -> list[Row]:
    return [
        {**pair.columns, **row}
        for pair, found in run.each(Verdicts)
        for row in shift_rows(found.evidence.places)
    ]


TABLE = register_table(
    Table(
        "shifts",
        "The distinct places of both carriers over the draws, with their counts; empty: no carrier in these draws.",
        (
            *PAIR,
            Column("depth_from", float, "carrier depth of the earlier anchor"),
            Column("depth_to", float, "carrier depth of the later anchor"),
            Column("centre_from", float, "centre of mass of the admissible layers of the earlier anchor"),
            Column("centre_to", float, "centre of mass of the admissible layers of the later anchor"),
            Column("argmin_from", float, "depth of the best layer of the earlier anchor"),
            Column("argmin_to", float, "depth of the best layer of the later anchor"),
            Column("draws", int, "how many draws"),
        ),
        _rows,
    )
)
