"""Processes that hold one model in parts: all run the same forwards in the same order, or wait for each other for ever.

Equal inputs do not give equal sums on GPUs. Inside `in_lockstep`, what decides which forward comes next is therefore
the first process's (`agreed`), and no forward is tried again at another size where memory runs out.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

T = TypeVar("T")
_AGREE: ContextVar[Callable[[Any], Any] | None] = ContextVar("agree", default=None)


@contextmanager
def in_lockstep(agree: Callable[[Any], Any]) -> Iterator[None]:
    """Context in which `agreed` is `agree`: it gives every process the first one's value."""
    token = _AGREE.set(agree)
    try:
        yield
    finally:
        _AGREE.reset(token)


def is_lockstep() -> bool:
    """Whether other processes must run the same forwards."""
    return _AGREE.get() is not None


def agreed(value: T) -> T:
    """The first process's value, which holds tensors on the CPU only; outside `in_lockstep` the value itself."""
    agree = _AGREE.get()
    if agree is None:
        return value
    found: T = agree(value)
    return found
