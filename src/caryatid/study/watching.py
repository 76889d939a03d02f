"""A run that is under way, seen from outside: what is done, what runs, how fast, and how long it still takes."""

import time
from dataclasses import dataclass
from pathlib import Path

from .events import begun
from .forecast import kept_forecast, spoken
from .leases import RUNNER, live_leases, stages_of
from .plan import Planned
from .remaining import Remaining
from .run import open_run
from .stages.prompts import Prompts
from .status import is_packed


@dataclass(frozen=True)
class KindState:
    """Stages of one kind: how many are done, how many there are, and the seconds that those that are done took."""

    done: int
    total: int
    seconds: float


@dataclass(frozen=True)
class Look:
    """A run at one moment.

    Attributes:
        running: the stage in hand, empty if nothing runs. seconds: since it was begun.
        left: remaining time in words, empty where nothing is known. pace: time taken over time planned.
        failed: a stage that failed, and why; empty if none did.
    """

    kinds: dict[str, KindState]
    running: str
    seconds: float
    left: str
    pace: float
    failed: str = ""

    @property
    def finished(self) -> bool:
        """Whether every stage is done."""
        return all(one.done == one.total for one in self.kinds.values())

    @property
    def line(self) -> str:
        """The run in one line."""
        done, total = (sum(getattr(one, name) for one in self.kinds.values()) for name in ("done", "total"))
        if self.finished:
            return f"{done} of {total} stages: finished"
        doing = f"{self.running} for {spoken(self.seconds)}" if self.running else "nothing is running"
        parts = [f"{done} of {total} stages", doing, self.left]
        if self.pace != 1:
            parts.append(f"{self.pace:.1f}× the planned time so far")
        if self.failed:
            parts.append(f"failed: {self.failed}")
        return "; ".join(filter(None, parts))


class Watch:
    """Looks at a run directory again and again; writes nothing, loads no model.

    Time is forecast where this device was timed for the study's backbone (as `study plan` does), else taken from
    finished stages of the same kind.

    Raises:
        UsageError: not a run directory, or one of another version.
    """

    def __init__(self, directory: Path) -> None:
        self.run = open_run(directory, recorded=False)
        self._packed = is_packed(self.run.directory)
        self._seconds: dict[str, float] = {}  # of finished stages
        self._forecast: dict[str, float] | None = None

    def look(self) -> Look:
        """The run now."""
        held, failed = [], ""
        leases = live_leases(self.run.directory)
        taken = stages_of(leases)
        for entry in self.run.plan:
            state = "done" if entry.id in self._seconds else self._state(entry)
            if entry.key in taken and state != "done":
                held.append(entry.id)
            elif state == "failed":
                failed = f"{entry.id}: {entry.folder(self.run.directory).failure()}"
        remaining, now, starts = self._remaining(), time.time(), begun(self.run.path)
        ran = {name: max(now - starts.get(name, now), 0.0) for name in held}
        seconds = max(ran.values(), default=0.0)
        runners = max(1, sum(name.startswith(RUNNER) for name in leases))
        left = remaining.said(ran, runners)
        return Look(self._kinds(), ", ".join(held), seconds, left, remaining.pace(), failed)

    def _state(self, entry: Planned) -> str:
        """A stage's state; one that is done is remembered with its seconds."""
        folder = entry.folder(self.run.directory)
        state = folder.state(verify=False)
        if state == "missing" and self._packed:  # it was done before
            self._seconds[entry.id] = 0.0
            return "done"
        if state == "done":
            self._seconds[entry.id] = folder.seconds() or 0.0
        return state

    def _kinds(self) -> dict[str, KindState]:
        names: dict[str, list[str]] = {}
        for entry in self.run.plan:
            names.setdefault(entry.stage.kind, []).append(entry.id)
        found = {}
        for kind, ids in names.items():
            taken = [self._seconds[name] for name in ids if name in self._seconds]
            found[kind] = KindState(len(taken), len(ids), sum(taken))
        return found

    def _remaining(self) -> Remaining:
        left = len(self._seconds) < len(self.run.plan)  # else the model need not even be here
        if (
            self._forecast is None and left and self.run.has(Prompts)
        ):  # once: prompts and timing do not change
            found = kept_forecast(self.run.plan, self.run.of(Prompts))
            self._forecast = found.seconds if found else {}
        remaining = Remaining(self.run.plan, self._forecast or {})
        for name, seconds in self._seconds.items():
            remaining.finished(self.run.plan[name], seconds)
        return remaining
