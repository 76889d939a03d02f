"""Leases: several runners share one run directory, and no stage is done twice.

A lease is a file in the run directory that names its owner. A thread of the owner touches it again and again; a file
that was not touched for long, or whose process on this host is gone, is nobody's any more. Times are those of the file
system alone, so that neither clocks that differ nor one that jumps matter. Leases are taken and given up while the run
directory is locked, and so one at a time.
"""

import json
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from ..artifacts import RunDirectory, write_json

TOUCH_EVERY = 15.0  # seconds
GONE_AFTER = 300.0  # seconds without a touch
RUNNER = "runner-"  # the lease that a runner holds for as long as it runs; the others are named by stage keys


@dataclass(frozen=True)
class Owner:
    """Who holds a lease."""

    host: str
    pid: int
    token: str

    @classmethod
    def here(cls) -> "Owner":
        """A new owner in this process."""
        space = Path("/proc/self/ns/pid")  # containers of one host may count their processes anew
        host = f"{socket.gethostname()}/{space.readlink()}" if space.is_symlink() else socket.gethostname()
        return cls(host, os.getpid(), uuid.uuid4().hex)


@dataclass
class Leases:
    """The leases of one runner in a run directory; `others` are those of live runners beside it."""

    run: RunDirectory
    owner: Owner = field(default_factory=Owner.here)
    mine: set[Path] = field(default_factory=set)

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
        if owner.host == self.owner.host and not _runs(owner.pid):
            return False
        try:
            return _fresh(path, _now(self.folder))
        except FileNotFoundError:
            return False

    def take(self, name: str) -> None:
        """Hold a lease that nobody has. The run directory must be locked."""
        path = self._path(name)
        write_json(path, {"host": self.owner.host, "pid": self.owner.pid, "token": self.owner.token})
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
            alive = _runs(owner.pid) if owner.host == here.host else _fresh(path, time.time())
        except FileNotFoundError:
            continue
        if alive:
            found.add(path.stem)
    return found


def _fresh(path: Path, now: float) -> bool:
    """Whether a lease was touched lately."""
    return now - path.stat().st_mtime < GONE_AFTER


def _owner(path: Path) -> Owner | None:
    """Who wrote a lease; None: it is gone or damaged."""
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
        return Owner(str(found["host"]), int(found["pid"]), str(found["token"]))
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


def _runs(pid: int) -> bool:
    """Whether a process of this host is alive; one that ended and was not waited for is not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
