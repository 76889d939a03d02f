"""The same anchor of two seeds: how far apart runs of one recipe are, a baseline for every verdict (protocol §7)."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ...causal.conditions import Condition
from ...causal.transfer import TransferCounts, transfer_counts
from ..costs import Sizes, WorkUnits, decoding
from ..decision import Evidence, Places, decide
from ..profiles import labels_of
from ..series import AnchorRef, Place, all_anchors
from ..stage import AnyStage, Stage, Study, register_stage
from ..work import Work
from .activations import Activations
from .answers import Answers
from .carrier import ChosenCarrier
from .comparison import Change, Measure
from .prompts import Prompts
from .transfer import Transfer, answers_under, asked_count, still_refused, transfer_requests
from .uncertainty import Uncertainty


@dataclass(frozen=True)
class Between:
    """What an earlier seed's anchor and this one show as if they were a pair: evidence and verdict."""

    seed: int
    change: Change
    evidence: Evidence
    label: str
    rank: str
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Regimes:
    """This anchor beside that of every earlier seed of the study."""

    pairs: tuple[Between, ...]


@register_stage
class Regime(Stage[Regimes]):
    """Every later anchor of every seed but the first. Prompts are shared, draws of the carrier's place are not."""

    kind, scope, result = "regime", "anchor", Regimes

    @classmethod
    def places(cls, study: Study) -> Iterable[Place]:
        first, trained = study.config.seeds[0], not study.config.observed
        return [ref for ref in all_anchors(study.config) if trained and ref.step and ref.seed != first]

    @property
    def others(self) -> list[AnchorRef]:
        """The same arm and step of earlier seeds."""
        seeds = self.config.seeds
        return [replace(self.place, seed=seed) for seed in seeds[: seeds.index(self.place.seed)]]

    def needs(self) -> Iterator[AnyStage]:
        yield self.at(Prompts, None)
        yield self.at(Answers)
        yield self.at(Transfer)
        for ref in (*self.others, self.place):
            yield self.at(Activations, ref)
            yield self.at(ChosenCarrier, ref)
            yield self.at(Uncertainty, ref)

    def settings(self) -> Mapping[str, Any]:
        settings = self.study.settings
        own = {key: settings["geometry"][key] for key in ("splits", "rank")}
        return {**own, "verdict": settings["verdict"], "seeds": [ref.seed for ref in self.others]}

    def size(self) -> str:
        return f"beside seeds {', '.join(str(ref.seed) for ref in self.others)}"

    def work_units(self, sizes: Sizes) -> WorkUnits:
        rows, tokens = len(self.others) * asked_count(self.config, sizes), sizes.tokens["harmbench"]
        limit, batch = self.config.behaviour.max_new_tokens, self.study.facts.batch["generate"]
        return decoding(rows, tokens, limit, batch) + sizes.opened(self.config, self.place)

    def run(self, work: Work) -> Regimes:
        geometry = self.config.geometry
        labels = labels_of(work.of(Prompts, None).extraction_harmful)
        measure = Measure(labels, geometry.splits, geometry.rank, self.place.seed)
        counts, found = self._transferred(work), []
        for ref in self.others:
            sides = [work.of(ChosenCarrier, each) for each in (ref, self.place)]
            site = sides[0].carrier.site
            change = measure.change(work.of(Activations, ref), work.of(Activations), site)
            a, b = (work.of(Uncertainty, each) for each in (ref, self.place))
            evidence = Evidence(
                places=Places.between(a.used(sides[0].profile), b.used(sides[1].profile)),
                transfer=counts[ref],
                cosine=change.angle.cosine,
                rank_difference=change.spread.difference,
                excess_angle=change.excess_angle,
                angle_reason=change.angle.reason or "",
                rank_reason=change.spread.reason or "",
                no_carrier=(sides[0].own.choice.reason or "", sides[1].own.choice.reason or ""),
            )
            verdict = decide(evidence, self.config.verdict)
            found.append(Between(ref.seed, change, evidence, verdict.label, verdict.rank, verdict.reasons))
        return Regimes(tuple(found))

    def _transferred(self, work: Work) -> dict[AnchorRef, TransferCounts]:
        """This anchor's refusals under the other seeds' carriers, beside its own and random ones as measured before."""
        requests, measured = transfer_requests(work), work.of(Transfer)
        conditions = {
            ref.name: Condition("ablate", ref.name, work.of(ChosenCarrier, ref).carrier.span(1))
            for ref in self.others
        }
        asked, here = requests.asked, measured.under(self.place, self.place)
        answers = answers_under(work, conditions, asked) if asked else dict.fromkeys(conditions, ())
        return {
            ref: transfer_counts(
                here.plain,
                measured.spread(still_refused(work.judge, requests.exchanges, answers[ref.name])),
                here.own,
                here.random,
            )
            for ref in self.others
        }

    def summary(self, result: Regimes) -> Mapping[str, Any]:
        return {"labels": {each.seed: each.label for each in result.pairs}}
