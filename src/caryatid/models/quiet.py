"""What users hear while a model is loaded: nothing of transformers' own, and notes of ours as warnings."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from transformers.utils import logging as hf_logging

from ..errors import LoadWarning

__all__ = ["LoadWarning", "Say", "last_line", "quiet_transformers", "said_once", "warn"]

_LONGEST = 300  # characters: some errors list everything that they know

Say = Callable[[str], None]
"""Takes one line that a user should read."""


_said: ContextVar[set[str] | None] = ContextVar("said", default=None)


@contextmanager
def said_once(*lines: str) -> Iterator[None]:
    """Each line is issued once within it; a study opens its models again and again.

    Args:
        lines: that whoever enters says elsewhere; they are not issued at all.
    """
    token = _said.set(set(lines))
    try:
        yield
    finally:
        _said.reset(token)


def warn(line: str) -> None:
    """Issue one `LoadWarning`."""
    said = _said.get()
    if said is not None:
        if line in said:
            return
        said.add(line)
    warnings.warn(line, LoadWarning, stacklevel=2)


def last_line(error: BaseException) -> str:
    """The last line of an error's text, which says what was wrong; with its type where the text is bare."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    bare = isinstance(error, KeyError | IndexError | AttributeError | AssertionError)
    last = lines[-1] if len(lines[-1]) <= _LONGEST else f"{lines[-1][:_LONGEST]} …"
    return f"{type(error).__name__}: {last}" if bare else last


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Only errors are logged and no bars are drawn inside the context; the settings found are restored."""
    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    placing = logging.getLogger("accelerate.big_modeling")
    level = placing.level
    hf_logging.set_verbosity_error()
    placing.setLevel(logging.ERROR)
    hf_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        placing.setLevel(level)
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()
