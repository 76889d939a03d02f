"""What training an anchor took and did, from step 0."""

from ...report.tables import Column
from ..run import Run
from ..series import BASE
from ..stages.train import Train
from ..table import ANCHOR, Row, Shown, Table, register_table

# Step 0's row: no loss yet, and nothing spent or changed.
STEP_ZERO = {
    **dict.fromkeys(("loss_sft", "loss_away", "loss_toward", "gcg_loss")),
    **dict.fromkeys(("loss_reroute", "loss_retain", "loss_dpo")),
    **dict.fromkeys(("gcg_steps", "tokens", "gcg_tokens"), 0),
    **dict.fromkeys(("flops", "delta_weight", "benign_kl", "seconds"), 0.0),
}


def _rows(run: Run) -> list[Row]:
    """Every arm's anchors; step 0, from which all is counted, once per seed. Nothing for an observed series."""
    trained = list(run.each(Train))
    seeds = dict.fromkeys(arm.seed for arm, _ in trained)
    rows: list[Row] = [{"seed": seed, "arm": BASE, "step": 0, **STEP_ZERO} for seed in seeds]
    return rows + [{"seed": arm.seed, **row} for arm, found in trained for row in found.rows]


TABLE = register_table(
    Table(
        "training",
        "Losses (means since the anchor before), distance from step 0 and cost (sums since step 0) at every anchor.",
        (
            *ANCHOR,
            Column("loss_sft", float, "cross-entropy on assistant turns", "nats per token"),
            Column("loss_away", float, "−log(1 − p) of affirmative targets", "nats per token"),
            Column("loss_toward", float, "cross-entropy of the refusal trained toward", "nats per token"),
            Column("gcg_loss", float, "target loss of the cases after their last GCG step", "nats per token"),
            Column("loss_reroute", float, "mean ReLU of the cosine with step 0's representations"),
            Column("loss_retain", float, "mean distance from step 0's representations of chat"),
            Column("loss_dpo", float, "−log σ of DPO's margin", "nats"),
            Column("gcg_steps", int, "GCG steps over all cases"),
            Column("tokens", int, "tokens trained on"),
            Column("flops", float, "floating-point operations, attacks included"),
            Column("delta_weight", float, "Frobenius norm of the change of all weights"),
            Column("benign_kl", float, "KL from step 0 on benign answers", "nats per token"),
            Column("seconds", float, "time spent training", "s"),
            Column("gcg_tokens", int, "tokens run by attacks, or for step 0's values"),
            Column("pool_age", float, "mean number of updates since the cases of the pool began"),
            Column("gcg_batch", int, "candidates scored at once"),
            Column("gcg_stalled", int, "GCG steps in which no candidate survived the round trip"),
        ),
        _rows,
        Shown("training", "Training"),
    )
)
