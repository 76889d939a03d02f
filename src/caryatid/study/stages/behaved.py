"""What the direction would be without prompts that do not behave, and that of refusal among harmful prompts alone.

The published method keeps only harmful prompts that the model refuses and harmless ones that it answers. A study keeps
one set for all anchors; these are its sensitivity rows at each (protocol §5).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...causal.locate import Site
from ...causal.resamples import rescored
from ...geometry.carriers import CandidateScores, select
from ...geometry.directions import candidate_directions, mean_difference
from ...geometry.profiles import Profile
from ...geometry.turn import contrast_angle
from ..costs import Sizes, WorkUnits, decoding
from ..profiles import profile_of
from ..stage import AnyStage, Stage, register_stage
from ..work import Work
from .activations import Activations
from .candidates import SCORING, ScoredCandidates, scored_units, scorer_at
from .carrier import ChosenCarrier
from .prompts import Prompts
from .reextraction import CHOOSING, likeliest
from .refusal_tokens import RefusalTokens
from .selection import SelectionAnswer, judged_tokens, short_answers

Row = dict[str, Any]
Sides = tuple[list[SelectionAnswer], list[SelectionAnswer]]
FILTERED, AMONG_HARMFUL = "filtered", "refused_minus_answered"
# Groups of extraction prompts: harmful refused, harmful answered, harmless answered, harmless refused.
SIGNS: Mapping[str, tuple[int, int]] = {FILTERED: (0, 2), AMONG_HARMFUL: (0, 1)}


@dataclass(frozen=True)
class Behaved:
    """Extraction prompts by what the anchor does with them, and rows of the `behaved` table, without the anchor."""

    harmful_refused: tuple[bool, ...]
    harmless_refused: tuple[bool, ...]
    rows: tuple[Row, ...]


@register_stage
class BehavedPrompts(Stage[Behaved]):
    """Their angle to r at the carrier's site; where candidates are scored anew, also which place they would choose."""

    kind, scope, result = "behaved", "anchor", Behaved

    def needs(self) -> Iterator[AnyStage]:
        yield self.at(Prompts, None)
        yield self.at(RefusalTokens, None)
        for kind in (Activations, ScoredCandidates, ChosenCarrier):
            yield self.at(kind)

    def settings(self) -> Mapping[str, Any]:
        geometry, judge = self.study.settings["geometry"], self.study.settings["behaviour"]["refusal_judge"]
        return {key: geometry[key] for key in (*SCORING, *CHOOSING)} | {
            "judge": judge,
            "tokens": judged_tokens(self.config),
        }

    def size(self) -> str:
        return f"answers to the extraction prompts, {judged_tokens(self.config)} tokens"

    def work_units(self, sizes: Sizes) -> WorkUnits:
        rows, tokens = sizes.both("extraction_harmful", "extraction_harmless")
        batch = self.study.facts.batch["generate"]
        found = decoding(rows, tokens, judged_tokens(self.config), batch)
        geometry = self.config.geometry
        if geometry.reextraction_resamples:
            found += scored_units(self, sizes, len(SIGNS) * geometry.reextraction_candidates)
        return found

    def run(self, work: Work) -> Behaved:
        sets = work.of(Prompts, None)
        harmful, harmless = sets.extraction_harmful.prompts, sets.extraction_harmless.prompts
        answers = short_answers(work, [*harmful, *harmless], judged_tokens(self.config))
        sides = answers[: len(harmful)], answers[len(harmful) :]
        site = work.of(ChosenCarrier).carrier.site
        here = work.of(Activations).at(site.layer, site.position)
        groups = grouped(sides, here.harmful, here.harmless)
        rows = [compared(name, groups, site) for name in SIGNS]
        places = self._places(work, sides) if self.config.geometry.reextraction_resamples else {}
        found = tuple({**row, **places.get(row["direction"], {})} for row in rows)
        up, down = (tuple(row.refused for row in side) for side in sides)
        return Behaved(up, down, found)

    def _places(self, work: Work, sides: Sides) -> dict[str, Row]:
        """Where each direction would find the carrier, of the likeliest candidates' places; those that there are."""
        scorer, config = scorer_at(work), self.config.geometry
        parts = grouped(sides, scorer.harmful, scorer.harmless)
        grids = {
            name: candidate_directions(parts[i], parts[j])
            for name, (i, j) in SIGNS.items()
            if min(len(parts[i]), len(parts[j]))
        }
        places = work.of(ScoredCandidates).scores.rows(likeliest(work))
        if not grids or not len(places):
            return {}
        with work.kept("places"):
            scored = rescored(scorer, list(grids.values()), places, cosmic=config.selector == "cosmic")
        profile = profile_of(self.config, work.of(ChosenCarrier).profile)
        return {
            name: place_columns(scores, profile, config.min_gap)
            for name, scores in zip(grids, scored, strict=True)
        }

    def summary(self, result: Behaved) -> Mapping[str, Any]:
        sides = result.harmful_refused, result.harmless_refused
        return dict(zip(("harmful", "harmless"), (sum(side) / len(side) for side in sides), strict=True))


def grouped(sides: Sides, harmful: Tensor, harmless: Tensor) -> list[Tensor]:
    """Rows of both sides' prompts in four groups, as in `SIGNS`; those whose answer could not be scored in none."""
    found = []
    for side, values, refused in zip(
        (0, 0, 1, 1), (harmful, harmful, harmless, harmless), (1, 0, 0, 1), strict=True
    ):
        rows = [i for i, row in enumerate(sides[side]) if row.verdict and row.refused == bool(refused)]
        found.append(values[torch.tensor(rows, dtype=torch.long, device=values.device)])
    return found


def compared(name: str, groups: list[Float[Tensor, "_ d"]], site: Site) -> Row:
    """One direction beside r at a site: plain cosine, and the angle without the noise that both share."""
    first, second = SIGNS[name]
    counts = [len(each) for each in groups]
    row: Row = {
        "direction": name,
        **site.columns,
        "n": counts[first],
        "n_against": counts[second],
        "note": "",
    }
    if not min(counts[first], counts[second]):
        return {**row, "note": "one of the two groups of prompts is empty"}
    r = mean_difference(torch.cat(groups[:2]), torch.cat(groups[2:]))
    direction = mean_difference(groups[first], groups[second])
    row["cosine"] = float(torch.nn.functional.cosine_similarity(r, direction, dim=0))
    row["norm_ratio"] = float(direction.norm() / r.norm())
    if min(count for count in counts if count) < 2:
        return {**row, "note": "the angle takes two prompts in every group"}
    own = np.array(
        [count / sum(counts[:2]) for count in counts[:2]] + [-count / sum(counts[2:]) for count in counts[2:]]
    )
    weights = np.zeros(4)
    weights[[first, second]] = 1.0, -1.0
    used = [i for i, count in enumerate(counts) if count]
    angle = contrast_angle([groups[i].double().cpu().numpy() for i in used], own[used], weights[used])
    degrees = angle.degrees
    return {
        **row,
        "angle": degrees.value,
        "angle_lo": degrees.lo,
        "angle_hi": degrees.hi,
        "note": angle.reason or "",
    }


def place_columns(scores: CandidateScores, profile: Profile, min_gap: float) -> Row:
    """The carrier's place among scored candidates, or why there is none."""
    choice = select(scores, profile, min_gap=min_gap)
    if choice.best is None:
        return {"place_note": choice.reason or ""}
    layer, position = int(scores.layers[choice.best]), int(scores.positions[choice.best])
    return {"best_layer": layer, "best_position": position, "depth": choice.depth, "place_note": ""}
