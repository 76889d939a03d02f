"""What a stage of a study is.

A stage kind is one class in one file: it says where it works, what it needs, which settings its content depends on, how
to compute its result, and what type that result has. Plan, runner, tables and report know no stage by name.
"""

import importlib
import pkgutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Generic, Literal, TypeVar, cast

from ..artifacts import StageFolder
from ..config import StudyConfig
from ..registry import Registry
from ..results import load_result, save_result
from .costs import NOTHING, Sizes, WorkUnits
from .recorded import Facts
from .series import AnchorRef, ArmRef, Place, SeedRef, all_anchors, anchors_of, verdict_pairs

Scope = Literal["study", "seed", "arm", "anchor", "pair"]
R = TypeVar("R")
_SAME: Any = object()  # "the place of the stage that asks"


@dataclass(frozen=True, eq=False)
class Study:
    """A study's configuration, and what was settled when it was planned."""

    config: StudyConfig
    facts: Facts

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The configuration as plain JSON values."""
        return self.config.model_dump(mode="json")

    def model_settings(self, *sizes: str) -> dict[str, Any]:
        """What answers and activations of any anchor depend on, besides its weights.

        Args:
            sizes: the batch sizes that the stage works with; its numbers depend on no other by a rounding.
        """
        facts = self.facts
        found = {
            "identity": facts.model_identity,
            "dtype": facts.dtype,
            "system": self.config.model.system,
            "batch": {size: facts.batch[size] for size in sizes},
        }
        if facts.dtype != "float32":
            found["adapters"] = "kept"  # 16-bit weights keep adapters beside them, unrounded
        if self.config.model.matmul != "highest":
            found["matmul"] = self.config.model.matmul
        return found

    def anchor_settings(self, ref: AnchorRef, *sizes: str) -> dict[str, Any]:
        """What measurements at one anchor depend on, besides the stages that made it (`sizes` as above)."""
        found: dict[str, Any] = {"anchor": [ref.arm, ref.step], "model": self.model_settings(*sizes)}
        if self.config.observed and ref != ref.base:
            number = anchors_of(self.config, ref.seed).index(ref) - 1
            found["checkpoint"] = self.facts.observed_identities[number]
        return found

    def places(self, scope: Scope) -> list[Place]:
        """All places of a scope: for pairs those that have a verdict."""
        config = self.config
        if scope == "study":
            return [None]
        if scope == "seed":
            return [SeedRef(seed) for seed in config.seeds]
        if scope == "anchor":
            return list(all_anchors(config))
        if scope == "pair":
            return [pair for seed in config.seeds for pair in verdict_pairs(config, seed)]
        return [ArmRef(seed, arm) for seed in config.seeds for arm in config.arms if not config.observed]


@dataclass(frozen=True)
class Stage(Generic[R]):
    """One unit of work at one place, with one typed result.

    A subclass sets `kind`, `scope` and `result`, and overrides `needs`, `settings`, `size`, `work_units` and `run`;
    where it makes no sense in some studies, also `places`. Raise `version` when its computation changes, so that older
    results are not taken for new ones. `collective`: all processes that train together run it.
    """

    study: Study
    place: Any = None

    kind: ClassVar[str]
    scope: ClassVar[Scope]
    result: ClassVar[type]  # a frozen dataclass, R
    version: ClassVar[int] = 1
    collective: ClassVar[bool] = False

    @classmethod
    def places(cls, study: Study) -> Iterable[Place]:
        """Where the stage works in a study; nowhere: it is left out."""
        return study.places(cls.scope)

    @property
    def id(self) -> str:
        """Its name in a plan: `kind/place`."""
        return f"{self.kind}/{self.place.name}" if self.place else self.kind

    @property
    def config(self) -> StudyConfig:
        """The study's configuration."""
        return self.study.config

    def at(self, kind: "type[S]", place: Any = _SAME) -> "S":
        """Another stage, by default at the same place."""
        return kind(self.study, self.place if place is _SAME else place)

    def needs(self) -> "Iterator[Stage[Any]]":
        """Stages that must be done before; its content depends on them."""
        yield from ()

    def settings(self) -> Mapping[str, Any]:
        """What its content depends on besides `needs`, as plain JSON values."""
        return {}

    def size(self) -> str:
        """How much work it is, in words, for the plan."""
        return ""

    def work_units(self, sizes: Sizes) -> WorkUnits:
        """How much work it is, in units whose seconds a calibration knows; nothing: too little to count."""
        return NOTHING

    def run(self, work: Any) -> R:
        """Compute the result; `work`, a `Work`, gives results of earlier stages, models, and a folder for partial
        work."""
        raise TypeError(f"{type(self).__name__} does not say how to run")

    def parts(self) -> int:
        """In how many parts several processes can run it at a time, at most."""
        return 1

    def run_part(self, work: Any, shard: tuple[int, int]) -> None:
        """Do part `index` of `count` (from 0 on) and keep it in `work`'s folder; `run` then takes it from there."""
        raise TypeError(f"{type(self).__name__} has no parts")

    def save(self, result: R, folder: StageFolder) -> None:
        """Write the result to the stage's folder."""
        save_result(result, folder)

    def load(self, folder: StageFolder) -> R:
        """Read the result of a finished stage."""
        return cast(R, load_result(self.result, folder))

    def summary(self, result: R) -> Mapping[str, Any]:
        """A few facts about the result for the stage's manifest."""
        return {}


S = TypeVar("S", bound=Stage[Any])
AnyStage = Stage[Any]
_registered: Registry[str, type[AnyStage]] = Registry("stage")


def register_stage(kind: type[S]) -> type[S]:
    """Class decorator: the stage takes part in every study that is planned from now on; see `Registry.register`."""
    _registered.register(kind.kind, kind)
    return kind


def import_all(package: str) -> None:
    """Import every module of a package, so that what they define is registered."""
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        importlib.import_module(f"{package}.{module.name}")


def stage_kinds() -> list[type[AnyStage]]:
    """All registered stages: the package's own (one file each in `stages/`), then those of other packages."""
    import_all(f"{__package__}.stages")
    return sorted(_registered.values(), key=lambda kind: (kind.__module__, kind.kind))
