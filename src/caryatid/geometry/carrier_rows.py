"""Carriers as rows of tables: every candidate under a profile, and carrier depth against the KL cut (protocol §5)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from .carriers import (
    KL_CUTS,
    MIN_GAP,
    CandidateScores,
    CarrierChoice,
    NoCarrier,
    admissible,
    average,
    effects,
    select,
)
from .profiles import Profile


def candidate_table(
    scores: CandidateScores, profile: Profile, choice: CarrierChoice | None = None
) -> list[dict[str, object]]:
    """One row per scored candidate with the columns of a run's `carriers` table, arm and step left out.

    `best` marks the choice, by default that of `select`; `admissible` and `best` are the selector's. Where the gap was
    too small to look for a carrier, effects (shares of that gap) are NaN. The two cosines of COSMIC are there where
    they were measured.
    """
    choice = choice or select(scores, profile)
    means = average(scores, cosmic=profile.selector == "cosmic")
    passed = admissible(means, scores.layers, scores.n_layers, profile)[0]
    size = effects(means if choice.gap_suffices else means._replace(s=means.h))
    with np.errstate(invalid="ignore"):
        answer = scores.kl_answer.astype(np.float64).mean(axis=1)
    cosines: list[dict[str, float]] = [{}] * len(scores)
    if scores.cosmic is not None:
        ablated, added, _ = scores.cosmic.scores()
        pairs = zip(ablated[0].tolist(), added[0].tolist(), strict=True)
        cosines = [{"cosmic_ablated": one, "cosmic_added": other} for one, other in pairs]
    return [
        {
            "position": int(scores.positions[index]),
            "layer": int(scores.layers[index]),
            "depth": int(scores.layers[index]) / scores.n_layers,
            "bypass": float(means.bypass[0, index]),
            "induce": float(means.induce[0, index]),
            "kl": float(means.kl[0, index]),
            "kl_answer": float(answer[index]),
            "bypass_effect": float(size.bypass[0, index]),
            "induce_effect": float(size.induce[0, index]),
            "profile": profile.name,
            "selector": profile.selector,
            "admissible": bool(passed[index]),
            "best": index == choice.best,
            **cosines[index],
        }
        for index in range(len(scores))
    ]


class SweepRow(NamedTuple):
    """What a KL cut leads to."""

    kl_max: float
    admissible: int
    depth: float
    argmin_depth: float
    position: int | None
    reason: NoCarrier | None


def threshold_sweep(
    scores: CandidateScores, profile: Profile, cuts: Sequence[float] = KL_CUTS, *, min_gap: float = MIN_GAP
) -> list[SweepRow]:
    """Carrier depth against the KL cut, everything else as in `profile`."""
    rows = []
    for cut in cuts:
        choice = select(scores, replace(profile, kl_max=cut), min_gap=min_gap)
        rows.append(
            SweepRow(
                cut, choice.admissible, choice.depth, choice.argmin_depth, choice.position, choice.reason
            )
        )
    return rows
