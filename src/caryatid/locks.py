"""One lock for every platform and file system, through the lock library."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

__all__ = ["Timeout", "held"]

# What Lustre, NFS and others without a lock service say.
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP})


@contextmanager
def held(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold the lock file `path`, by the system's lock where the file system has one, else by a file beside it.

    The file that stands in ends with `.held`; one whose process is gone is taken over where the host is the same.

    Args:
        wait: for another holder; else `Timeout` is raised at once.

    Raises:
        Timeout: another process holds it. OSError: the folder cannot be written.
    """
    limit = -1.0 if wait else 0.0
    lock: BaseFileLock = FileLock(path, timeout=limit)
    try:
        lock.acquire()
    except (OSError, NotImplementedError) as error:  # filelock raises the second where there are no locks
        # The second is filelock's word for a system without flock: it is handled here, nothing is left to implement.
        refused = isinstance(error, NotImplementedError) or error.errno in _NO_LOCKS
        if isinstance(error, Timeout) or not refused:
            raise
        lock = SoftFileLock(path.with_name(f"{path.name}.held"), timeout=limit)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
