"""Where each selector, bypass and COSMIC, puts the carrier."""

import math
from collections.abc import Iterator
from dataclasses import replace

from ...geometry.carriers import CandidateScores, CarrierChoice, Profile, average, select
from ...geometry.profiles import SELECTORS
from ...report.tables import Column
from ..profiles import profiles_of
from ..run import Run
from ..stages.candidates import ScoredCandidates
from ..stages.carrier import ChosenCarrier
from ..table import ANCHOR, PROFILE, SELECTOR, Row, Shown, Table, register_table


def selector_rows(scores: CandidateScores, profile: Profile, choice: CarrierChoice) -> Iterator[Row]:
    """One row a selector, under the same KL and depth cuts; `choice` is that of the profile's own selector."""
    means = average(scores, cosmic=scores.cosmic is not None)
    value = {"bypass": means.bypass[0]}
    if means.cosmic is not None:
        value["cosmic"] = means.cosmic[0]
    for name in SELECTORS:
        if name not in value:
            continue
        found = choice
        if name != profile.selector and choice.gap_suffices:
            found = select(scores, replace(profile, selector=name), min_gap=-math.inf)
        index = found.best
        measured = ("score", value[name]), ("bypass", means.bypass[0]), ("kl", means.kl[0])
        yield {
            "selector": name,
            "used": name == profile.selector,
            "profile": profile.name,
            "position": found.position,
            "layer": found.layer,
            "depth": found.argmin_depth,
            **{key: math.nan if index is None else float(array[index]) for key, array in measured},
            "agrees": index == choice.best,
            "reason": found.reason or "",
        }


def _rows(run: Run) -> list[Row]:
    return [
        {**ref.columns, **row}
        for ref, found in run.each(ScoredCandidates)
        for profile in profiles_of(run.config, run.of(ChosenCarrier, ref).profile)
        for row in selector_rows(
            found.scores, profile, run.of(ChosenCarrier, ref).chosen[profile.name].choice
        )
    ]


TABLE = register_table(
    Table(
        "selectors",
        "The carrier by lowest bypass and by COSMIC (arXiv 2506.00085), under the same KL and depth cuts.",
        (
            *ANCHOR,
            SELECTOR,
            PROFILE,
            Column("reason", str, "why there is no carrier; empty where there is one"),
            Column("position", int, "prompt position of the carrier"),
            Column("layer", int, "its layer"),
            Column("depth", float, "its layer over the number of layers"),
            Column(
                "score",
                float,
                "mean bypass in nats (lower is better), or COSMIC's sum of cosines (higher)",
            ),
            Column("bypass", float, "its mean bypass", "nats"),
            Column("kl", float, "its KL", "nats"),
            Column("agrees", bool, "the same candidate as the study's selector"),
            Column("used", bool, "the study's selector"),
        ),
        _rows,
        Shown("carriers", "Where each selector, bypass and COSMIC, puts the carrier"),
    )
)
