"""SIGTERM, with which schedulers take a machine away: it ends a run as Ctrl-C does, so that what can go on is kept.

A loop that would lose an unfinished step holds the signal back and heeds it where its state is whole.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_holders = 0
_asked = False


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    global _asked
    if not _holders or _asked:  # a second one does not wait
        raise KeyboardInterrupt
    _asked = True


def heed_sigterm() -> None:
    """Let SIGTERM raise KeyboardInterrupt from now on; for processes of this package's own, in their main thread."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)


def asked_to_end() -> bool:
    """Whether SIGTERM came while it was held back: save, then raise KeyboardInterrupt."""
    return _asked


@contextmanager
def held_back() -> Iterator[None]:
    """Inside, a first SIGTERM only shows in `asked_to_end`; one that nobody heeded there counts at the end."""
    global _holders, _asked
    _holders += 1
    asked = False
    try:
        yield
        asked = _asked
    finally:
        _holders -= 1
        if not _holders:
            _asked = False
    if asked and not _holders:
        raise KeyboardInterrupt
