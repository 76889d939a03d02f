"""Leases: several runners share one run directory, and no stage is done twice.

A lease is a file in the run directory that names its owner. Of this host it is alive while its process is. A thread of
the owner touches it again and again: one of another host that was not touched for long is nobody's any more. Times are
those of the file system, so that clocks may differ, and a lease that seems old is watched for a while before it counts
as dead, so that a clock may jump. Leases are taken and given up one at a time, while the run directory is locked.
"""

import json
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from ..artifacts import RunDirectory, write_json

TOUCH_EVERY = 15.0  # seconds
GONE_AFTER = 300.0  # seconds without a touch …
WATCHED = 45.0  # … of which a runner must have seen so many itself
RUNNER = "runner-"  # the lease that a runner holds for as long as it runs; the others are named by stage keys


@dataclass(frozen=True)
class Owner:
    """Who holds a lease; `began`: when its process did, which tells it from a later one with the same number."""

    host: str
    pid: int
    token: str
    began: str

    @classmethod
    def here(cls) -> "Owner":
        """A new owner in this process."""
        space = Path("/proc/self/ns/pid")  # containers of one host may count their processes anew
        host = f"{socket.gethostname()}/{space.readlink()}" if space.is_symlink() else socket.gethostname()
        return cls(host, os.getpid(), uuid.uuid4().hex, _began(os.getpid()))


@dataclass
class Leases:
    """The leases of one runner in a run directory; `others` are those of live runners beside it."""

    run: RunDirectory
    owner: Owner = field(default_factory=Owner.here)
    mine: set[Path] = field(default_factory=set)
    _seen: dict[Path, tuple[float, float]] = field(
        default_factory=dict
    )  # last touch, and when that was first seen

    @property
    def folder(self) -> Path:
        """Where all leases lie."""
        return self.run.path / "leases"

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def others(self) -> dict[str, Owner]:
        """Live leases of other runners, by name; those of the dead are removed. The run directory must be locked."""
        found = {}
        for path in sorted(self.folder.glob("*.json")):
            if path in self.mine:
                continue
            owner = _owner(path)
            if owner is None or not self._lives(path, owner):
                path.unlink(missing_ok=True)
            else:
                found[path.stem] = owner
        return found

    def _lives(self, path: Path, owner: Owner) -> bool:
        if owner.host == self.owner.host:
            return _runs(owner)
        try:
            touched = path.stat().st_mtime
        except FileNotFoundError:
            return False
        known, first = self._seen.get(path, (None, 0.0))
        if known != touched:
            first = time.monotonic()
            self._seen[path] = (touched, first)
        return _fresh(touched, _now(self.folder)) or time.monotonic() - first < WATCHED

    def take(self, name: str) -> None:
        """Hold a lease that nobody has. The run directory must be locked."""
        path = self._path(name)
        write_json(path, asdict(self.owner))
        self.mine.add(path)

    def drop(self, name: str) -> None:
        """Give a lease up."""
        path = self._path(name)
        self.mine.discard(path)
        owner = _owner(path)
        if owner is not None and owner.token == self.owner.token:  # else it was taken over
            path.unlink(missing_ok=True)

    @contextmanager
    def kept_alive(self) -> Iterator[None]:
        """Hold a lease of this runner, and touch all that it holds, until the context is left."""
        stop = threading.Event()

        def touch() -> None:
            while not stop.wait(TOUCH_EVERY):
                for path in list(self.mine):
                    with suppress(OSError):  # given up meanwhile, or a file system that is away for a moment
                        os.utime(path)

        thread = threading.Thread(target=touch, name="leases", daemon=True)
        self.take(RUNNER + self.owner.token)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            with self.run.locked(wait=True):
                for path in list(self.mine):
                    self.drop(path.stem)
                if not self.others():
                    shutil.rmtree(self.folder, ignore_errors=True)


def live_leases(run: RunDirectory) -> set[str]:
    """Names of the live leases in a run directory (stage keys, and `runner-…`), read without locking or writing."""
    here, found = Owner.here(), set()
    for path in (run.path / "leases").glob("*.json"):
        owner = _owner(path)
        if owner is None:
            continue
        try:  # of another host by this one's clock: nothing is written here, to ask the file system's
            alive = _runs(owner) if owner.host == here.host else _fresh(path.stat().st_mtime, time.time())
        except FileNotFoundError:
            continue
        if alive:
            found.add(path.stem)
    return found


def stages_of(leases: Iterable[str]) -> set[str]:
    """The keys of the stages that are held; a lease of a part of one is named `key.part`."""
    return {name.partition(".")[0] for name in leases}


def _fresh(touched: float, now: float) -> bool:
    """Whether a lease was touched lately; a time to come is as far off as a past one."""
    return abs(now - touched) < GONE_AFTER


def _owner(path: Path) -> Owner | None:
    """Who wrote a lease; None: it is gone or damaged."""
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
        return Owner(str(found["host"]), int(found["pid"]), str(found["token"]), str(found["began"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _now(folder: Path) -> float:
    """The time by the clock of the file system."""
    probe = folder / f".now-{uuid.uuid4().hex}"
    probe.touch()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink()


def _began(pid: int) -> str:
    """When a process of this host began, by a clock that does not jump where there is one; empty: it is gone."""
    try:
        if (stat := Path(f"/proc/{pid}/stat")).exists():
            return (
                stat.read_text().rpartition(")")[2].split()[19]
            )  # field 22: ticks since the machine started
        return str(psutil.Process(pid).create_time())
    except (OSError, psutil.Error):
        return ""


def _runs(owner: Owner) -> bool:
    """Whether a lease's process of this host is alive; one that ended and was not waited for is not."""
    try:
        ended = psutil.Process(owner.pid).status() == psutil.STATUS_ZOMBIE
        return not ended and _began(owner.pid) in (owner.began, "")
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
