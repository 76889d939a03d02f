"""What the attacks came to and cost."""

from ...report.tables import Column
from ..run import Run
from ..series import BASE
from ..stages.adaptive import Adaptive
from ..stages.cases import Cases
from ..table import ANCHOR, Row, Shown, Table, register_table


def _rows(run: Run) -> list[Row]:
    """Sums over cases, and mean losses."""
    rows: list[Row] = []
    for place, found in run.each(Cases):
        where = {"seed": place.seed, "arm": BASE, "step": 0}
        rows.append({**where, "attack": "fixed_source", "sha256": found.sha256, **found.budget})
    for place, found in run.each(Adaptive):
        rows.append({**place.columns, "attack": "adaptive", "sha256": found.sha256, **found.budget})
    return rows


TABLE = register_table(
    Table(
        "attacks",
        "Budget and outcome of every attack: steps per case, the rest summed over cases, target losses averaged.",
        (
            *ANCHOR,
            Column("attack", str, "fixed_source or adaptive"),
            Column("cases", int, "behaviours attacked"),
            Column("together", int, "behaviours attacked at a time"),
            Column("steps", int, "steps per case; the most that one took"),
            Column(
                "stopped_early",
                int,
                "cases whose loss fell below `stop_below`, and that took no further steps",
            ),
            Column("stalled_steps", int, "steps in which no candidate survived the round trip"),
            Column("candidates", int, "candidates scored"),
            Column("forward_tokens", int, "tokens run forward"),
            Column("seconds", float, "time", "s"),
            Column("loss_before", float, "mean target loss of the initial suffixes", "nats per token"),
            Column("loss_after", float, "mean target loss of the texts as sent", "nats per token"),
            Column("sha256", str, "hash of the saved cases"),
            Column("batch_size", int, "candidates scored at once"),
        ),
        _rows,
        Shown("behaviour", "What the attacks came to, and their budgets"),
    )
)
