"""The `rank` table: how many dimensions refusal takes at an anchor, at one site for all anchors and over its bank."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int

from ..geometry.carriers import CandidateScores, Profile, admissible, average
from ..geometry.directions import category_directions
from ..geometry.rank import SiteActivations, bank_ranks, compare_ranks
from .carrier import read_bank
from .context import Context
from .series import AnchorRef

Row = dict[str, Any]
NOISE = "extraction prompts"


class Site(NamedTuple):
    """The one place at which anchors are compared: that of step 0's carrier."""

    layer: int
    position: int
    admissible: bool

    @property
    def columns(self) -> Row:
        return {"layer": self.layer, "position": self.position, "site_admissible": self.admissible}


def site_rank_rows(
    base: SiteActivations, here: SiteActivations, labels: Sequence[str], site: Site
) -> list[Row]:
    """Figures of the per-category directions at the common site, unit-norm and raw, and their change since step 0."""
    categories = len(category_directions(here.harmful, here.harmless, labels).names)
    rows: list[Row] = []
    for suffix, unit_norm in (("", True), ("_raw", False)):
        for name, found in compare_ranks(base, here, labels, unit_norm=unit_norm).items():
            common = {
                **site.columns,
                "n": categories - len(found.left_out),
                "noise": NOISE,
                "note": _note(found.left_out, categories),
            }
            rows.append({**common, "quantity": f"{name}{suffix}", **found.b._asdict()})
            rows.append({**common, "quantity": f"{name}{suffix}_change", **found.difference._asdict()})
    return rows


def _note(left_out: Sequence[str], categories: int) -> str:
    """What to know about a rank: categories without sampling noise to estimate, or a single one."""
    if left_out:
        plural = "y" if len(left_out) == 1 else "ies"
        return f"{len(left_out)} categor{plural} with a single prompt left out"
    return "a single category: 1 whatever the model" if categories == 1 else ""


def bank_rank_rows(context: Context, ref: AnchorRef, profile: Profile) -> list[Row]:
    """Figures of the directions of all admissible candidates of an anchor, unit-norm and raw; `n` says how many."""
    scores = read_bank(context, ref)
    chosen = admissible_candidates(scores, profile)
    stored = context.anchor_stage("activations", ref).read_tensors("activations.safetensors")
    layers, positions = (torch.from_numpy(axis[chosen]) for axis in (scores.layers, scores.positions))
    up, down = (stored[side][:, layers, positions] for side in ("harmful", "harmless"))
    common = {
        "n": len(chosen),
        "noise": f"{NOISE}, with these candidates",
        "note": f"candidates that {profile.name} admits"
        if len(chosen)
        else f"{profile.name} admits no candidate",
    }
    rows: list[Row] = []
    for suffix, unit_norm in (("", True), ("_raw", False)):
        for name, found in bank_ranks(up, down, unit_norm=unit_norm).items():
            rows.append({**common, "quantity": f"{name}_bank{suffix}", **found._asdict()})
    return rows


def admissible_candidates(scores: CandidateScores, profile: Profile) -> Int[np.ndarray, "admissible"]:
    """Numbers of the admissible candidates over all selection prompts."""
    means = average(scores, cosmic=profile.selector == "cosmic")
    return np.flatnonzero(admissible(means, scores.layers, scores.n_layers, profile)[0])
