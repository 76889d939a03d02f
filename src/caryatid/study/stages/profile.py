"""The admissibility profile of a study that leaves the choice to step 0: decided there alone, before any training."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ...causal.locate import refusal_tokens_of
from ...geometry.carriers import auto_profile
from ..costs import Sizes, WorkUnits
from ..profiles import profile_of
from ..series import BASE, AnchorRef, Place, SeedRef
from ..stage import AnyStage, Stage, Study, register_stage
from ..work import Work
from .activations import Activations
from .candidates import SCORING, candidate_count, scored_units, scorer_of
from .prompts import Prompts
from .selection import Selection


@dataclass(frozen=True)
class Frozen:
    """The profile's name, and how many candidates each profile admits at step 0."""

    name: str
    admitted: dict[str, int]


@register_stage
class FrozenProfile(Stage[Frozen]):
    """*published* if it admits a carrier at step 0, else *calibrated*; with the refusal tokens of step 0's own answers,
    because other anchors do not exist yet."""

    kind, scope, result = "profile", "seed", Frozen

    @classmethod
    def places(cls, study: Study) -> Iterable[Place]:
        return study.places("seed") if study.config.geometry.profile == "auto" else []

    @property
    def base(self) -> AnchorRef:
        """Step 0."""
        return AnchorRef(self.place.seed, BASE, 0)

    def needs(self) -> Iterator[AnyStage]:
        yield self.at(Prompts, None)
        yield self.at(Activations, self.base)
        yield self.at(Selection, self.base)

    def settings(self) -> Mapping[str, Any]:
        geometry = self.study.settings["geometry"]
        keys = (*SCORING, "published", "calibrated", "selector", "min_gap")
        return {key: geometry[key] for key in keys} | {"toward": self.config.training.r2d2.toward_text}

    def size(self) -> str:
        return "published or calibrated, by step 0"

    def work_units(self, sizes: Sizes) -> WorkUnits:
        return scored_units(self, sizes, candidate_count(self.config, sizes))

    def run(self, work: Work) -> Frozen:
        model, selected = work.measured(self.base), work.of(Selection, self.base)
        tokens = refusal_tokens_of(model, selected.first_tokens, self.config.training.r2d2.toward_text)
        ids = [row.token for row in tokens]
        scorer = scorer_of(model, work, self.base, ids)
        with work.progressing("profile", scorer.candidates * scorer.passes):
            scores = scorer.score_all()
        published, calibrated = profile_of(self.config, "published"), profile_of(self.config, "calibrated")
        chosen = auto_profile(scores, published, calibrated, min_gap=self.config.geometry.min_gap)
        admitted = {one.name: scores.admitted(one) for one in (published, calibrated)}
        work.session.announce(
            f"profile of seed {self.place.seed}: {chosen.name} (admitted at step 0: {admitted})"
        )
        return Frozen(chosen.name, admitted)

    def summary(self, result: Frozen) -> Mapping[str, Any]:
        return {"name": result.name, "admitted": result.admitted}


class _Source(Protocol):
    """Whatever gives results of stages: `Work`, `Run`."""

    def of(self, kind: Any, place: Any) -> Any: ...


def profile_needs(study: Study, seed: int) -> Iterator[AnyStage]:
    """What decides the profile of a seed, where that is left to step 0."""
    place = SeedRef(seed)
    if study.config.geometry.profile == "auto":
        yield FrozenProfile(study, place)


def profile_name(source: _Source, study: Study, seed: int) -> str:
    """The name of the profile that a seed uses."""
    name: str = study.config.geometry.profile
    return str(source.of(FrozenProfile, SeedRef(seed)).name) if name == "auto" else name
