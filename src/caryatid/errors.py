"""Errors that a user can act on: one line saying what was wrong, where, and the remedy.

The exit codes are part of the command-line contract. Anything that is not a `CaryatidError` is a bug
and keeps its traceback.
"""

import errno
from typing import ClassVar

# What the system says of a place that cannot be used; other errors of this kind are bugs.
_UNUSABLE = frozenset(
    {
        *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
        *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG),
    }
)


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


class JobError(CaryatidError):
    """A job on another machine ended for a reason outside of the study."""


class LostError(CaryatidError):
    """Interrupted by the user where nothing was kept to go on from."""

    exit_code = 130


class MemoryExhaustedError(CaryatidError):
    """Out of memory, also after backing off to the smallest batch."""

    exit_code = 5


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: Python's, CUDA's, or that of torch's CPU allocator."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or "can't allocate memory" in str(error)


def user_error(error: BaseException) -> CaryatidError | None:
    """What a user can act on: the error itself, or what stands for one of the system's. None: it is a bug."""
    if isinstance(error, CaryatidError):
        return error
    if isinstance(error, OSError) and error.errno in _UNUSABLE:
        remedy = "Free space there, check its permissions, or name another place."
        place = str(error.filename) if error.filename else None
        return UsageError(str(error.strerror), where=place, remedy=remedy)
    if out_of_memory(error):
        return MemoryExhaustedError("out of memory", remedy="Lower the batch settings.")
    return None
