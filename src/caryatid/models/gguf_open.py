"""A GGUF file's header, parsed once for all who read it: a vocabulary of 150,000 words takes several seconds a time."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_ALONE = threading.RLock()  # what `parsed_once` replaces belongs to the whole process


def open_gguf(gguf: str | Path) -> Any:
    """A gguf `GGUFReader` of the file, over a plain array: slices of a memory map cost three times as much.

    Raises:
        ValueError, IndexError, KeyError: the file is damaged.
    """
    import numpy as np
    from gguf.gguf_reader import GGUFReader

    class PlainReader(GGUFReader):
        """Reads the same bytes; only the type of its array differs."""

        @property
        def data(self) -> Any:
            return self._data

        @data.setter
        def data(self, mapped: Any) -> None:
            self._data = mapped.view(np.ndarray)

    return PlainReader(str(gguf))


@contextlib.contextmanager
def parsed_once() -> Iterator[None]:
    """Within it, whoever imports gguf's `GGUFReader`, transformers above all, is given one reader a file.

    One thread at a time; others wait until it is left.
    """
    import gguf

    readers: dict[Path, Any] = {}

    def reader(path: str | Path, mode: Any = "r") -> Any:
        place = Path(path).absolute()
        if mode != "r":
            return original(path, mode)
        if place not in readers:
            readers[place] = open_gguf(place)
        return readers[place]

    with _ALONE:
        original = gguf.GGUFReader
        vars(gguf)["GGUFReader"] = reader
        try:
            yield
        finally:
            vars(gguf)["GGUFReader"] = original
