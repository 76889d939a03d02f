"""Adaptive cases: optimised against the anchor itself."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..attacking import AttackStage
from ..costs import Sizes, WorkUnits
from ..series import Place, all_anchors, series_of
from ..stage import AnyStage, Study, register_stage
from .prompts import Prompts
from .train import makers


@register_stage
class Adaptive(AttackStage):
    """One set of cases an anchor that is attacked."""

    kind, scope, name = "adaptive", "anchor", "adaptive"

    @classmethod
    def places(cls, study: Study) -> Iterable[Place]:
        """The anchors that `attacks.adaptive.at` names; a listed step stands for that step of every arm or series."""
        at, config = study.config.attacks.adaptive.at, study.config
        if not config.attacks.adaptive.enabled:
            return []
        if at in ("key", "last"):
            every = [series for seed in config.seeds for series in series_of(config, seed).values()]
            starts = [series[0] for series in every] if at == "key" else []
            return list(dict.fromkeys([*starts, *(series[-1] for series in every)]))
        return [ref for ref in all_anchors(config) if at == "all" or ref.step in at]

    def needs(self) -> Iterator[AnyStage]:
        yield self.at(Prompts, None)
        yield from makers(self.study, self.place)

    def settings(self) -> Mapping[str, Any]:
        anchor = self.study.anchor_settings(self.place, "gcg")
        return {**anchor, "attack": self.attack_settings, "seed": self.place.seed}

    def work_units(self, sizes: Sizes) -> WorkUnits:
        return super().work_units(sizes) + sizes.opened(self.config, self.place)
