"""How many dimensions refusal takes at an anchor: at one site for all anchors, and over its admissible candidates."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from ...causal.locate import Activations as Captured
from ...causal.locate import Site
from ...geometry.carriers import CandidateScores, Profile, admissible, average
from ...geometry.directions import category_directions
from ...geometry.rank import SiteActivations, bank_ranks, compare_ranks
from ..profiles import categories_note, labels_of, profile_of
from ..stage import AnyStage, Stage, register_stage
from ..work import Work
from .activations import Activations
from .candidates import ScoredCandidates
from .carrier import ChosenCarrier
from .prompts import Prompts

Row = dict[str, Any]
NOISE = "extraction prompts"


@dataclass(frozen=True)
class Ranks:
    """Rows of the `rank` table, without the anchor."""

    rows: tuple[Row, ...]


@register_stage
class Rank(Stage[Ranks]):
    """Effective rank, participation ratio and stable rank, with their change since step 0."""

    kind, scope, result = "rank", "anchor", Ranks

    def needs(self) -> Iterator[AnyStage]:
        yield self.at(Prompts, None)
        yield self.at(ScoredCandidates)
        yield self.at(ChosenCarrier, self.place.base)
        yield self.at(Activations, self.place.base)
        yield self.at(Activations)

    def settings(self) -> Mapping[str, Any]:
        geometry = self.study.settings["geometry"]
        return {key: geometry[key] for key in ("profile", "published", "calibrated", "selector")}

    def size(self) -> str:
        return "at step 0's site, and over the admissible candidates"

    def run(self, work: Work) -> Ranks:
        carriers = work.of(ChosenCarrier, self.place.base)
        site = carriers.carrier.site
        start, here = work.of(Activations, self.place.base), work.of(Activations)
        labels = labels_of(work.of(Prompts, None).extraction_harmful)
        at = (site.layer, site.position)
        rows = site_rank_rows(start.at(*at), here.at(*at), labels, site)
        rows += bank_rank_rows(
            work.of(ScoredCandidates).scores, here, profile_of(self.config, carriers.profile)
        )
        return Ranks(tuple(rows))


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
                "note": categories_note(found.left_out, categories),
            }
            rows.append({**common, "quantity": f"{name}{suffix}", **found.b._asdict()})
            rows.append({**common, "quantity": f"{name}{suffix}_change", **found.difference._asdict()})
    return rows


def bank_rank_rows(scores: CandidateScores, activations: Captured, profile: Profile) -> list[Row]:
    """Figures of the directions of all admissible candidates of an anchor, unit-norm and raw; `n` says how many."""
    chosen = admissible_candidates(scores, profile)
    layers, positions = (torch.from_numpy(axis[chosen]) for axis in (scores.layers, scores.positions))
    up, down = (side[:, layers, positions] for side in (activations.harmful, activations.harmless))
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
