"""What is left to do of a plan, and which of it this runner takes next, beside other runners in the same directory."""

import time
from collections.abc import Sequence

from .plan import Plan, Planned
from .remaining import Remaining
from .series import AnchorRef
from .work import Session

LOOK_EVERY = 1.0  # seconds, while all that could run is with other runners


class Todo:
    """The stages of a plan that are not done.

    Stages of several seeds that do not differ are one, and stand under the first of their names.
    """

    def __init__(self, session: Session, plan: Plan) -> None:
        self.session, self.plan = session, plan
        self.numbers = {entry.id: number for number, entry in enumerate(plan, start=1)}
        self.left: dict[str, Planned] = {}
        for entry in plan:
            if not entry.folder(session.run).done():
                self.left.setdefault(entry.key, entry)
        pending = [entry.id for entry in self.left.values()]
        self.remaining = Remaining.of(plan, session.settled_prompts, pending, measure=False)
        self.here: AnchorRef | None = None
        with session.run.locked(wait=True):
            taken = session.leases.others()
            for entry in self.left.values():  # a damaged result is no result, for other runners too
                if entry.key not in taken and not entry.folder(session.run).done():
                    entry.folder(session.run).manifest_path.unlink(missing_ok=True)

    def take(self) -> str | None:
        """The id of a stage to run, held from now on; None: all are done. Waits for other runners if it must."""
        waiting = False
        while self.left:
            with self.session.run.locked(wait=True):
                entry = self._next()
                if entry is not None:
                    self.session.leases.take(entry.key)
            if entry is not None:
                self.here = _anchor(entry)
                said = filter(None, (entry.stage.size(), self.remaining.said()))
                self.session.announce(
                    f"[{self.numbers[entry.id]}/{len(self.plan)}] {entry.id}: {'; '.join(said)}"
                )
                return entry.id
            if not self.left:  # others finished the last ones
                break
            if not waiting:
                self.session.announce(f"waiting for other runners: {len(self.left)} stages left")
                waiting = True
            time.sleep(LOOK_EVERY)
        return None

    def done(self, entry: Planned) -> None:
        """The stage that was taken is finished."""
        self.session.leases.drop(entry.key)
        self._finished(entry)

    def _finished(self, entry: Planned) -> None:
        self.left.pop(entry.key, None)
        self.remaining.finished(entry, float(entry.folder(self.session.run).manifest().get("seconds") or 0.0))

    def _next(self) -> Planned | None:
        """A stage that can run now and that nobody holds. The run directory must be locked."""
        taken = self.session.leases.others()
        for entry in list(self.left.values()):
            if entry.key not in taken and entry.folder(self.session.run).manifest_path.exists():
                self._finished(entry)  # by another runner
        ready = [
            entry
            for entry in self.left.values()
            if entry.key not in taken and not any(need.key in self.left for need in entry.needs)
        ]
        if not ready or not taken:
            return ready[0] if ready else None
        busy = {_anchor(entry) for entry in self.plan if entry.key in taken} - {None}
        return _first_at(ready, {self.here} - {None}) or _first_not_at(ready, busy) or ready[0]


def _anchor(entry: Planned) -> AnchorRef | None:
    """The anchor whose model a stage works with, if it is at one."""
    place = entry.stage.place
    return place if isinstance(place, AnchorRef) else None


def _first_at(ready: Sequence[Planned], anchors: set[AnchorRef | None]) -> Planned | None:
    return next((entry for entry in ready if _anchor(entry) in anchors), None)


def _first_not_at(ready: Sequence[Planned], anchors: set[AnchorRef | None]) -> Planned | None:
    return next((entry for entry in ready if _anchor(entry) not in anchors), None)
