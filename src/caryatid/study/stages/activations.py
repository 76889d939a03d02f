"""Activations of one anchor on the extraction prompts."""

from collections.abc import Iterator, Mapping
from typing import Any

from ...causal.locate import Activations as Captured
from ...causal.locate import extraction_activations
from ..costs import Sizes, WorkUnits, scoring
from ..stage import AnyStage, Stage, register_stage
from ..work import Work, texts_of
from .prompts import Prompts
from .train import makers


@register_stage
class Activations(Stage[Captured]):
    """Block inputs at the post-instruction positions, per prompt, float32."""

    kind, scope, result = "activations", "anchor", Captured

    def needs(self) -> Iterator[AnyStage]:
        yield self.at(Prompts, None)
        yield from makers(self.study, self.place)

    def settings(self) -> Mapping[str, Any]:
        return {
            **self.study.anchor_settings(self.place, "forward"),
            "positions": self.config.geometry.positions,
        }

    def size(self) -> str:
        return "residual stream on the extraction prompts"

    def work_units(self, sizes: Sizes) -> WorkUnits:
        rows, tokens = sizes.both("extraction_harmful", "extraction_harmless")
        count = 1 if self.config.geometry.positions == "last" else sizes.model.positions
        held = 4.0 * rows * count * sizes.model.layers * sizes.model.width
        found = sizes.opened(self.config, self.place) + WorkUnits(disk=held, held=held)
        return found + scoring(rows, tokens, self.study.facts.batch["forward"])

    def run(self, work: Work) -> Captured:
        sets, model = work.of(Prompts, None), work.measured()
        count = 1 if self.config.geometry.positions == "last" else model.chat.n_post
        harmful, harmless = texts_of(sets.extraction_harmful), texts_of(sets.extraction_harmless)
        return extraction_activations(model, harmful, harmless, count)

    def summary(self, result: Captured) -> Mapping[str, Any]:
        return {"post_tokens": list(result.post_tokens), "layers": result.harmful.shape[1]}
