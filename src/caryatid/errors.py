"""Errors that a user can act on: one line saying what was wrong, where, and the remedy.

The exit codes are part of the command-line contract. Anything that is not a `CaryatidError` is a bug
and keeps its traceback.
"""

from typing import ClassVar


class LoadWarning(UserWarning):
    """Something that a user should know about a model that is used all the same."""


class CaryatidError(Exception):
    """A user-facing error.

    Args:
        what: what was wrong, naming the offending value.
        where: file, key or object in which it was found.
        remedy: what to do about it.
    """

    exit_code: ClassVar[int] = 2

    def __init__(self, what: str, *, where: str | None = None, remedy: str | None = None) -> None:
        self.what = what
        self.where = where
        self.remedy = remedy
        text = f"{where}: {what}" if where else what
        if remedy:
            text = f"{text.rstrip('.')}. {remedy}"
        super().__init__(" ".join(text.split()))


class UsageError(CaryatidError):
    """Bad command-line usage."""


class ConfigError(CaryatidError):
    """A configuration that cannot be used. `problems` holds every finding, one line each."""

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        remedy: str | None = None,
        problems: tuple[str, ...] = (),
    ) -> None:
        super().__init__(what, where=where, remedy=remedy)
        self.problems = problems


class InputError(CaryatidError):
    """An input file, prompt set, tensor or argument that cannot be used."""


class DataMissingError(CaryatidError):
    """Data or a model is missing, or its checksum is wrong."""

    exit_code = 3


class NumericalError(CaryatidError):
    """A computation produced non-finite numbers."""

    exit_code = 4


class LostError(CaryatidError):
    """Interrupted by the user where nothing was kept to go on from."""

    exit_code = 130


class MemoryExhaustedError(CaryatidError):
    """Out of memory, also after backing off to the smallest batch."""

    exit_code = 5
