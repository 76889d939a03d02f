"""Adaptive cases: optimised against the anchor itself."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..attacking import Attacked, AttackStage
from ..series import Place
from ..stage import AnyStage, Study, register_stage
from ..work import Work
from .prompts import Prompts
from .train import makers


@register_stage
class Adaptive(AttackStage):
    """One set of cases an anchor."""

    kind, scope, name = "adaptive", "anchor", "adaptive"

    @classmethod
    def places(cls, study: Study) -> Iterable[Place]:
        return study.places("anchor") if study.config.attacks.adaptive.enabled else []

    def needs(self) -> Iterator[AnyStage]:
        yield self.at(Prompts, None)
        yield from makers(self.study, self.place)

    def settings(self) -> Mapping[str, Any]:
        anchor = self.study.anchor_settings(self.place)
        return {**anchor, "attack": self.attack_settings, "seed": self.place.seed}

    def run(self, work: Work) -> Attacked:
        return self.against(work, self.place)
