"""What is left to do of a plan, and which of it this runner takes next, beside other runners in the same directory."""

import time
from collections.abc import Sequence

from .leases import stages_of
from .plan import Plan, Planned
from .remaining import Remaining
from .series import AnchorRef
from .work import Session

LOOK_EVERY = 1.0  # seconds, while all that could run is with other runners


class Todo:
    """The stages of a plan that are not done.

    Stages of several seeds that do not differ are one, and stand under the first of their names.

    Raises:
        DataMissingError: a finished stage is damaged, and the session does not repair.
    """

    def __init__(self, session: Session, plan: Plan) -> None:
        self.session, self.plan = session, plan
        self.numbers = {entry.id: number for number, entry in enumerate(plan, start=1)}
        self.left: dict[str, Planned] = {}
        with session.run.locked(wait=True):
            taken = stages_of(session.leases.others())
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
        pending = [entry.id for entry in self.left.values()]
        self.remaining = Remaining.of(plan, session.settled_prompts, pending, measure=False)
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
        said = filter(None, (entry.stage.size(), self.remaining.said()))
        self.session.announce(f"[{self.numbers[entry.id]}/{len(self.plan)}] {entry.id}: {'; '.join(said)}")

    def done(self, entry: Planned) -> None:
        """The stage that was taken is finished."""
        self.session.leases.drop(entry.key)
        self.finished(entry)

    def finished(self, entry: Planned) -> None:
        """A stage is finished, by whomever."""
        self.left.pop(entry.key, None)
        self.remaining.finished(entry, entry.folder(self.session.run).seconds() or 0.0)

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

    def _next(self) -> Planned | None:
        """A stage that can run now and that nobody holds. The run directory must be locked."""
        taken = stages_of(self.session.leases.others())
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
