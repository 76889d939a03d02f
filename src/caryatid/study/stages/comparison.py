"""Two anchors compared: drift of the direction and the subspace at one site and layer by layer, and change of rank."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ...causal.locate import Activations as Captured
from ...causal.locate import Site
from ...geometry.angles import ExcessAngle, angle_summary, excess_angle, excess_angle_value
from ...geometry.directions import category_directions, mean_difference, subspace
from ...geometry.rank import SiteActivations
from ...geometry.spread import SpreadComparison, compare_spread
from ...geometry.turn import CorrectedAngle, corrected_angle
from ...stats import Interval
from ..costs import Sizes, WorkUnits
from ..profiles import labels_of
from ..series import Place, compared_pairs
from ..stage import AnyStage, Stage, Study, register_stage
from ..work import Work
from .activations import Activations
from .carrier import ChosenCarrier
from .prompts import Prompts

Row = dict[str, Any]
NOISE = "extraction prompts"
UNITS = {
    **dict.fromkeys(("excess_angle", "corrected_angle", "angle_across_halves"), "degrees"),
    **dict.fromkeys(("angle_within_halves", "subspace_mean", "subspace_max"), "degrees"),
    "subspace_grassmann": "radians",
}
DISTANCES = ("mean", "max", "grassmann", "chordal")
NO_INTERVAL = {"lo": float("nan"), "hi": float("nan")}


@dataclass(frozen=True)
class Change:
    """What a verdict reads of two anchors' geometry at one site.

    Attributes:
        angle: corrected for noise, with its unclipped cosine. spread: PR of both, and its change.
        excess_angle: in degrees, shown beside the corrected one.
    """

    site: Site
    angle: CorrectedAngle
    spread: SpreadComparison
    excess_angle: Interval


@dataclass(frozen=True)
class Compared:
    """Two anchors.

    Attributes:
        changes: at the first anchor's site under each alternative (see `profiles.alternatives`).
        profile: the one that is used.
        drift, by_layer: rows of the tables `drift` and `drift_by_layer`, without the pair.
    """

    changes: dict[str, Change]
    profile: str
    drift: tuple[Row, ...]
    by_layer: tuple[Row, ...]

    @property
    def change(self) -> Change:
        """Under the study's profile."""
        return self.changes[self.profile]


@register_stage
class Comparison(Stage[Compared]):
    """Pairs with a verdict, and every further anchor against step 0."""

    kind, scope, result = "comparison", "pair", Compared

    @classmethod
    def places(cls, study: Study) -> Iterable[Place]:
        return [pair for seed in study.config.seeds for pair in compared_pairs(study.config, seed)]

    def needs(self) -> Iterator[AnyStage]:
        yield self.at(Prompts, None)
        for ref in dict.fromkeys((self.place.a, self.place.a.base)):
            yield self.at(ChosenCarrier, ref)
        yield self.at(Activations, self.place.a)
        yield self.at(Activations, self.place.b)

    def settings(self) -> Mapping[str, Any]:
        geometry = self.study.settings["geometry"]
        return {key: geometry[key] for key in ("splits", "rank")} | {"seed": self.place.seed}

    def size(self) -> str:
        return "angles, subspaces, rank"

    def work_units(self, sizes: Sizes) -> WorkUnits:
        return WorkUnits(angles=sizes.model.layers + 2)  # every layer, and two sites in full

    def run(self, work: Work) -> Compared:
        labels = labels_of(work.of(Prompts, None).extraction_harmful)
        carriers = work.of(ChosenCarrier, self.place.a)
        a, b = work.of(Activations, self.place.a), work.of(Activations, self.place.b)
        measure = Measure(labels, self.config.geometry.splits, self.config.geometry.rank, self.place.seed)
        changes = {name: measure.change(a, b, one.site) for name, one in carriers.chosen.items()}
        sites = {"first anchor": changes[carriers.profile].site}
        sites["step 0"] = work.of(ChosenCarrier, self.place.a.base).carrier.site
        drift = [
            {**site.columns, "site": which, **row, "noise": NOISE}
            for which, site in sites.items()
            for row in measure.drift_rows(a, b, site)
        ]
        return Compared(changes, carriers.profile, tuple(drift), tuple(measure.rows_by_layer(a, b)))


class Measure:
    """Angles and ranks; every comparison starts from the same generator, so that anchors share their splits."""

    def __init__(self, labels: Sequence[str], splits: int, rank: int, seed: int) -> None:
        self.labels, self.splits, self.rank, self.seed = labels, splits, rank, seed
        self._changes: dict[tuple[int, int], Change] = {}

    def excess(self, one: SiteActivations, two: SiteActivations) -> ExcessAngle:
        return excess_angle(one, two, self.labels, splits=self.splits, rng=np.random.default_rng(self.seed))

    def change(self, a: Captured, b: Captured, site: Site) -> Change:
        at = (site.layer, site.position)
        if at not in self._changes:
            one, two = a.at(*at), b.at(*at)
            self._changes[at] = Change(
                site,
                corrected_angle(one, two, self.labels),
                compare_spread(one, two, self.labels),
                self.excess(one, two).excess,
            )
        return replace(self._changes[at], site=site)

    def drift_rows(self, a: Captured, b: Captured, site: Site) -> list[Row]:
        one, two = a.at(site.layer, site.position), b.at(site.layer, site.position)
        excess, change = self.excess(one, two), self.change(a, b, site)
        halved = {"splits": excess.splits}
        found: dict[str, Row] = {
            "corrected_angle": {**change.angle.degrees._asdict(), "note": change.angle.reason or ""},
            "corrected_cosine": change.angle.cosine._asdict(),
            "participation_ratio_from": change.spread.a._asdict(),
            "participation_ratio_to": change.spread.b._asdict(),
            "participation_ratio_difference": {
                **change.spread.difference._asdict(),
                "note": change.spread.reason or "",
            },
            "excess_angle": {**excess.excess._asdict(), **halved},
            "angle_across_halves": {"value": excess.across, **NO_INTERVAL, **halved},
            "angle_within_halves": {"value": excess.within, **NO_INTERVAL, **halved},
        }
        means = [mean_difference(place.harmful, place.harmless) for place in (one, two)]
        found["cosine"] = {"value": cosine(*means), **NO_INTERVAL}
        angles = self.subspace_angles(one, two)
        compared = {
            **NO_INTERVAL,
            "rank": len(angles.angles),
        }  # below the rank asked for if categories span less
        found |= {f"subspace_{name}": {"value": getattr(angles, name), **compared} for name in DISTANCES}
        return [{"quantity": name, **row, "unit": UNITS.get(name, "")} for name, row in found.items()]

    def subspace_angles(self, one: SiteActivations, two: SiteActivations) -> Any:
        bases = [
            subspace(category_directions(*place, self.labels).rows, self.rank).basis for place in (one, two)
        ]
        return angle_summary(*bases)

    def rows_by_layer(self, a: Captured, b: Captured) -> Iterator[Row]:
        """At every layer, last position: point values; layers at which nothing differs are left out."""
        for layer in range(a.harmful.shape[1]):
            here, there = a.at(layer, -1), b.at(layer, -1)
            one, two = mean_difference(*here), mean_difference(*there)
            if not one.any() or not two.any():
                continue  # the last template token's own embedding: nothing differs yet
            angles = self.subspace_angles(here, there)
            rng = np.random.default_rng(self.seed)
            values = {
                "cosine": cosine(one, two),
                "excess_angle": excess_angle_value(here, there, self.labels, splits=self.splits, rng=rng),
                **{f"subspace_{name}": getattr(angles, name) for name in DISTANCES},
            }
            for name, value in values.items():
                yield {"layer": layer, "quantity": name, "value": value, "unit": UNITS.get(name, "")}


def cosine(one: torch.Tensor, two: torch.Tensor) -> float:
    """Cosine similarity of two vectors."""
    return float(torch.nn.functional.cosine_similarity(one, two, dim=0))
