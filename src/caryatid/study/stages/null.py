"""One anchor against itself with all prompt roles drawn anew: how often the verdict sees what is not there (§7)."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from ...artifacts import StageFolder
from ...behaviour.judges.base import Exchange
from ...causal.conditions import Condition
from ...causal.locate import Activations as Captured
from ...causal.locate import CandidateScorer, Carrier, Chosen, carrier_at, choose
from ...causal.resamples import rescored
from ...causal.scores import SelectionPrompts
from ...causal.transfer import TransferCounts, transfer_counts
from ...data.prompts import Prompt
from ...errors import InputError
from ...geometry.bootstrap import CarrierBootstrap, bootstrap_carrier, bootstrap_reextracted
from ...geometry.carriers import PROFILES, CandidateScores
from ...geometry.spread import compare_spread
from ...geometry.turn import corrected_angle
from ...results import load_result, save_result
from ...stats import bootstrap_indices
from ..costs import Sizes, WorkUnits, decoding
from ..decision import Evidence, Places, decide
from ..nulls import disjoint_halves
from ..profiles import is_question, labels_of, profile_of
from ..series import Place, series_of
from ..stage import AnyStage, Stage, Study, register_stage
from ..work import Work
from .activations import Activations
from .answers import Answers
from .candidates import SCORING, ScoredCandidates, scored_units, scorer_at
from .profile import profile_name, profile_needs
from .prompts import MIN_EXTRACTION, Prompts
from .reextraction import CHOOSING, likeliest, scored_together
from .refusal_tokens import RefusalTokens
from .selection import Selection
from .transfer import (
    Requests,
    answers_under,
    asked_count,
    random_conditions,
    still_refused,
    transfer_requests,
)

ROLES = ("extraction_harmful", "extraction_harmless", "selection_harmful", "selection_harmless")
Numbers = Int[np.ndarray, "_"]


@dataclass(frozen=True)
class Redraw:
    """One pair of halves: the evidence, and the verdict from it with the study's thresholds."""

    evidence: Evidence
    label: str
    rank: str
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Redrawn:
    """All redraws of an anchor."""

    redraws: tuple[Redraw, ...]


@dataclass(frozen=True)
class _Half:
    """An anchor as one half of the prompts shows it.

    Attributes:
        labels: of the harmful extraction prompts. chosen, draws: by profile. carrier: of the study's profile.
        requests: numbers of its transfer prompts.
    """

    activations: Captured
    labels: list[str]
    chosen: dict[str, Chosen]
    draws: dict[str, CarrierBootstrap]
    carrier: Carrier
    requests: Numbers


@register_stage
class Null(Stage[Redrawn]):
    """Extraction, selection and transfer prompts are split into disjoint halves, as if these were two anchors.

    Refusal tokens, profile and which candidates are scored are those of the whole study: they are no part of a pair's
    evidence.
    """

    kind, scope, result = "null", "anchor", Redrawn

    @classmethod
    def places(cls, study: Study) -> Iterable[Place]:
        nulls = study.config.nulls
        if not nulls.redraws:
            return []
        every = [series for seed in study.config.seeds for series in series_of(study.config, seed).values()]
        found = [series[0] for series in every]
        return list(dict.fromkeys(found + ([series[-1] for series in every] if nulls.at == "last" else [])))

    def needs(self) -> Iterator[AnyStage]:
        yield self.at(Prompts, None)
        yield self.at(RefusalTokens, None)
        for kind in (Answers, Activations, Selection, ScoredCandidates):
            yield self.at(kind)
        yield from profile_needs(self.study, self.place.seed)

    def settings(self) -> Mapping[str, Any]:
        settings = self.study.settings
        geometry = {
            key: settings["geometry"][key] for key in (*SCORING, *CHOOSING, *PROFILES, "bootstrap_draws")
        }
        causal = {key: settings["causal"][key] for key in ("transfer_prompts", "transfer_random")}
        own = {"redraws": self.config.nulls.redraws, "verdict": settings["verdict"]}
        return {**geometry, **causal, **own}

    def size(self) -> str:
        geometry = self.config.geometry
        return f"{self.config.nulls.redraws} redraws × 2 halves × {geometry.reextraction_resamples} resamples"

    def work_units(self, sizes: Sizes) -> WorkUnits:
        geometry, causal, batch = self.config.geometry, self.config.causal, self.study.facts.batch
        halves = 2 * self.config.nulls.redraws
        grids = halves * (1 + geometry.reextraction_resamples) * geometry.reextraction_candidates
        answers = asked_count(self.config, sizes) / 2 * (2 + causal.transfer_random)
        tokens, limit = sizes.tokens["harmbench"], self.config.behaviour.max_new_tokens
        asked = decoding(answers, tokens, limit, batch["generate"])
        return scored_units(self, sizes, grids, share=0.5) + asked * self.config.nulls.redraws

    def run(self, work: Work) -> Redrawn:
        found = []
        for number in range(self.config.nulls.redraws):
            kept = StageFolder(self.kind, f"{number}", work.folder.work_dir / f"redraw-{number}", {})
            if not kept.file("done").exists():
                rng = np.random.default_rng([self.place.seed, number])
                with work.kept(kept.path.name):
                    save_result(self._redraw(work, rng), kept)
                kept.file("done").touch()
            found.append(load_result(Redraw, kept))
        return Redrawn(tuple(found))

    def _redraw(self, work: Work, rng: np.random.Generator) -> Redraw:
        used, requests = profile_name(work, self.study, self.place.seed), transfer_requests(work)
        names = [
            used,
            *(name for name in PROFILES if name != used and self.config.geometry.profile == "auto"),
        ]
        sets = work.of(Prompts, None)
        parts = {role: _halves(getattr(sets, role).prompts, rng) for role in ROLES}
        asked = _halves(requests.chosen, rng)
        for role in ROLES[:2]:
            if len(parts[role][0]) < MIN_EXTRACTION:
                raise InputError(
                    f"a half of the extraction prompts has {len(parts[role][0])} of {MIN_EXTRACTION} that are needed",
                    where=f"prompts.limits.{role}",
                    remedy="Use more, or set nulls.redraws to 0.",
                )
        one, two = (
            self._half(work, {role: parts[role][i] for role in ROLES}, asked[i], names, rng) for i in range(2)
        )
        counts = self._transferred(work, requests, one, two, rng)
        evidence, *other = (self._evidence(one, two, counts, name) for name in names)
        if other:
            evidence = replace(evidence, other_profile=(names[1], other[0]))
        verdict = decide(evidence, self.config.verdict)
        return Redraw(evidence, verdict.label, verdict.rank, verdict.reasons)

    def _half(
        self,
        work: Work,
        parts: Mapping[str, Numbers],
        requests: Numbers,
        names: Sequence[str],
        rng: np.random.Generator,
    ) -> _Half:
        """Directions, scores, re-extraction and choice with the prompts of one half alone."""
        config, sets, captured = self.config.geometry, work.of(Prompts, None), work.of(Activations)
        up, down = (torch.from_numpy(parts[role]) for role in ROLES[:2])
        activations = replace(captured, harmful=captured.harmful[up], harmless=captured.harmless[down])
        scorer = _scorer(scorer_at(work), activations, parts)
        scores, resamples = self._scored(work, scorer, rng)
        selected = work.of(Selection)
        harmful, harmless = (
            float(np.mean([side[i].refused for i in parts[role]]))
            for side, role in ((selected.harmful, ROLES[2]), (selected.harmless, ROLES[3]))
        )
        draws: dict[str, Any] = {"draws": config.bootstrap_draws, "min_gap": config.min_gap, "rng": rng}
        chosen, places = {}, {}
        for name in names:
            profile = profile_of(self.config, name)
            rates = (harmful, harmless)
            chosen[name] = choose(scores, profile, min_gap=config.min_gap, refusal_rates=rates)
            places[name] = (
                bootstrap_reextracted(scores, resamples, profile, **draws)
                if resamples
                else bootstrap_carrier(scores, profile, **draws)
            )
        every = labels_of(sets.extraction_harmful)
        labels = [every[i] for i in parts[ROLES[0]]]
        questions = torch.tensor([is_question(sets.extraction_harmless.prompts[i]) for i in parts[ROLES[1]]])
        carrier = carrier_at(activations, chosen[names[0]].site, labels, 1, questions)
        return _Half(activations, labels, chosen, places, carrier, requests)

    def _scored(
        self, work: Work, scorer: CandidateScorer, rng: np.random.Generator
    ) -> tuple[CandidateScores, list[CandidateScores]]:
        """The likeliest candidates' scores with the half's directions, and with those of its resamples."""
        count, cosmic = self.config.geometry.reextraction_resamples, self.config.geometry.selector == "cosmic"
        places = work.of(ScoredCandidates).scores.rows(likeliest(work))
        up, down = (bootstrap_indices(len(side), count, rng) for side in (scorer.harmful, scorer.harmless))
        (scores,) = rescored(scorer, [scorer.directions()], places, cosmic=cosmic)
        found: list[CandidateScores] = []
        with work.progressing("null: re-extracted directions", count * len(places) * scorer.passes):
            together = scored_together(cosmic)
            for start in range(0, count, together):
                numbers = range(start, min(start + together, count))
                grids = [scorer.directions(up[number], down[number]) for number in numbers]
                found += rescored(scorer, grids, places, cosmic=cosmic)
        return scores, found

    def _transferred(
        self, work: Work, requests: Requests, one: _Half, two: _Half, rng: np.random.Generator
    ) -> TransferCounts:
        """The second half's refusals under both halves' carriers and random subspaces matched to the second's."""
        asked: list[Prompt] = [requests.chosen[i] for i in two.requests if requests.refused[i]]
        site, draws = two.carrier.site, self.config.causal.transfer_random
        benign = two.activations.at(site.layer, site.position).harmless
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        conditions = {
            name: Condition("ablate", name, half.carrier.span(1))
            for name, half in (("old", one), ("own", two))
        }
        drawn = random_conditions(benign, two.carrier.span(1), draws, generator)
        conditions |= {f"random#{number}": each for number, each in enumerate(drawn)}
        answers = answers_under(work, conditions, asked) if asked else dict.fromkeys(conditions, ())
        plain = [Exchange(row.text, requests.plain[row.id], row.context) for row in asked]
        old, own, *rest = (
            np.array(still_refused(work.judge, plain, texts), dtype=bool) for texts in answers.values()
        )
        return transfer_counts(np.ones(len(asked), dtype=bool), old, own, np.stack(rest))

    def _evidence(self, one: _Half, two: _Half, counts: TransferCounts, name: str) -> Evidence:
        """At the first half's site; prompts, subspaces and resamples are unpaired."""
        site = one.chosen[name].site
        a, b = (half.activations.at(site.layer, site.position) for half in (one, two))
        angle = corrected_angle(a, b, paired=False)
        spread = compare_spread(a, b, one.labels, categories_b=two.labels)
        reasons = [half.chosen[name].choice.reason or "" for half in (one, two)]
        return Evidence(
            places=Places.between(one.draws[name], two.draws[name]),
            transfer=counts,
            cosine=angle.cosine,
            rank_difference=spread.difference,
            angle_reason=angle.reason or "",
            rank_reason=spread.reason or "",
            no_carrier=(reasons[0], reasons[1]),
        )

    def summary(self, result: Redrawn) -> Mapping[str, Any]:
        return {"labels": [each.label for each in result.redraws]}


def _halves(prompts: Sequence[Prompt], rng: np.random.Generator) -> list[Numbers]:
    return disjoint_halves([(row.kind, row.category) for row in prompts], rng)


def _scorer(whole: CandidateScorer, activations: Captured, parts: Mapping[str, Numbers]) -> CandidateScorer:
    """The anchor's scorer with one half's activations and selection prompts."""
    selection = whole.selection
    harmless = parts["selection_harmless"].tolist()
    half = SelectionPrompts(
        harmful=[selection.harmful[i] for i in parts["selection_harmful"]],
        harmless=[selection.harmless[i] for i in harmless],
        answers=[selection.answers[i] for i in harmless],
        refusal_tokens=selection.refusal_tokens,
    )
    return CandidateScorer(whole.model, activations, half, whole.settings)
