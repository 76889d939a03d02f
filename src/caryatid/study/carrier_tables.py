"""Tables about each anchor's carrier: candidates, the best with its uncertainty, its place, and the threshold sweep."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ..causal.activations import at_site
from ..geometry.angles import angle_summary, excess_angle_value
from ..geometry.bootstrap import (
    CarrierBootstrap,
    bootstrap_carrier,
    bootstrap_reextracted,
    bypass_effect_interval,
)
from ..geometry.carriers import (
    CandidateScores,
    CarrierChoice,
    Profile,
    average,
    candidate_table,
    select,
    threshold_sweep,
)
from ..geometry.directions import category_directions, mean_difference, subspace
from ..geometry.profiles import SELECTORS
from ..stats import Interval
from .carrier import choose, labels_of, profile_of, read_bank, read_resamples
from .context import Context
from .series import AnchorRef

Row = dict[str, Any]
Tables = Mapping[str, list[Row]]
PROFILES = ("published", "calibrated")
SELECTION, BOTH = "selection prompts", "selection and extraction prompts"
UNITS = {
    **dict.fromkeys(("excess_angle", "corrected_angle", "angle_across_halves"), "degrees"),
    **dict.fromkeys(("angle_within_halves", "subspace_mean", "subspace_max"), "degrees"),
    "subspace_grassmann": "radians",
}
NAMES = ("carriers", "carrier_summary", "carrier_places", "selectors", "threshold_sweep")


def add_carrier_tables(
    context: Context, ref: AnchorRef, rng: Callable[[], np.random.Generator], tables: Tables
) -> dict[str, CarrierBootstrap]:
    """Fill an anchor's rows; returns, by profile, the draws that verdicts use, and by its name the other selector's.

    These contain the noise of the selection prompts, and of the extraction prompts where directions were re-extracted;
    the other selector's that of the selection prompts alone.
    `rng` makes generators of one seed, so that anchors are compared draw by draw.
    """
    config = context.config.geometry
    scores, resamples = read_bank(context, ref), read_resamples(context, ref)
    where = {"seed": ref.seed, "arm": ref.arm, "step": ref.step}
    settings: dict[str, Any] = {"draws": config.bootstrap_draws, "min_gap": config.min_gap}
    used: dict[str, CarrierBootstrap] = {}
    facts = context.anchor_stage("bank", ref).manifest()["facts"]
    note = facts.get("refused_minus_answered", "")
    for name in PROFILES:
        profile = profile_of(context.config, name)
        choice = choose(context, ref, scores, profile)
        tables["selectors"] += [{**where, **row} for row in selector_rows(scores, profile, choice)]
        tables["carriers"] += [{**where, **row} for row in candidate_table(scores, profile, choice)]
        found = {SELECTION: bootstrap_carrier(scores, profile, rng=rng(), **settings)}
        if resamples:
            found[BOTH] = bootstrap_reextracted(scores, resamples, profile, rng=rng(), **settings)
        for noise, one in found.items():
            which = {"profile": name, "selector": profile.selector, "noise": noise}
            tables["carrier_places"] += [{**where, **which, **row} for row in _places(one)]
            effect = _effect(scores, choice, config.bootstrap_draws, rng) if noise == SELECTION else None
            tables["carrier_summary"] += [
                {**where, **row, "resamples": len(resamples) if noise == BOTH else 0}
                for row in _summary(profile, choice, one, noise, effect, note)
            ]
        used[name] = found.get(BOTH, found[SELECTION])
    profile = profile_of(context.config)
    for selector in SELECTORS:
        if selector != profile.selector:
            other = replace(profile, selector=selector)
            used[selector] = bootstrap_carrier(scores, other, rng=rng(), **settings)
    own = choose(context, ref, scores, profile)
    for sweep in threshold_sweep(scores, profile, min_gap=config.min_gap):
        named = own if not own.gap_suffices else sweep  # the sweep alone does not know the refusal rates
        row = {**sweep._asdict(), "reason": named.reason or "", "profile": profile.name}
        row["selector"] = profile.selector
        tables["threshold_sweep"].append({**where, **row})
    return used


def selector_rows(scores: CandidateScores, profile: Profile, choice: CarrierChoice) -> list[Row]:
    """Where each selector puts the carrier, under the same KL and depth cuts; point values.

    `score` is the mean bypass in nats (lower is better) for `bypass`, the sum of the two cosines (higher is better) for
    `cosmic`. `used` marks the study's own selector, whose choice is `choice`.
    """
    means = average(scores, cosmic=scores.cosmic is not None)
    value = {"bypass": means.bypass[0]}
    if means.cosmic is not None:
        value["cosmic"] = means.cosmic[0]
    rows: list[Row] = []
    for name in SELECTORS:
        if name not in value:
            continue
        found = choice
        if name != profile.selector and choice.gap_suffices:
            found = select(scores, replace(profile, selector=name), min_gap=-math.inf)
        index = found.best
        row: Row = {"selector": name, "used": name == profile.selector, "profile": profile.name}
        measured = ("score", value[name]), ("bypass", means.bypass[0]), ("kl", means.kl[0])
        rows.append(
            {
                **row,
                "position": found.position,
                "layer": found.layer,
                "depth": found.argmin_depth,
                **{key: math.nan if index is None else float(array[index]) for key, array in measured},
                "agrees": index == choice.best,
                "reason": found.reason or "",
            }
        )
    return rows


def _effect(
    scores: CandidateScores, choice: CarrierChoice, draws: int, rng: Callable[[], np.random.Generator]
) -> Interval:
    if choice.best is None:
        return Interval(*(float("nan"),) * 3)
    return bypass_effect_interval(scores, choice.best, draws=draws, rng=rng())


def _summary(
    profile: Profile,
    choice: CarrierChoice,
    found: CarrierBootstrap,
    noise: str,
    effect: Interval | None,
    note: str,
) -> list[Row]:
    facts = {
        "profile": profile.name,
        "selector": profile.selector,
        "gap": choice.gap,
        "admissible": choice.admissible,
        "reason": choice.reason or "",
        "note": note if choice.reason == "undiscriminating refusal" else "",
        "position": choice.position,
        "argmin_layer": choice.layer,
        "depth_layer": choice.depth_layer,
        "p_none": found.none_share,
        "noise": noise,
    }
    quantities = {"depth": found.depth, "argmin_depth": found.argmin_depth}
    if effect is not None:
        quantities["bypass_effect"] = effect
    return [{**facts, "quantity": name, **value._asdict()} for name, value in quantities.items()]


def _places(found: CarrierBootstrap) -> list[Row]:
    """P(layer) and P(position) of the best candidate; what is missing to 1 are draws without a carrier."""
    rows = [("layer", place, share) for place, share in found.layer_share.items()]
    rows += [("position", place, share) for place, share in found.position_share.items()]
    return [{"axis": axis, "place": place, "probability": share} for axis, place, share in rows]


def drift_by_layer(
    context: Context, a: AnchorRef, b: AnchorRef, rng: Callable[[], np.random.Generator]
) -> list[Row]:
    """Drift a → b at every layer, last position: cosine and excess angle of the directions, and principal angles and
    distances of the subspaces.

    Layers at which nothing differs are left out. Point values, angles in degrees; the carrier's site alone has
    intervals (table `drift`).
    """
    config, labels = context.config.geometry, labels_of(context.prompts.extraction_harmful)
    sides = [
        context.anchor_stage("activations", ref).read_tensors("activations.safetensors") for ref in (a, b)
    ]
    pair: Row = {"seed": b.seed, "arm": b.arm, "from": a.step, "to": b.step}
    rows: list[Row] = []
    for layer in range(sides[0]["harmful"].shape[1]):
        here, there = (at_site(side["harmful"], side["harmless"], layer, -1) for side in sides)
        one, two = mean_difference(*here), mean_difference(*there)
        if not one.any() or not two.any():
            continue  # the last template token's own embedding: nothing differs yet
        spans = [subspace(category_directions(*at, labels).rows, config.rank).basis for at in (here, there)]
        angles = angle_summary(*spans)
        values = {
            "cosine": float(torch.nn.functional.cosine_similarity(one, two, dim=0)),
            "excess_angle": excess_angle_value(here, there, labels, splits=config.splits, rng=rng()),
            **{f"subspace_{name}": getattr(angles, name) for name in ("mean", "max", "grassmann", "chordal")},
        }
        rows += [
            {**pair, "layer": layer, "quantity": name, "value": value, "unit": UNITS.get(name, "")}
            for name, value in values.items()
        ]
    return rows
