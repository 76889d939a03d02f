"""Tests between arms at the same step and at matched benign KL."""

import math

import numpy as np

from ...behaviour.comparisons import AnchorAnswers, compare_arms
from ...report.tables import Column
from ..run import Run
from ..series import AnchorRef
from ..table import Row, Shown, Table, register_table
from . import training
from .behaviour import judged_answers

DRAWS = 1000


def _rows(run: Run) -> list[Row]:
    kl = {
        AnchorRef(row["seed"], row["arm"], row["step"]): float(row["benign_kl"])
        for row in training.TABLE.rows(run)
    }
    anchors = [
        AnchorAnswers(ref.arm, ref.step, ref.seed, rows, kl.get(ref, math.nan))
        for ref, rows, _ in judged_answers(run)
    ]
    return list(compare_arms(anchors, draws=DRAWS, rng=np.random.default_rng(0)))


TABLE = register_table(
    Table(
        "comparisons",
        "Two arms on the same prompts: McNemar's exact test with Newcombe's interval (scores: paired bootstrap); Holm.",
        (
            Column("matched", str, "step, or benign KL"),
            Column("step_a", int, "step of the first anchor"),
            Column("step_b", int, "step of the second anchor"),
            Column("seed", int, "seed of both"),
            Column(
                "benign_kl_a", float, "the first anchor's KL from step 0 on benign text", "nats per token"
            ),
            Column("benign_kl_b", float, "the second anchor's", "nats per token"),
            Column("arm_a", str, "the first arm"),
            Column("arm_b", str, "the second arm"),
            Column("suite", str, "as in `behaviour`"),
            Column("attack", str, "as in `behaviour`"),
            Column("metric", str, "as in `behaviour`"),
            Column("value_a", float, "the first anchor's rate or mean"),
            Column("value_b", float, "the second anchor's"),
            Column("difference", float, "first minus second"),
            Column("lo", float, "lower end of its 95 % interval"),
            Column("hi", float, "upper end of its 95 % interval"),
            Column("n", int, "prompts that both answered and that were scored"),
            Column("p", float, "of the test"),
            Column("p_holm", float, "adjusted over the whole table"),
            Column("prompt_set", str, "as in `behaviour`"),
            Column("only_a", int, "prompts on which the first has more"),
            Column("only_b", int, "prompts on which the second has more"),
            Column("test", str, "McNemar exact, or paired bootstrap"),
            Column("judge", str, "`name@version` of what judged the answers"),
        ),
        _rows,
        Shown(
            "behaviour", "Tests between arms at the same step, and at matched KL from step 0 on benign text"
        ),
    )
)
