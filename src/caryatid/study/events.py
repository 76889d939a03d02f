"""`events.jsonl`: what happens in a run, one JSON object a line, appended by every runner."""

import json
import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..progress import Progress

FILE = "events.jsonl"
TELL_EVERY = 60.0  # seconds between two lines about one stage that runs


@dataclass(frozen=True)
class Events:
    """The events of a run directory.

    Every line has `time` (UTC), `event`, `host` and `pid`. Of a stage: `stage_started`; once a minute `stage_running`
    with the task in hand (`doing`, `done`, `total`, units per second as `rate`) and `memory`; and `stage_done` or
    `stage_failed`. `memory`: bytes of the process, and of the device, at their peak since the stage began.

    Attributes:
        tell: also gets each event and its facts.
    """

    folder: Path
    host: str = field(default_factory=socket.gethostname)
    tell: Callable[[str, Mapping[str, Any]], None] = lambda _event, _facts: None

    def write(self, event: str, **facts: Any) -> None:
        """Append a line, whole; where that cannot be written the run goes on without it."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps(
            {"time": now, "event": event, "host": self.host, "pid": os.getpid(), **facts}, ensure_ascii=False
        )
        with suppress(OSError):
            file = os.open(self.folder / FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(file, f"{line}\n".encode())
            finally:
                os.close(file)
        self.tell(event, facts)


def begun(folder: Path) -> dict[str, float]:
    """When each stage of a run directory, or a part of it, was last begun, by id: seconds since 1970 by the clock of
    who began it."""
    found = {}
    with suppress(OSError):  # no events were written
        for line in (folder / FILE).read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError, KeyError, TypeError):  # half a line, after a full disk
                event = json.loads(line)
                if event["event"] in ("stage_started", "part_started"):
                    found[event["stage"]] = datetime.fromisoformat(event["time"]).timestamp()
    return found


@dataclass
class Told:
    """Progress of a stage, told to the events now and then, and handed on.

    Attributes:
        inner: where it is shown. facts: of every line: the stage's id and key. memory: says what is used at the peak.
    """

    inner: Progress
    events: Events
    facts: dict[str, Any]
    memory: Any
    _label: str = ""
    _total: int | None = None
    _count: int = 0
    _began: float = 0.0
    _told: float = field(default_factory=time.monotonic)

    def start(self, label: str, total: int | None) -> None:
        self._label, self._total, self._count, self._began = label, total, 0, time.monotonic()
        self.inner.start(label, total)

    def advance(self, n: int = 1) -> None:
        self._count += n
        self.inner.advance(n)
        now = time.monotonic()
        if now - self._told >= TELL_EVERY:
            self._told = now
            rate = round(self._count / max(now - self._began, 1e-9), 4)
            task = {"doing": self._label, "done": self._count, "total": self._total, "rate": rate}
            self.events.write("stage_running", **self.facts, **task, memory=self.memory())

    def done(self) -> None:
        self.inner.done()
