"""How sure an anchor's carrier is: its place in resamples of selection prompts, and of extraction prompts too."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...geometry.bootstrap import (
    CarrierBootstrap,
    best_bypass_interval,
    bootstrap_carrier,
    bootstrap_reextracted,
)
from ...geometry.carriers import PROFILES
from ...stats import Interval
from ..profiles import alternatives
from ..stage import AnyStage, Stage, register_stage
from ..work import Work
from .candidates import ScoredCandidates
from .carrier import CHOOSING, ChosenCarrier
from .reextraction import Reextraction

SELECTION, BOTH = "selection prompts", "selection and extraction prompts"


@dataclass(frozen=True)
class Uncertain:
    """Draws of the carrier's place.

    Attributes:
        selection: under each alternative (see `profiles.alternatives`), resampling the selection prompts alone.
        both: under each profile, with directions extracted anew from resampled extraction prompts, too; empty where
            none were asked for.
        bypass_effect: of the best candidate, chosen anew in every draw, by profile.
        resamples: of the extraction prompts.
    """

    selection: dict[str, CarrierBootstrap]
    both: dict[str, CarrierBootstrap]
    bypass_effect: dict[str, Interval]
    resamples: int

    def used(self, alternative: str) -> CarrierBootstrap:
        """The draws that verdicts read: those with most noise in them."""
        return self.both.get(alternative, self.selection[alternative])


@register_stage
class Uncertainty(Stage[Uncertain]):
    """All generators start from the study's seed, so that anchors are compared draw by draw."""

    kind, scope, result = "uncertainty", "anchor", Uncertain

    def needs(self) -> Iterator[AnyStage]:
        yield self.at(ScoredCandidates)
        yield self.at(ChosenCarrier)
        if self.config.geometry.reextraction_resamples:
            yield self.at(Reextraction)

    def settings(self) -> Mapping[str, Any]:
        geometry = self.study.settings["geometry"]
        return {key: geometry[key] for key in (*CHOOSING, "bootstrap_draws")}

    def size(self) -> str:
        return f"{self.config.geometry.bootstrap_draws} draws"

    def run(self, work: Work) -> Uncertain:
        config = self.config.geometry
        scores, used = work.of(ScoredCandidates).scores, work.of(ChosenCarrier).profile
        resamples = work.of(Reextraction).resamples if config.reextraction_resamples else ()
        settings: dict[str, Any] = {"draws": config.bootstrap_draws, "min_gap": config.min_gap}

        def rng() -> np.random.Generator:
            return np.random.default_rng(self.place.seed)

        selection, both, effects = {}, {}, {}
        for name, profile in alternatives(self.config, used).items():
            selection[name] = bootstrap_carrier(scores, profile, rng=rng(), **settings)
            if name not in PROFILES:
                continue
            if resamples:
                both[name] = bootstrap_reextracted(scores, resamples, profile, rng=rng(), **settings)
            effects[name] = best_bypass_interval(scores, profile, rng=rng(), **settings)
        return Uncertain(selection, both, effects, len(resamples))
