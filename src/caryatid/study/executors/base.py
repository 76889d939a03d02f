"""What an executor is, and the loop that all those share that send stages elsewhere.

Such an executor only starts `Job`s and says what became of them. Which stages are ready, which belong together, and
that a finished stage has its manifest is decided here, from the run directory, which all machines share.
"""

import importlib.util
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from ...errors import CaryatidError, DataMissingError, JobError, UsageError
from ..jobs import Failure, Job, Shard
from ..plan import Plan, Planned
from ..series import AnchorRef
from ..todo import Todo, anchor_of
from ..work import Session, gpus_of

LOOK_EVERY = 0.5  # seconds between two looks at what is under way


class Executor(Protocol):
    """Runs a plan's stages that are not done, and returns the ids of those that it ran."""

    def execute(self, session: Session, plan: Plan) -> list[str]:
        """Raises: CaryatidError: as the stages raise it; finished stages stay."""


class Elsewhere(Protocol):
    """A place that runs jobs at the same time. Handles are its own."""

    workers: int

    def submit(self, jobs: Sequence[Job]) -> Sequence[Any]:
        """Start jobs; a handle of each."""

    def outcome(self, handle: Any) -> "Outcome | None":
        """What became of a job; None: it is under way (or was begun again)."""

    def cancel(self, handles: Sequence[Any]) -> None:
        """End jobs that are under way."""

    def close(self) -> None:
        """Let go of the place."""


@dataclass(frozen=True)
class Outcome:
    """How a job ended; `failure`: None where its stages are done. `where`: its logs, or its machine."""

    failure: Failure | None = None
    where: str = ""


def needed(module: str, extra: str) -> Any:
    """An optional package.

    Raises:
        DataMissingError: it is not installed.
    """
    if importlib.util.find_spec(module) is None:
        raise DataMissingError(
            f"the package {module!r} is not installed",
            where=f"--executor {extra}",
            remedy=f"Install it: pip install 'caryatid[{extra}]'.",
        )
    return importlib.import_module(module)


def known_options(given: Mapping[str, str], known: Sequence[str], executor: str) -> None:
    """Refuse options that an executor does not have.

    Raises:
        UsageError: names the first one.
    """
    for name in given:
        if name not in known:
            named = ", ".join(known) or "none"
            raise UsageError(
                f"no option {name!r}", where=f"--executor {executor}", remedy=f"There are: {named}."
            )


def _at_anchor(anchor: AnchorRef | None, entry: Planned) -> bool:
    return anchor is not None and anchor_of(entry) == anchor


@dataclass
class Sending:
    """A plan under way elsewhere.

    Attributes:
        parts: of stages that are run in parts those that are not done, by the stage's key.
        running: the jobs under way, by handle. ran: ids of the stages that jobs have finished.
    """

    session: Session
    plan: Plan
    place: Elsewhere
    memory: Mapping[str, float] = field(default_factory=dict)
    parts: dict[str, set[Shard]] = field(default_factory=dict)
    running: list[tuple[Any, Job]] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.todo = Todo(self.session, self.plan, self.place.workers)

    def run(self) -> list[str]:
        """Send jobs until all stages are done.

        Raises:
            CaryatidError: as the first job that fails, after those beside it have ended.
        """
        failure: CaryatidError | None = None
        try:
            while self.running or (self.todo.left and failure is None):
                if failure is None:
                    self._send()
                time.sleep(LOOK_EVERY)
                failure = self._look() or failure
        except BaseException:
            self.place.cancel([handle for handle, _ in self.running])
            raise
        finally:
            self.place.close()
        if failure is not None:
            raise failure
        return self.ran

    def _send(self) -> None:
        free = self.place.workers - len(self.running)
        jobs = self._jobs()[:free] if free > 0 else []
        for job in jobs:
            self.todo.announce(self.plan[job.stages[0]])
        if jobs:
            self.running += zip(self.place.submit(jobs), jobs, strict=True)

    def _jobs(self) -> list[Job]:
        """What could run now beside what is under way."""
        jobs = [job for _, job in self.running]
        busy = {self.plan[name].key for job in jobs if job.shard is None for name in job.stages}
        with self.session.run.locked(wait=True):
            # Parts of a stage are held by jobs of this runner, as long as some are not done.
            taken = self.todo.taken() - set(self.parts)
            ready = self.todo.ready(taken)
        found: list[Job] = []
        for entry in ready:
            if entry.key in busy:
                continue
            if parts := self._parts(entry):
                split = [self._job([entry], part) for part in sorted(parts)]
                found += [job for job in split if job not in jobs]
                continue
            if entry.stage.scope != "pair":
                group = self._group([entry], busy, partial(_at_anchor, anchor_of(entry)))
                busy |= {one.key for one in group}
                found.append(self._job(group))
        pairs = [entry for entry in ready if entry.stage.scope == "pair" and entry.key not in busy]
        busy |= {entry.key for entry in pairs}
        for first in (pairs[start :: self.place.workers] for start in range(self.place.workers)):
            if first:
                group = self._group(first, busy, lambda one: one.stage.scope == "pair")
                busy |= {one.key for one in group}
                found.append(self._job(group))
        return found

    def _parts(self, entry: Planned) -> set[Shard]:
        """Parts of a stage that have to be done before the whole of it; none where it is not split."""
        count = min(entry.stage.parts(), self.place.workers)
        if count < 2:
            return set()
        return self.parts.setdefault(entry.key, {(number, count) for number in range(1, count + 1)})

    def _group(
        self, first: Sequence[Planned], busy: set[str], alike: Callable[[Planned], bool]
    ) -> list[Planned]:
        """Stages that are ready, and those after them that need nothing else and are alike: one process does them all,
        with one model open at an anchor, and without any for pairs."""
        group, inside = list(first), {one.key for one in first}
        for entry in self.todo.left.values():
            wanting = any(need.key in self.todo.left and need.key not in inside for need in entry.needs)
            split = min(entry.stage.parts(), self.place.workers) > 1
            if alike(entry) and entry.key not in inside | busy and not wanting and not split:
                group.append(entry)
                inside.add(entry.key)
        return group

    def _job(self, entries: Sequence[Planned], part: Shard | None = None) -> Job:
        names = tuple(entry.id for entry in entries)
        gpus = gpus_of(self.session.study)
        memory = max((self.memory.get(name, 0.0) for name in names), default=0.0)
        return Job(
            str(self.session.run.path.resolve()), names, part, gpus, memory, self.session.tracking.names
        )

    def _look(self) -> CaryatidError | None:
        """Take in what ended; the first failure."""
        failure: CaryatidError | None = None
        for handle, job in list(self.running):
            outcome = self.place.outcome(handle)
            if outcome is None:
                continue
            self.running.remove((handle, job))
            entries = [self.plan[name] for name in job.stages]
            found = outcome.failure.error() if outcome.failure else None
            if found is None and job.shard is not None:
                self.parts[entries[0].key].discard(job.shard)
                continue
            for entry in entries:
                if entry.folder(self.session.run).done():
                    self.todo.finished(entry)
                    self.ran.append(entry.id)
                elif found is None:
                    found = JobError(f"{entry.id} was not done", where=outcome.where or job.name)
            failure = failure or found
        return failure
