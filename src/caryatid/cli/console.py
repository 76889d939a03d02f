"""What every command shares: progress on stderr, results on stdout."""

import json
import math
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from ..errors import LoadWarning
from ..texts import visible

PLAIN_INTERVAL = 15.0  # seconds between progress lines where stderr is not a terminal

err = Console(stderr=True, highlight=False, soft_wrap=True)
out = Console(highlight=False, soft_wrap=True)


def announce(line: str) -> None:
    """One line for the user, on stderr. Here and below, what would act on a terminal is spelt out."""
    err.print(visible(line), markup=False)


def say(text: str) -> None:
    """A result for the user, on stdout."""
    sys.stdout.write(f"{visible(text)}\n")


@contextmanager
def speaking() -> Iterator[None]:
    """Let output never fail for its encoding, and announce what loading a model warns of, inside the context."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure: Any = getattr(stream, "reconfigure", None)
        if reconfigure is not None:  # characters that a console cannot show are spelt out
            reconfigure(errors="backslashreplace")
    with warnings.catch_warnings():
        show = warnings.showwarning

        said: set[str] = set()  # a study opens its models again and again

        def shown(message: Any, category: type[Warning], *rest: Any, **named: Any) -> None:
            if issubclass(category, LoadWarning):
                if str(message) not in said:
                    announce(f"note: {message}")
                said.add(str(message))
            else:
                show(message, category, *rest, **named)

        warnings.showwarning = shown
        warnings.simplefilter("always", LoadWarning)
        yield


def print_json(value: object) -> None:
    """A result as JSON on stdout, in ASCII where stdout cannot show all of it, or where a character would act on a
    terminal. What is not finite becomes null."""
    text = json.dumps(_finite(value), indent=1, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
        shown = visible(text) == text
    except (UnicodeEncodeError, LookupError):
        shown = False
    if not shown:
        text = json.dumps(_finite(value), indent=1, allow_nan=False).replace("\x7f", "\\u007f")
    sys.stdout.write(text + "\n")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A result as a table on stdout: aligned on a terminal, tab-separated elsewhere."""
    if not sys.stdout.isatty():
        for row in (columns, *rows):
            sys.stdout.write("\t".join(_text(cell) for cell in row) + "\n")
        return
    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(Text(_text(cell)) for cell in row))
    out.print(table)


def _text(cell: object) -> str:
    return "" if cell is None else visible(str(cell))


def print_rows(columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> None:
    """Rows of a table of a study on stdout: these columns, numbers with three decimals."""
    cells = ([row.get(key) for key in columns] for row in rows)
    print_table(columns, [[f"{c:.3f}" if isinstance(c, float) else c for c in row] for row in cells])


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


class TerminalProgress:
    """A bar with the remaining time on a terminal; a line every quarter of a minute elsewhere."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._task: Any = None
        self._label = ""
        self._total: int | None = None
        self._count = 0
        self._started = self._shown = 0.0

    def __enter__(self) -> "TerminalProgress":
        return self

    def __exit__(self, *_error: object) -> None:
        self.done()

    def start(self, label: str, total: int | None) -> None:
        self.done()
        self._label, self._total, self._count = label, total, 0
        self._started = self._shown = time.monotonic()
        if err.is_terminal:
            self._bar = Progress(
                TextColumn("  {task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=err,
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(label, total=total)

    def advance(self, n: int = 1) -> None:
        self._count += n
        if self._bar is not None:
            self._bar.advance(self._task, n)
            return
        now = time.monotonic()
        if self._label and now - self._shown >= PLAIN_INTERVAL:
            self._shown = now
            announce(f"  {self._label}: {self._state(now)}")

    def _state(self, now: float) -> str:
        if not self._total:
            return str(self._count)
        left = (now - self._started) / max(self._count, 1) * (self._total - self._count)
        return f"{self._count}/{self._total}, about {max(left, 0):.0f} s left"

    def done(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        self._label = ""
