"""Pieces of a long computation, kept while it is under way, so that a killed stage goes on where it was.

Loops over batches give each batch to `piece`. Inside `kept(folder)` the results are written there at least once a
minute, and when the computation is broken off; a later call inside `kept` with the same folder takes them from there,
piece by piece, in the order in which they were made. Outside `kept` nothing is written.
"""

import hashlib
import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

import torch

from .files import write_bytes

T = TypeVar("T")
KEEP_EVERY = 60.0  # seconds of work between two writes
DIGEST = 32  # bytes of the SHA-256 with which a file begins
WORTH_KEEPING = 1.0  # seconds: what took less, and is whole, is rather made again than written


class _Pieces:
    """The pieces of one computation, in order: those that are kept, then those that are made now."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kept = _read(folder)
        self.taken = 0
        self.made: list[tuple[str, Any]] = []
        self.since = time.monotonic()

    def piece(self, label: str, make: Callable[[], T]) -> T:
        if self.taken < len(self.kept):
            known, value = self.kept[self.taken]
            if known == label:
                self.taken += 1
                return value
            # Made in another way (memory had run out, and batches became smaller): the rest is made anew.
            self.made, self.kept, self.taken = self.kept[: self.taken], [], 0
        value = make()
        self.made.append((label, value))
        if time.monotonic() - self.since >= KEEP_EVERY:
            self.write()
        return value

    def write(self) -> None:
        """Write what was made since the last time; the file's name is the number of its first piece."""
        if self.made:
            content = io.BytesIO()
            torch.save(self.made, content)
            digest = hashlib.sha256(content.getvalue()).digest()
            write_bytes(self.folder / f"{self.taken:06d}.pt", digest + content.getvalue())
            for other in self.folder.glob("*.pt"):
                if int(other.stem) > self.taken:
                    other.unlink()
            self.kept += self.made
            self.taken, self.made = len(self.kept), []
        self.since = time.monotonic()


def _read(folder: Path) -> list[tuple[str, Any]]:
    """All pieces that were written without a gap; those of a damaged file, and those after it, are made again."""
    found: list[tuple[str, Any]] = []
    while (part := folder / f"{len(found):06d}.pt").exists():
        content = part.read_bytes()
        if hashlib.sha256(content[DIGEST:]).digest() != content[:DIGEST]:
            break
        found += torch.load(io.BytesIO(content[DIGEST:]), weights_only=True)
    return found


_under_way: ContextVar[_Pieces | None] = ContextVar("pieces", default=None)


@contextmanager
def kept(folder: Path) -> Iterator[None]:
    """Keep the pieces that are made inside in `folder`; inside another `kept`, in that one's folder `folder.name`.

    What a computation consists of must depend on nothing that can differ between two runs that use one folder.
    """
    outer = _under_way.get()
    pieces = _Pieces(folder if outer is None else outer.folder / folder.name)
    token = _under_way.set(pieces)
    try:
        yield
    except BaseException:
        with suppress(
            OSError
        ):  # of a disk that is full the error under way speaks, or nothing was lost by it
            pieces.write()
        raise
    finally:
        _under_way.reset(token)
    if time.monotonic() - pieces.since >= WORTH_KEEPING:
        pieces.write()


def piece(label: str, make: Callable[[], T]) -> T:
    """The next piece: tensors and plain values, kept, or made now.

    Args:
        label: tells pieces apart that were made in different ways, such as by the numbers in a batch.
    """
    pieces = _under_way.get()
    return make() if pieces is None else pieces.piece(label, make)
