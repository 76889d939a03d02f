"""Fixed-source cases: optimised once against step 0, sent unchanged to every anchor."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..attacking import AttackStage
from ..costs import Sizes, WorkUnits
from ..series import BASE, AnchorRef, Place
from ..stage import AnyStage, Study, register_stage
from .prompts import Prompts
from .train import makers


@register_stage
class Cases(AttackStage):
    """One set of cases a seed."""

    kind, scope, name = "cases", "seed", "fixed_source"

    @classmethod
    def places(cls, study: Study) -> Iterable[Place]:
        return study.places("seed") if study.config.attacks.fixed_source.enabled else []

    @property
    def target(self) -> AnchorRef:
        """Step 0."""
        return AnchorRef(self.place.seed, BASE, 0)

    def needs(self) -> Iterator[AnyStage]:
        yield self.at(Prompts, None)
        yield from makers(self.study, self.target)

    def settings(self) -> Mapping[str, Any]:
        model = self.study.model_settings("gcg")
        return {"attack": self.attack_settings, "model": model, "seed": self.place.seed}

    def work_units(self, sizes: Sizes) -> WorkUnits:
        opened = WorkUnits(loaded=1, adapted=1)  # the first time that step 0 is
        return super().work_units(sizes) + opened
