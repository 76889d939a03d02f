"""The likeliest carriers of an anchor, with directions from resamples of the extraction prompts, scored anew."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...artifacts import StageFolder
from ...causal.locate import CandidateScorer
from ...causal.resamples import Grid, resampled_directions, rescored
from ...geometry.bootstrap import lacking_share, most_likely
from ...geometry.carriers import PROFILES, CandidateScores
from ..costs import Sizes, WorkUnits
from ..profiles import profiles_of
from ..series import Place
from ..stage import AnyStage, Stage, Study, register_stage
from ..work import Work
from .activations import Activations
from .candidates import (
    SCORING,
    ScoredCandidates,
    candidate_count,
    plain_scores,
    scored_units,
    scorer_at,
    scores_from_plain,
)
from .profile import profile_name, profile_needs
from .prompts import Prompts
from .refusal_tokens import RefusalTokens
from .selection import Selection

TOGETHER = 50  # resamples that are scored at once …
TOGETHER_WITH_OUTPUTS = 10  # … and where blocks' outputs are held for COSMIC
LACKING = 0.05  # share of a resample's draws; more without a carrier, and further candidates are scored …
FURTHER = 3  # … at most so often, each time as many as at first
LACKING_DRAWS = 400  # resamples of the selection prompts from which that share is taken
LIKELY_DRAWS = 1000  # resamples of the selection prompts over which the likeliest carriers are found
CHOOSING = ("selector", "min_gap", "profile", "reextraction_resamples", "reextraction_candidates")


@dataclass(frozen=True)
class Reextracted:
    """Scores of each resample's directions."""

    resamples: tuple[CandidateScores, ...]


@register_stage
class Reextraction(Stage[Reextracted]):
    """The resamples depend on the seed alone: they are the same prompts at every anchor.

    They are not drawn within categories, of which a sample of a few prompts has about as many: one prompt would always
    stand for itself.
    """

    kind, scope, result = "reextraction", "anchor", Reextracted
    version = 2

    @classmethod
    def places(cls, study: Study) -> Iterable[Place]:
        return study.places("anchor") if study.config.geometry.reextraction_resamples else []

    def needs(self) -> Iterator[AnyStage]:
        yield self.at(Prompts, None)
        yield self.at(RefusalTokens, None)
        yield self.at(ScoredCandidates)
        yield self.at(Activations)
        yield self.at(Selection)
        yield from profile_needs(self.study, self.place.seed)

    def settings(self) -> Mapping[str, Any]:
        return {key: self.study.settings["geometry"][key] for key in (*SCORING, *CHOOSING, *PROFILES)}

    def size(self) -> str:
        geometry = self.config.geometry
        few = f"{geometry.reextraction_resamples} resamples × {geometry.reextraction_candidates} candidates"
        return f"{few}, more where these leave too many draws without a carrier"

    def work_units(self, sizes: Sizes) -> WorkUnits:
        geometry = self.config.geometry
        kept = min(geometry.reextraction_candidates, candidate_count(self.config, sizes))
        return scored_units(self, sizes, geometry.reextraction_resamples * kept)

    def run(self, work: Work) -> Reextracted:
        count = self.config.geometry.reextraction_resamples
        scorer, scores, kept = scorer_at(work), work.of(ScoredCandidates).scores, likeliest(work)
        grids = resampled_directions(scorer, count, self.place.seed)
        with work.kept("resamples"):
            done = self._scored(work, scorer, grids, range(count if kept else 0), scores.rows(kept))
            self._scored_further(work, scorer, grids, kept, done)
        return Reextracted(tuple(done))

    def _scored(
        self,
        work: Work,
        scorer: CandidateScorer,
        grids: Callable[[Iterable[int]], list[Grid]],
        numbers: Sequence[int],
        places: CandidateScores,
        title: str = "re-extracted directions",
    ) -> list[CandidateScores]:
        """The scores of some resamples' directions at the places of some candidates."""
        cosmic, done = self.config.geometry.selector == "cosmic", list[CandidateScores]()
        together = scored_together(cosmic)
        total = len(numbers) * len(places) * scorer.passes
        with work.progressing(title, total):
            for start in range(0, len(numbers), together):
                part = grids(numbers[start : start + together])
                done += rescored(scorer, part, places, cosmic=cosmic)
        return done

    def _scored_further(
        self,
        work: Work,
        scorer: CandidateScorer,
        grids: Callable[[Iterable[int]], list[Grid]],
        kept: Sequence[int],
        done: list[CandidateScores],
    ) -> None:
        """Score further candidates of the resamples in which those that were scored leave too many draws without one,
        for as long as that leaves fewer.

        Too many: more by `LACKING` than lack a carrier with the directions as extracted, of which all candidates are
        scored; under the study's own profile. For how many resamples that is so is known then alone: what it takes is
        estimated without it, and can be up to 1 + `FURTHER` times as much.
        """
        scores, seed, config = work.of(ScoredCandidates).scores, self.place.seed, self.config
        profile = profiles_of(config, profile_name(work, self.study, seed))[0]

        def lacking(one: CandidateScores) -> float:
            rng = np.random.default_rng(seed)
            return lacking_share(one, profile, draws=LACKING_DRAWS, rng=rng, min_gap=config.geometry.min_gap)

        limit, seen = lacking(scores) + LACKING, set(kept)
        left = {number: share for number, one in enumerate(done) if (share := lacking(one)) > limit}
        for times in range(2, 2 + FURTHER):
            more = [index for index in likeliest(work, times) if index not in seen] if left else []
            if not more:
                return
            title = f"further candidates of {len(left)} resamples"
            found = self._scored(work, scorer, grids, list(left), scores.rows(more), title)
            for number, one in zip(list(left), found, strict=True):
                done[number] = done[number].beside(one)
                share, before = lacking(done[number]), left.pop(number)
                if limit < share < before:
                    left[number] = share
            seen.update(more)

    def save(self, result: Reextracted, folder: StageFolder) -> None:
        rows = [{"n_layers": one.n_layers, "scores": plain_scores(one)} for one in result.resamples]
        folder.write_json("resamples.json", rows)

    def load(self, folder: StageFolder) -> Reextracted:
        rows = folder.read_json("resamples.json")
        return Reextracted(tuple(scores_from_plain(row["scores"], row["n_layers"]) for row in rows))

    def summary(self, result: Reextracted) -> Mapping[str, Any]:
        return {"resamples": len(result.resamples)}


def scored_together(cosmic: bool) -> int:
    """How many resamples are scored at once."""
    return TOGETHER_WITH_OUTPUTS if cosmic else TOGETHER


def likeliest(work: Work, times: int = 1) -> list[int]:
    """The candidates of the anchor in hand that are scored anew with other directions (see `most_likely`): as many as
    are asked for, or so many times as many."""
    geometry, seed = work.study.config.geometry, work.entry.stage.place.seed
    found = most_likely(
        work.of(ScoredCandidates).scores,
        profiles_of(work.study.config, profile_name(work, work.study, seed)),
        times * geometry.reextraction_candidates,
        draws=LIKELY_DRAWS,
        rng=np.random.default_rng(seed),
        min_gap=geometry.min_gap,
    )
    return [int(index) for index in found]
