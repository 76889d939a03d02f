"""Every scored candidate at every anchor."""

from ...geometry.carrier_rows import candidate_table
from ...report.tables import Column
from ..profiles import profiles_of
from ..run import Run
from ..stages.candidates import ScoredCandidates
from ..stages.carrier import ChosenCarrier
from ..table import ANCHOR, PROFILE, SELECTOR, Row, Shown, Table, register_table


def _rows(run: Run) -> list[Row]:
    rows: list[Row] = []
    for ref, found in run.each(ScoredCandidates):
        carriers = run.of(ChosenCarrier, ref)
        for profile in profiles_of(run.config, carriers.profile):
            table = candidate_table(found.scores, profile, carriers.chosen[profile.name].choice)
            rows += [{**ref.columns, **row} for row in table]
    return rows


TABLE = register_table(
    Table(
        "carriers",
        "Every scored candidate direction under every profile, admissible or not.",
        (
            *ANCHOR,
            Column("position", int, "prompt position at which it was extracted; −1 is the last token"),
            Column("layer", int, "block at whose input it was extracted"),
            Column("depth", float, "layer over the number of layers"),
            Column(
                "bypass", float, "mean refusal score of harmful prompts with it ablated everywhere", "nats"
            ),
            Column(
                "induce", float, "mean refusal score of harmless prompts with it added at its layer", "nats"
            ),
            Column("kl", float, "KL(base ‖ ablated) of the next token on harmless prompts", "nats"),
            Column("bypass_effect", float, "share of the gap that ablation removes"),
            Column("induce_effect", float, "share of the gap that addition induces"),
            PROFILE,
            Column("admissible", bool, "passes the profile's thresholds"),
            Column("best", bool, "the carrier"),
            Column("kl_answer", float, "the KL over the first answer tokens", "nats per token"),
            SELECTOR,
            Column("cosmic_ablated", float, "COSMIC: cosine of ablated harmful and harmless means"),
            Column("cosmic_added", float, "COSMIC: cosine of added harmless and harmful means"),
        ),
        _rows,
        Shown(
            "carriers",
            "Every scored candidate",
            (
                *(
                    "seed",
                    "arm",
                    "step",
                    "position",
                    "layer",
                    "depth",
                    "bypass",
                    "induce",
                    "kl",
                    "bypass_effect",
                ),
                *("induce_effect", "profile", "selector", "admissible", "best"),
            ),
        ),
    )
)
