"""The carrier of an anchor: chosen once under every profile, read by all stages that need it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ...causal.locate import Carrier, Chosen, carrier_at, choose
from ..profiles import alternatives, is_question, labels_of
from ..stage import AnyStage, Stage, register_stage
from ..work import Work
from .activations import Activations
from .candidates import ScoredCandidates
from .profile import profile_name, profile_needs
from .prompts import Prompts
from .selection import Selection

CHOOSING = ("profile", "published", "calibrated", "selector", "min_gap", "rank", "discard_below")


@dataclass(frozen=True)
class Carriers:
    """What every profile chose, and the carrier that the study uses at this anchor.

    Attributes:
        chosen: by profile name, and by the name of each selector that the study does not use, under its profile.
        profile: the study's.
        carrier: the direction and subspace at the study's profile's site (a stand-in's where it chose nothing).
    """

    chosen: dict[str, Chosen]
    profile: str
    carrier: Carrier

    @property
    def own(self) -> Chosen:
        """The choice of the study's profile."""
        return self.chosen[self.profile]


@register_stage
class ChosenCarrier(Stage[Carriers]):
    """The candidate that the study's selector picks among those that its profile admits, or a stand-in."""

    kind, scope, result = "carrier", "anchor", Carriers

    def needs(self) -> Iterator[AnyStage]:
        yield self.at(Prompts, None)
        yield self.at(ScoredCandidates)
        yield self.at(Activations)
        yield self.at(Selection)
        yield from profile_needs(self.study, self.place.seed)

    def settings(self) -> Mapping[str, Any]:
        geometry = self.study.settings["geometry"]
        return {key: geometry[key] for key in CHOOSING} | {"ranks": self._rank}

    @property
    def _rank(self) -> int:
        causal = self.config.causal
        return max(self.config.geometry.rank, *causal.ranks, *causal.sweep_ranks)

    def size(self) -> str:
        return f"profile {self.config.geometry.profile}, selector {self.config.geometry.selector}"

    def run(self, work: Work) -> Carriers:
        geometry, sets = self.config.geometry, work.of(Prompts, None)
        scores = work.of(ScoredCandidates).scores
        profile = profile_name(work, self.study, self.place.seed)
        rates, early = work.of(Selection).refusal_rates, geometry.discard_below is not None
        chosen = {
            name: choose(scores, one, min_gap=geometry.min_gap, refusal_rates=rates, early_discard=early)
            for name, one in alternatives(self.config, profile).items()
        }
        questions = torch.tensor([is_question(row) for row in sets.extraction_harmless])
        labels = labels_of(sets.extraction_harmful)
        carrier = carrier_at(work.of(Activations), chosen[profile].site, labels, self._rank, questions)
        return Carriers(chosen, profile, carrier)

    def summary(self, result: Carriers) -> Mapping[str, Any]:
        choice, site = result.own.choice, result.carrier.site
        return {"reason": choice.reason, "admissible": choice.admissible, "site": site.columns}
