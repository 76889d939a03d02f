"""The plan of a study: its stages as a graph, an order in which they can run, and the key of each.

Knows no stage by name. Keys follow from content alone, so that a plan needs no model and no file.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..artifacts import RunDirectory, StageFolder
from .series import AnchorRef
from .stage import AnyStage, Study, stage_kinds


@dataclass(frozen=True)
class Planned:
    """A stage in a plan.

    Attributes:
        stage: what runs. needs: the stages it needs, as planned. inputs: what its content depends on; the key of its
            folder is their hash.
        recorded: the key that a run directory names for it; only for reading what is there.
    """

    stage: AnyStage
    needs: "tuple[Planned, ...]"
    inputs: dict[str, Any]
    recorded: str | None = None

    @cached_property
    def id(self) -> str:
        """`kind/place`."""
        return self.stage.id

    @cached_property
    def key(self) -> str:
        """The content key."""
        return self.recorded or StageFolder.key_of(self.stage.kind, self.inputs)

    def folder(self, run: RunDirectory) -> StageFolder:
        """Its folder in a run directory."""
        kind = self.stage.kind
        return StageFolder(kind, self.key, run.path / "stages" / kind / self.key, self.inputs)

    @cached_property
    def upstream(self) -> frozenset[str]:
        """Ids of all stages that it depends on, directly or not."""
        return frozenset({need.id for need in self.needs}.union(*(need.upstream for need in self.needs)))


@dataclass(frozen=True)
class Plan:
    """All stages in an order in which they can run."""

    study: Study
    stages: tuple[Planned, ...]

    def __iter__(self) -> Iterator[Planned]:
        return iter(self.stages)

    def __len__(self) -> int:
        return len(self.stages)

    @cached_property
    def _by_id(self) -> dict[str, Planned]:
        return {entry.id: entry for entry in self.stages}

    def __getitem__(self, stage: AnyStage | str) -> Planned:
        return self._by_id[stage if isinstance(stage, str) else stage.id]

    def __contains__(self, stage: AnyStage | str) -> bool:
        return (stage if isinstance(stage, str) else stage.id) in self._by_id

    def of(self, kind: type[AnyStage]) -> list[AnyStage]:
        """The stages of a kind, in order."""
        return [entry.stage for entry in self.stages if isinstance(entry.stage, kind)]

    def upto(self, *kinds: type[AnyStage]) -> "Plan":
        """The part of the plan that stages of these kinds need, with these."""
        wanted = [entry for entry in self.stages if isinstance(entry.stage, kinds)]
        ids = {entry.id for entry in wanted}.union(*(entry.upstream for entry in wanted))
        return Plan(self.study, tuple(entry for entry in self.stages if entry.id in ids))

    def recorded_in(self, run: RunDirectory) -> "Plan":
        """The plan with the folders that a run's manifest names, whichever version of a stage made them."""
        named = {
            name: Path(str(entry["folder"])).name
            for name, entry in run.manifest().get("stages", {}).items()
            if isinstance(entry, dict) and "folder" in entry
        }
        return Plan(self.study, tuple(replace(entry, recorded=named.get(entry.id)) for entry in self.stages))


def build_plan(study: Study) -> Plan:
    """Every registered stage at each of its places, in order. Pure: reads nothing."""
    found: dict[str, AnyStage] = {}
    for kind in stage_kinds():
        for place in kind.places(study):
            stage: AnyStage = kind(study, place)
            found[stage.id] = stage
    planned: dict[str, Planned] = {}

    def plan(stage: AnyStage, above: tuple[str, ...] = ()) -> Planned:
        if stage.id in above:
            raise ValueError(f"stages need each other: {' → '.join((*above, stage.id))}")
        if stage.id not in found:
            raise ValueError(f"{above[-1]} needs {stage.id}, which is not part of this study")
        if stage.id not in planned:
            needs = dict.fromkeys(found.get(need.id, need) for need in stage.needs())
            entries = tuple(plan(need, (*above, stage.id)) for need in needs)
            inputs = {
                "version": stage.version,
                "settings": dict(stage.settings()),
                "needs": {entry.id: entry.key for entry in entries},
            }
            planned[stage.id] = Planned(stage, entries, inputs)
        return planned[stage.id]

    for stage in found.values():
        plan(stage)
    return Plan(study, tuple(_ordered(planned)))


def _ordered(planned: dict[str, Planned]) -> list[Planned]:
    """An order in which every stage follows those it needs, and in which an anchor is left only when nothing more can
    be done there: opening a model is what is dear. Ties are broken by seed, then by the order of planning."""
    rank = {name: number for number, name in enumerate(planned)}
    waiting = {name: len(entry.needs) for name, entry in planned.items()}
    followers: dict[str, list[str]] = {name: [] for name in planned}
    for name, entry in planned.items():
        for need in entry.needs:
            followers[need.id].append(name)
    ready: dict[Any, list[tuple[int, str]]] = {}
    order: list[Planned] = []

    def seed_of(entry: Planned) -> int:
        return getattr(entry.stage.place, "seed", -1)

    def offer(name: str) -> None:
        entry = planned[name]
        place = entry.stage.place
        group = place if isinstance(place, AnchorRef) else None
        heapq.heappush(ready.setdefault(group, []), (rank[name], name))

    for name, count in waiting.items():
        if count == 0:
            offer(name)
    here: Any = None
    while any(ready.values()):
        if not ready.get(here):
            here = min(
                (group for group, names in ready.items() if names),
                key=lambda group: (group is not None, seed_of(planned[ready[group][0][1]]), ready[group][0]),
            )
        entry = planned[heapq.heappop(ready[here])[1]]
        order.append(entry)
        for name in followers[entry.id]:
            waiting[name] -= 1
            if waiting[name] == 0:
                offer(name)
    return order
