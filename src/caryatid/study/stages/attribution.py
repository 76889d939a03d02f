"""Which sublayers write an anchor's carrier, and which of them matter."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ...causal.attribution import Attribution, SublayerEffects, ablate_sublayers, attribute
from ...errors import InputError
from ..costs import Sizes, WorkUnits, scoring
from ..series import Place
from ..stage import AnyStage, Stage, Study, register_stage
from ..work import Work, texts_of
from .carrier import ChosenCarrier
from .prompts import Prompts
from .refusal_tokens import RefusalTokens

Row = dict[str, Any]


@dataclass(frozen=True)
class Attributed:
    """Rows of the `attribution` table, without the anchor."""

    rows: tuple[Row, ...]


@register_stage
class CarrierAttribution(Stage[Attributed]):
    """Written: on extraction prompts. Taken by ablating one sublayer: on selection prompts."""

    kind, scope, result = "attribution", "anchor", Attributed

    @classmethod
    def places(cls, study: Study) -> Iterable[Place]:
        return study.places("anchor") if study.config.geometry.attribution else []

    def needs(self) -> Iterator[AnyStage]:
        yield self.at(Prompts, None)
        yield self.at(RefusalTokens, None)
        yield self.at(ChosenCarrier)

    def size(self) -> str:
        return "sublayers and heads before the carrier"

    def work_units(self, sizes: Sizes) -> WorkUnits:
        """As if the carrier were half way up."""
        batch = self.study.facts.batch["forward"]
        found = scoring(*sizes.both("extraction_harmful", "extraction_harmless"), batch)
        ablations = sizes.model.layers * sizes.counts["selection_harmful"]
        return found + scoring(ablations, sizes.tokens["selection_harmful"], batch)

    def run(self, work: Work) -> Attributed:
        model, sets, carrier = work.measured(), work.of(Prompts, None), work.of(ChosenCarrier).carrier
        site, direction = carrier.site, carrier.direction
        harmful, harmless = (
            [row[: len(row) + site.position + 1] for row in model.chat.ids_many(texts_of(side))]
            for side in (sets.extraction_harmful, sets.extraction_harmless)
        )
        try:
            written = attribute(
                model.loaded, harmful, harmless, direction, site.layer, batch_size=model.batch_size
            )
        except InputError as error:  # nothing before block 0, or sublayers that are not simply added
            return Attributed(({**site.columns, "sublayer": "total", "note": error.what},))
        taken = ablate_sublayers(
            model.loaded,
            model.chat.ids_many(texts_of(sets.selection_harmful)),
            direction,
            site.layer,
            work.of(RefusalTokens, None).ids,
            batch_size=model.batch_size,
        )
        counts = {"n": len(harmful), "n_against": len(harmless), "n_effect": len(sets.selection_harmful)}
        return Attributed(
            tuple({**site.columns, **counts, **row} for row in attribution_rows(written, taken))
        )


def attribution_rows(written: Attribution, taken: SublayerEffects) -> list[Row]:
    """The embedding's, every sublayer's and every head's part, and the sum of embedding and sublayers."""

    def row(sublayer: str, value: float, **place: int) -> Row:
        return {"sublayer": sublayer, **place, "written": value, "share": value / written.total}

    rows = [row("total", written.total), row("embedding", written.embedding)]
    for name in ("attention", "mlp"):
        parts, effects = getattr(written, name).tolist(), getattr(taken, name).tolist()
        for block, (part, effect) in enumerate(zip(parts, effects, strict=True)):
            rows.append({**row(name, part, block=block), "effect": effect})
    for block, heads in enumerate([] if written.heads is None else written.heads.tolist()):
        rows += [row("head", part, block=block, head=head) for head, part in enumerate(heads)]
    return rows
