"""What is left to do of a plan, and which of it this runner takes next, beside other runners in the same directory."""

import os
import time
from collections.abc import Sequence

from .events import begun
from .forecast import best_forecast
from .leases import RUNNER, stages_of
from .plan import Plan, Planned
from .remaining import Remaining
from .series import AnchorRef
from .work import Session

LOOK_EVERY = 1.0  # seconds, while all that could run is with other runners


class Todo:
    """The stages of a plan that are not done.

    Stages of several seeds that do not differ are one, and stand under the first of their names.

    Args:
        plan: the session's, or a part of it. workers: how many work on it, where that is not the number of runners; 1
            for what one process was sent to do, for which no time is guessed.

    Raises:
        DataMissingError: a finished stage is damaged, and the session does not repair.
    """

    def __init__(self, session: Session, plan: Plan, workers: int | None = None) -> None:
        self.session, self.plan, self.workers = session, plan, workers
        self.numbers = {entry.id: number for number, entry in enumerate(plan, start=1)}
        self.left: dict[str, Planned] = {}
        self._beside: set[str] = set()  # leases of other runners, when they were last looked at
        with session.run.locked(wait=True):
            taken = self.taken()
            for entry in plan:
                folder = entry.folder(session.run)
                if folder.done() and entry.key not in taken:
                    if not session.repair:
                        folder.check(verify=False)
                    elif folder.damage():  # a damaged result is then no result, for other runners too
                        session.announce(f"{entry.id}: damaged ({folder.damage()}), computed anew")
                        folder.manifest_path.unlink()
                if not folder.done():
                    self.left.setdefault(entry.key, entry)
        self.remaining = self._remaining()
        self.here: AnchorRef | None = None

    def take(self) -> str | None:
        """The id of a stage to run, held from now on; None: all are done. Waits for other runners if it must."""
        waiting = False
        while self.left:
            with self.session.run.locked(wait=True):
                entry = self._next()
                if entry is not None:
                    self.session.leases.take(entry.key)
            if entry is not None:
                self.here = anchor_of(entry)
                self.announce(entry)
                return entry.id
            if not self.left:  # others finished the last ones
                break
            if not waiting:
                self.session.announce(f"waiting for other runners: {len(self.left)} stages left")
                waiting = True
            time.sleep(LOOK_EVERY)
        return None

    def announce(self, entry: Planned) -> None:
        """Say that a stage begins, and how long all of it still takes."""
        begins, now, held = begun(self.session.run.path), time.time(), stages_of(self._beside)
        running = {
            one.id: max(now - begins.get(one.id, now), 0.0)
            for one in self.remaining.entries
            if one.key in held
        }
        said = filter(None, (entry.stage.size(), self.remaining.said(running, self._working())))
        self.session.announce(f"[{self.numbers[entry.id]}/{len(self.plan)}] {entry.id}: {'; '.join(said)}")

    def done(self, entry: Planned) -> None:
        """The stage that was taken is finished."""
        self.session.leases.drop(entry.key)
        self.finished(entry)

    def finished(self, entry: Planned) -> None:
        """A stage is finished, by whomever."""
        self.left.pop(entry.key, None)
        self.remaining.finished(entry, self._took(entry))

    def ready(self, taken: set[str]) -> list[Planned]:
        """Stages that nobody holds and whose needs are done, in the plan's order; notices what others finished."""
        while True:
            found = [
                entry
                for entry in self.left.values()
                if entry.key not in taken and not any(need.key in self.left for need in entry.needs)
            ]
            by_others = [entry for entry in found if entry.folder(self.session.run).done()]
            if not by_others:
                return found
            for entry in by_others:
                self.finished(entry)

    def taken(self) -> set[str]:
        """The keys of the stages that other runners hold. The run directory must be locked."""
        self._beside = set(self.session.leases.others())
        return stages_of(self._beside)

    def _working(self) -> int:
        """How many work on this plan at once."""
        return self.workers or 1 + sum(name.startswith(RUNNER) for name in self._beside)

    def _remaining(self) -> Remaining:
        """What is left, by what those stages took that were done before on this device."""
        if not self.left:
            return Remaining(self.plan)
        found = best_forecast(self.plan, self.session.settled_prompts, guess=self.workers != 1)
        remaining = Remaining(self.plan, found.seconds, found.guessed) if found else Remaining(self.plan)
        for entry in self.plan:
            if entry.key not in self.left:
                remaining.finished(entry, self._took(entry, earlier=True))
        return remaining

    def _took(self, entry: Planned, earlier: bool = False) -> float | None:
        """Seconds of a finished stage; None where they tell nothing: it was run in parts, whose results the last
        process only collects. Of an `earlier` one that may be so, and it may be of another device or other threads."""
        folder = entry.folder(self.session.run)
        if earlier:
            had, threads = folder.manifest(), os.environ.get("OMP_NUM_THREADS")
            same = (had.get("device"), had.get("threads")) == (self.session.study.facts.device, threads)
            return folder.seconds() if same and entry.stage.parts() == 1 else None
        return None if min(entry.stage.parts(), self.workers or 1) > 1 else folder.seconds()

    def _next(self) -> Planned | None:
        """A stage that can run now and that nobody holds. The run directory must be locked."""
        taken = self.taken()
        ready = self.ready(taken)
        if not ready or not taken:
            return ready[0] if ready else None
        busy = {anchor_of(entry) for entry in self.plan if entry.key in taken} - {None}
        return _first_at(ready, {self.here} - {None}) or _first_not_at(ready, busy) or ready[0]


def anchor_of(entry: Planned) -> AnchorRef | None:
    """The anchor whose model a stage works with, if it is at one."""
    place = entry.stage.place
    return place if isinstance(place, AnchorRef) else None


def _first_at(ready: Sequence[Planned], anchors: set[AnchorRef | None]) -> Planned | None:
    return next((entry for entry in ready if anchor_of(entry) in anchors), None)


def _first_not_at(ready: Sequence[Planned], anchors: set[AnchorRef | None]) -> Planned | None:
    return next((entry for entry in ready if anchor_of(entry) not in anchors), None)
