"""Tables about each anchor's carrier: candidates, the best with its uncertainty, its place, and the threshold sweep."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from ..geometry.angles import angle_summary
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
    threshold_sweep,
)
from ..geometry.cosmic import CosmicScores, select_cosmic
from ..geometry.directions import category_directions, mean_difference, subspace
from ..stats import Interval
from .carrier import choose, labels_of, profile_of, read_bank, read_resamples
from .context import Context
from .series import AnchorRef

Row = dict[str, Any]
Tables = Mapping[str, list[Row]]
PROFILES = ("published", "calibrated")
SELECTION, BOTH = "selection prompts", "selection and extraction prompts"
NAMES = ("carriers", "carrier_summary", "carrier_places", "selectors", "threshold_sweep")


def add_carrier_tables(
    context: Context, ref: AnchorRef, rng: Callable[[], np.random.Generator], tables: Tables
) -> dict[str, CarrierBootstrap]:
    """Fill an anchor's rows; returns, by profile, the draws that verdicts use.

    These contain the noise of the selection prompts, and of the extraction prompts where directions were re-extracted.
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
            tables["carrier_places"] += [
                {**where, "profile": name, "noise": noise, **row} for row in _places(one)
            ]
            effect = _effect(scores, choice, config.bootstrap_draws, rng) if noise == SELECTION else None
            tables["carrier_summary"] += [
                {**where, **row} for row in _summary(profile, choice, one, noise, effect, note)
            ]
        used[name] = found.get(BOTH, found[SELECTION])
    profile = profile_of(context.config)
    for sweep in threshold_sweep(scores, profile, min_gap=config.min_gap):
        row = {**sweep._asdict(), "reason": sweep.reason or "", "profile": profile.name}
        tables["threshold_sweep"].append({**where, **row})
    return used


def selector_rows(scores: CandidateScores, profile: Profile, choice: CarrierChoice) -> list[Row]:
    """Where each selector puts the carrier, under the same KL and depth cuts; point values.

    `score` is the mean bypass in nats (lower is better) for `bypass`, the sum of the two cosines (higher is better) for
    `cosmic`, which asks nothing of the refusal gap and of induce.
    """
    picks: dict[str, int | None] = {"bypass": choice.best}
    bypass, kl = average(scores).bypass[0], average(scores).kl[0]
    value = {"bypass": bypass}
    if scores.cosmic is not None:
        cosines = CosmicScores(scores.cosmic[:, 0], scores.cosmic[:, 1], scores.cosmic.sum(axis=1))
        layers = scores.layers.tolist()
        picks["cosmic"] = select_cosmic(cosines, kl, layers, scores.n_layers, profile)
        value["cosmic"] = cosines.total
    rows: list[Row] = []
    for name, index in picks.items():
        row: Row = {"selector": name, "profile": profile.name}
        if index is None:
            reason = choice.reason if name == "bypass" else "no admissible carrier"
            found = dict.fromkeys(("position", "layer", "depth", "score", "bypass", "kl"))
        else:
            reason = None
            layer = int(scores.layers[index])
            found = {
                "position": int(scores.positions[index]),
                "layer": layer,
                "depth": layer / scores.n_layers,
                "score": float(value[name][index]),
                "bypass": float(bypass[index]),
                "kl": float(kl[index]),
            }
        rows.append({**row, **found, "agrees": index == choice.best, "reason": reason or ""})
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
        "gap": choice.gap,
        "admissible": choice.admissible,
        "reason": choice.reason or "",
        "note": note,
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


def drift_by_layer(context: Context, a: AnchorRef, b: AnchorRef) -> list[Row]:
    """Drift a → b at every layer, last position: cosine of the directions, and mean and largest principal angle.

    Layers at which nothing differs are left out. Point values, angles in degrees; the carrier's site alone has
    intervals (table `drift`).
    """
    labels = labels_of(context.prompts.extraction_harmful)
    rank = context.config.geometry.rank
    sides = [
        context.anchor_stage("activations", ref).read_tensors("activations.safetensors") for ref in (a, b)
    ]
    pair: Row = {"seed": b.seed, "arm": b.arm, "from": a.step, "to": b.step}
    rows: list[Row] = []
    for layer in range(sides[0]["harmful"].shape[1]):
        at = [(side["harmful"][:, layer, -1], side["harmless"][:, layer, -1]) for side in sides]
        one, two = (mean_difference(*place) for place in at)
        if not one.any() or not two.any():
            continue  # the last template token's own embedding: nothing differs yet
        spans = [subspace(category_directions(*place, labels).rows, rank).basis for place in at]
        angles = angle_summary(*spans)
        values = {
            "cosine": float(torch.nn.functional.cosine_similarity(one, two, dim=0)),
            "subspace_mean": angles.mean,
            "subspace_max": angles.max,
        }
        rows += [{**pair, "layer": layer, "quantity": name, "value": value} for name, value in values.items()]
    return rows
