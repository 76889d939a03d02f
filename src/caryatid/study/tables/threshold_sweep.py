"""Carrier depth against the KL cut."""

from ...geometry.carrier_rows import threshold_sweep
from ...report.tables import Column
from ..profiles import profile_of
from ..run import Run
from ..stages.candidates import ScoredCandidates
from ..stages.carrier import ChosenCarrier
from ..table import ANCHOR, PROFILE, SELECTOR, Row, Shown, Table, register_table


def _rows(run: Run) -> list[Row]:
    rows: list[Row] = []
    for ref, found in run.each(ScoredCandidates):
        carriers = run.of(ChosenCarrier, ref)
        own, profile = carriers.own.choice, profile_of(run.config, carriers.profile)
        for sweep in threshold_sweep(found.scores, profile, min_gap=run.config.geometry.min_gap):
            named = own if not own.gap_suffices else sweep  # the sweep alone does not know the refusal rates
            row = {**sweep._asdict(), "reason": named.reason or ""}
            row |= {"profile": profile.name, "selector": profile.selector}
            rows.append({**ref.columns, **row})
    return rows


TABLE = register_table(
    Table(
        "threshold_sweep",
        "Where the carrier is under other KL cuts, everything else as in the study's profile.",
        (
            *ANCHOR,
            PROFILE,
            Column("kl_max", float, "the cut", "nats"),
            Column("depth", float, "carrier depth"),
            Column("reason", str, "why there is no carrier; empty where there is one"),
            Column("admissible", int, "number of admissible candidates"),
            Column("argmin_depth", float, "layer of the best candidate over the number of layers"),
            Column("position", int, "its prompt position"),
            SELECTOR,
        ),
        _rows,
        Shown("carriers", "Threshold sweep: carrier depth against the KL cut"),
    )
)
