"""Drift of the direction and the subspace between two anchors, at step 0's site."""

from ...geometry.bootstrap import shift_shares
from ...report.tables import Column
from ..run import Run
from ..series import verdict_pairs
from ..stages.comparison import Comparison
from ..stages.uncertainty import BOTH, SELECTION
from ..stages.verdict import Decided, Verdicts
from ..table import NOISE, PAIR, QUANTITY, SITE, Row, Shown, Table, register_table

ANY_SHIFT = 1e-6  # of depth, which comes in steps of 1/L


def _rows(run: Run) -> list[Row]:
    decided = {pair for seed in run.config.seeds for pair in verdict_pairs(run.config, seed)}
    rows: list[Row] = []
    for pair, found in run.each(Comparison):
        kept = [
            row for row in found.drift if pair in decided or row["quantity"] != "effective_rank_difference"
        ]
        rows += [{**pair.columns, **row} for row in kept]
        if pair in decided:
            rows += [{**pair.columns, **row} for row in _shifted(run, run.of(Verdicts, pair))]
    return rows


def _shifted(run: Run, decided: Decided) -> list[Row]:
    """How likely the two anchors differ in depth at all, and by as much as a move takes; draws without a carrier at one
    of them are in neither."""
    evidence = decided.evidence
    draws = {
        "depth": (evidence.depth_a, evidence.depth_b),
        "argmin_depth": (evidence.argmin_a, evidence.argmin_b),
    }
    shifts = {"differs": ANY_SHIFT, "moved": run.config.verdict.depth_shift}
    noise = BOTH if run.config.geometry.reextraction_resamples else SELECTION
    return [
        {
            "quantity": f"p_{name}_{what}",
            "value": shift_shares(*pair, shift).moved,
            "unit": "probability",
            "noise": noise,
        }
        for name, pair in draws.items()
        for what, shift in shifts.items()
    ]


TABLE = register_table(
    Table(
        "drift",
        "How far direction and subspace turned between two anchors at one site, and how likely the carrier moved.",
        (
            *PAIR,
            *QUANTITY,
            *SITE,
            Column("splits", int, "random halves that an angle is averaged over"),
            Column("unit", str, "of the value"),
            NOISE,
            Column("rank", int, "of the subspaces compared"),
        ),
        _rows,
        Shown("geometry", "Drift"),
    )
)
