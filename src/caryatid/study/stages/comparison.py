"""Two anchors compared: drift of the direction and the subspace at one site and layer by layer, and change of rank."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...causal.locate import Activations as Captured
from ...causal.locate import Site
from ...geometry.angles import ExcessAngle, angle_summary, excess_angle, excess_angle_value
from ...geometry.directions import category_directions, mean_difference, subspace
from ...geometry.rank import SiteActivations, compare_effective_rank
from ...stats import Interval
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
    """What a verdict reads of two anchors' geometry at one site: the excess angle and the change of effective rank."""

    site: Site
    excess_angle: Interval
    rank_difference: Interval


@dataclass(frozen=True)
class Compared:
    """Two anchors.

    Attributes:
        changes: at step 0's site under each profile, by profile name.
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
        yield self.at(ChosenCarrier, self.place.a.base)
        yield self.at(Activations, self.place.a)
        yield self.at(Activations, self.place.b)

    def settings(self) -> Mapping[str, Any]:
        geometry = self.study.settings["geometry"]
        return {key: geometry[key] for key in ("splits", "rank")} | {"seed": self.place.seed}

    def size(self) -> str:
        return "angles, subspaces, rank"

    def run(self, work: Work) -> Compared:
        labels = labels_of(work.of(Prompts, None).extraction_harmful)
        carriers = work.of(ChosenCarrier, self.place.a.base)
        a, b = work.of(Activations, self.place.a), work.of(Activations, self.place.b)
        measure = _Measure(labels, self.config.geometry.splits, self.config.geometry.rank, self.place.seed)
        changes = {name: measure.change(a, b, one.site) for name, one in carriers.chosen.items()}
        site = changes[carriers.profile].site
        one, two = a.at(site.layer, site.position), b.at(site.layer, site.position)
        rows = measure.drift_rows(one, two)
        difference = changes[carriers.profile].rank_difference
        rows.append({"quantity": "effective_rank_difference", **difference._asdict(), "unit": ""})
        drift = tuple({**site.columns, **row, "noise": NOISE} for row in rows)
        return Compared(changes, carriers.profile, drift, tuple(measure.rows_by_layer(a, b)))


class _Measure:
    """Angles and ranks; every comparison starts from the same generator, so that anchors share their splits."""

    def __init__(self, labels: Sequence[str], splits: int, rank: int, seed: int) -> None:
        self.labels, self.splits, self.rank, self.seed = labels, splits, rank, seed
        self._changes: dict[tuple[int, int], tuple[Interval, Interval]] = {}

    def excess(self, one: SiteActivations, two: SiteActivations) -> ExcessAngle:
        return excess_angle(one, two, self.labels, splits=self.splits, rng=np.random.default_rng(self.seed))

    def change(self, a: Captured, b: Captured, site: Site) -> Change:
        at = (site.layer, site.position)
        if at not in self._changes:
            one, two = a.at(*at), b.at(*at)
            difference = compare_effective_rank(one, two, self.labels).difference
            self._changes[at] = (self.excess(one, two).excess, difference)
        return Change(site, *self._changes[at])

    def drift_rows(self, one: SiteActivations, two: SiteActivations) -> list[Row]:
        excess = self.excess(one, two)
        halved = {"splits": excess.splits}
        found: dict[str, Row] = {
            "excess_angle": {**excess.excess._asdict(), **halved},
            "corrected_angle": {**excess.corrected._asdict(), **halved},
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
