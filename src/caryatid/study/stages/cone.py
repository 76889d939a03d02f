"""Refusal cones of an anchor: how many orthogonal directions each carry refusal, found by gradient."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ...causal.cone import (
    MIXTURES,
    ConeLoss,
    ConeSearch,
    FoundCone,
    candidate_span,
    cone_dimension,
    find_cones,
)
from ...causal.locate import Carrier, Site
from ...errors import InputError
from ...geometry.angles import angle_summary
from ...geometry.directions import category_directions
from ..costs import Sizes, WorkUnits
from ..profiles import labels_of, profile_of
from ..series import Place
from ..stage import AnyStage, Stage, Study, register_stage
from ..subsets import subset
from ..work import Work, texts_of
from .activations import Activations
from .candidates import ScoredCandidates, scored_units, scorer_at
from .carrier import ChosenCarrier
from .prompts import Prompts
from .refusal_tokens import RefusalTokens
from .selection import Selection

Row = dict[str, Any]
SPAN = 32  # dimensions of the candidates' span that cones are looked for in
NOISE = "selection prompts and controls"
SEARCH = ("max_dimension", "starts", "steps", "draws", "least_effect")


@dataclass(frozen=True)
class Cones:
    """Rows of the `cone` table, without the anchor, and the edges of every cone that was fitted, by its dimension."""

    rows: tuple[Row, ...]
    edges: dict[str, Float[Tensor, "edges d"]]


@register_stage
class Cone(Stage[Cones]):
    """Fitted to extraction prompts, measured on selection prompts; off unless the configuration asks for it."""

    kind, scope, result = "cone", "anchor", Cones

    @classmethod
    def places(cls, study: Study) -> Iterable[Place]:
        return study.places("anchor") if study.config.geometry.cone.enabled else []

    def needs(self) -> Iterator[AnyStage]:
        yield self.at(Prompts, None)
        yield self.at(RefusalTokens, None)
        yield self.at(Activations)
        yield self.at(Selection)
        yield self.at(ScoredCandidates)
        yield self.at(ChosenCarrier)

    def settings(self) -> Mapping[str, Any]:
        geometry = self.study.settings["geometry"]
        own = {key: geometry[key] for key in ("cone", "min_gap", "published", "calibrated")}
        return {**own, "span": SPAN, "seed": self.place.seed, "batch": self.study.facts.batch["train"]}

    def size(self) -> str:
        cone = self.config.geometry.cone
        return f"up to {cone.max_dimension} dimensions, {cone.starts} starts of {cone.steps} steps"

    def work_units(self, sizes: Sizes) -> WorkUnits:
        """As if the second dimension were the last one that is tried."""
        cone = self.config.geometry.cone
        rows, tokens = sizes.both("extraction_harmful", "extraction_harmless")
        each = 1.5 * min(2 * cone.prompts, rows) * tokens  # harmless prompts twice
        directions = 1 + (2 + MIXTURES)
        measured = scored_units(self, sizes, directions + 3 * cone.draws)
        return measured + WorkUnits(trained=cone.starts * cone.steps * directions * each)

    def run(self, work: Work) -> Cones:
        geometry, carriers = self.config.geometry, work.of(ChosenCarrier)
        carrier, settings = carriers.carrier, geometry.cone
        if not work.of(ScoredCandidates).scores.gap >= geometry.min_gap:
            return _nothing(carrier.site, "gap too small")
        try:
            loss = self._loss(work, carrier)
        except InputError as error:
            return _nothing(carrier.site, error.what)
        profile, here = profile_of(self.config, carriers.profile), work.of(Activations)
        below = slice(0, profile.depth_cut(here.harmful.shape[1]))
        labels = labels_of(work.of(Prompts, None).extraction_harmful)
        candidates = category_directions(here.harmful[:, below], here.harmless[:, below], labels).rows
        scorer, space = scorer_at(work), candidate_span(candidates, SPAN)
        search = ConeSearch(**{name: getattr(settings, name) for name in SEARCH}, kl_max=profile.kl_max)
        found = find_cones(scorer, loss, carrier.site, carrier.direction, space, search, self.place.seed)
        n = len(scorer.selection.harmful)
        rows = cone_rows(found, carrier.direction, settings.least_effect, n)
        edges = {str(len(one.basis)): one.basis.contiguous() for one in found}
        return Cones(tuple({**carrier.site.columns, **row} for row in rows), edges)

    def _loss(self, work: Work, carrier: Carrier) -> ConeLoss:
        """The loss on a sample of the extraction prompts."""
        model, sets, count = work.measured(), work.of(Prompts, None), self.config.geometry.cone.prompts
        harmful, harmless = (
            model.chat.ids_many(texts_of(subset(side, count, self.place.seed)))
            for side in (sets.extraction_harmful, sets.extraction_harmless)
        )
        return ConeLoss(
            model.loaded,
            harmful,
            harmless,
            work.of(RefusalTokens, None).ids,
            layer=carrier.site.layer,
            length=float(carrier.direction.norm()),
            batch_size=work.batch.train,
        )

    def summary(self, result: Cones) -> Mapping[str, Any]:
        return {"fitted": len(result.edges), "dimension": result.rows[-1].get("value")}


def _nothing(site: Site, why: str) -> Cones:
    """No cone was looked for."""
    return Cones(({**site.columns, "quantity": "dimension", "note": why},), {})


def cone_rows(
    found: list[FoundCone], direction: Float[Tensor, "d"], least_effect: float, n: int
) -> list[Row]:
    """What each cone does, and, last, how many dimensions there are; `n`: harmful prompts that this rests on."""
    rows: list[Row] = []
    for one in found:
        own = {"cone": len(one.basis), "n": n}
        for name, interval in one.effects._asdict().items():
            rows.append({**own, "quantity": f"{name}_effect", **interval._asdict(), "noise": NOISE})
        values = {
            **({"mixed_effect": one.mixed} if len(one.basis) > 1 else {}),
            "induce_effect": one.induce,
            "kl": one.kl,
            "loss": one.loss,
            "angle_to_carrier": angle_summary(one.basis, direction.cpu()[None]).max,
        }
        rows += [{**own, "quantity": name, "value": value} for name, value in values.items()]
        if not one.kept:
            rows[-1]["note"] = "its KL is above the profile's: not counted as a dimension"
    dimension = cone_dimension(found, least_effect)
    return [*rows, {"n": n, "quantity": "dimension", **dimension._asdict(), "noise": NOISE}]
