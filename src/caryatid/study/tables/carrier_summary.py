"""Each anchor's carrier with its uncertainty, under every profile."""

import math

from ...geometry.bootstrap import CarrierBootstrap, covered_share
from ...report.tables import Column
from ..profiles import profiles_of
from ..run import Run
from ..stages.candidates import ScoredCandidates
from ..stages.carrier import ChosenCarrier
from ..stages.reextraction import Reextraction
from ..stages.uncertainty import BOTH, SELECTION, Uncertainty
from ..table import ANCHOR, NOISE, PROFILE, QUANTITY, SELECTOR, Row, Table, register_table


def bootstraps(run: Run) -> list[tuple[Row, str, CarrierBootstrap]]:
    """Columns that name an anchor, profile and noise; the profile; the draws."""
    found: list[tuple[Row, str, CarrierBootstrap]] = []
    for ref, uncertain in run.each(Uncertainty):
        for profile in profiles_of(run.config, run.of(ChosenCarrier, ref).profile):
            for noise, draws in ((SELECTION, uncertain.selection), (BOTH, uncertain.both)):
                if profile.name in draws:
                    which = {"profile": profile.name, "selector": profile.selector, "noise": noise}
                    found.append(({**ref.columns, **which}, profile.name, draws[profile.name]))
    return found


def _rows(run: Run) -> list[Row]:
    choices = {(*ref.columns.values(),): (ref, found) for ref, found in run.each(ChosenCarrier)}
    rows: list[Row] = []
    for where, profile, draws in bootstraps(run):
        ref, carriers = choices[where["seed"], where["arm"], where["step"]]
        choice, uncertain = carriers.chosen[profile].choice, run.of(Uncertainty, ref)
        note = run.of(ScoredCandidates, ref).note
        facts = {
            "gap": choice.gap,
            "admissible": choice.admissible,
            "reason": choice.reason or "",
            "note": note if choice.reason == "undiscriminating refusal" else "",
            "position": choice.position,
            "argmin_layer": choice.layer,
            "depth_layer": choice.depth_layer,
            "p_none": draws.none_share,
            "resamples": uncertain.resamples if where["noise"] == BOTH else 0,
            "covered": None,
        }
        if facts["resamples"]:
            scored, anew = run.of(ScoredCandidates, ref).scores, run.of(Reextraction, ref).resamples
            covered = covered_share(uncertain.selection[profile], scored, min(anew, key=len))
            facts["covered"] = None if math.isnan(covered) else covered
        quantities = {"depth": draws.depth, "argmin_depth": draws.argmin_depth}
        if where["noise"] == SELECTION:
            quantities["bypass_effect"] = uncertain.bypass_effect[profile]
        rows += [
            {**where, **facts, "quantity": name, **value._asdict()} for name, value in quantities.items()
        ]
    return rows


TABLE = register_table(
    Table(
        "carrier_summary",
        "The carrier of every anchor and profile, or why there is none, with intervals of its place and effect.",
        (
            *ANCHOR,
            PROFILE,
            SELECTOR,
            Column("gap", float, "h − s: mean refusal score of harmful minus of harmless prompts", "nats"),
            Column("admissible", int, "number of admissible candidates"),
            Column("reason", str, "why there is no carrier; empty where there is one"),
            Column("note", str, "on the refused-minus-answered direction"),
            Column("position", int, "prompt position of the best candidate"),
            Column("argmin_layer", int, "its layer"),
            Column("depth_layer", int, "earliest admissible layer about as good"),
            Column("p_none", float, "share of draws without a carrier"),
            NOISE,
            *QUANTITY,
            Column("resamples", int, "of the extraction prompts"),
            Column(
                "covered",
                float,
                "share of draws of the selection prompts whose best candidate is among those scored anew for all "
                "resamples; where it is low, p_none may be too high (geometry.reextraction_candidates)",
            ),
        ),
        _rows,
    )
)
