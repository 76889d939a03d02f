"""Pairs in which nothing changed, or nothing but the seed, through the same decision."""

from ...report.tables import Column
from ..nulls import label_counts
from ..run import Run
from ..stages.null import Null
from ..stages.regime import Regime
from ..table import ANCHOR, Row, Shown, Table, register_table


def _rows(run: Run) -> list[Row]:
    rows: list[Row] = []
    for ref, found in run.each(Null):
        counts = label_counts(each.label for each in found.redraws)
        rows += [
            {**ref.columns, "kind": "same_checkpoint", "label": label, "count": count}
            for label, count in counts.items()
        ]
    shift = run.config.verdict.depth_shift
    for ref, regimes in run.each(Regime):
        for pair in regimes.pairs:
            angle = pair.change.angle.degrees
            rows.append(
                {
                    **ref.columns,
                    "kind": "same_regime",
                    "label": pair.label,
                    "count": 1,
                    "other_seed": pair.seed,
                    "angle": angle.value,
                    "angle_lo": angle.lo,
                    "angle_hi": angle.hi,
                    "p_moved": pair.evidence.places.shares("depth", shift).moved,
                    "reasons": " ".join(pair.reasons),
                }
            )
    return rows


TABLE = register_table(
    Table(
        "nulls",
        "How often each label comes out where nothing changed: one checkpoint with all prompts drawn anew "
        "(`same_checkpoint`), and what two seeds of one recipe show (`same_regime`, a baseline, no error rate).",
        (
            *ANCHOR,
            Column("kind", str, "same_checkpoint or same_regime"),
            Column("label", str, "a label of the verdict"),
            Column("count", int, "how many redraws, or pairs of seeds, gave it"),
            Column("other_seed", int, "the earlier seed of a pair"),
            Column("angle", float, "corrected angle between the two seeds", "degrees"),
            Column("angle_lo", float, "lower end of its 95 % interval", "degrees"),
            Column("angle_hi", float, "upper end of its 95 % interval", "degrees"),
            Column("p_moved", float, "share of draws in which the carrier is elsewhere at the other seed"),
            Column("reasons", str, "the evidence of a pair of seeds, in sentences"),
        ),
        _rows,
        Shown(
            "verdict",
            "Nulls",
            note="A rule is worth its false labels: of redraws of one checkpoint every label but “no change” and "
            "“undetermined” is one.",
        ),
    )
)
