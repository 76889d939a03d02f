"""Drift of the direction and the subspace between two anchors, at the first one's site and at step 0's."""

from ...report.tables import Column
from ..run import Run
from ..stages.comparison import Comparison
from ..stages.uncertainty import BOTH, SELECTION
from ..stages.verdict import Decided, Verdicts
from ..table import NOISE, PAIR, QUANTITY, SITE, Row, Shown, Table, register_table


def _rows(run: Run) -> list[Row]:
    decided = {stage.place for stage in run.plan.of(Verdicts)}
    rows: list[Row] = []
    for pair, found in run.each(Comparison):
        rows += [{**pair.columns, **row} for row in found.drift]
        if pair in decided:
            rows += [{**pair.columns, **row} for row in _shifted(run, run.of(Verdicts, pair))]
    return rows


def _shifted(run: Run, decided: Decided) -> list[Row]:
    """How likely the carrier moved, with one-sided bounds whose unit is the re-extraction resample."""
    noise = BOTH if run.config.geometry.reextraction_resamples else SELECTION
    rows: list[Row] = []
    for name in ("depth", "centre", "argmin"):
        shares = decided.evidence.places.shares(name, run.config.verdict.depth_shift)
        for what in ("moved", "stayed"):
            value, lo = getattr(shares, what), getattr(shares, f"{what}_lo")
            rows.append({"quantity": f"p_{name}_{what}", "value": value, "lo": lo, "noise": noise})
    return [{**row, "unit": "probability"} for row in rows]


TABLE = register_table(
    Table(
        "drift",
        "How far direction and subspace turned between two anchors at one site, and how likely the carrier moved.",
        (
            *PAIR,
            *QUANTITY,
            *SITE,
            Column(
                "site",
                str,
                "first anchor: that of the pair's first anchor, which the verdict reads; or step 0",
            ),
            Column("splits", int, "random halves that an angle is averaged over"),
            Column("unit", str, "of the value"),
            NOISE,
            Column("note", str, "why a value is undefined"),
            Column("rank", int, "of the subspaces compared"),
        ),
        _rows,
        Shown("geometry", "Drift"),
    )
)
