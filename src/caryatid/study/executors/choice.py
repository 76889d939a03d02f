"""Executors by name."""

from collections.abc import Callable, Mapping

from ...errors import UsageError
from .base import Executor
from .inline import Inline
from .ray import OnRay
from .slurm import OnSlurm

EXECUTORS: Mapping[str, Callable[[int | None, Mapping[str, str]], Executor]] = {
    "inline": Inline,
    "ray": OnRay,
    "slurm": OnSlurm,
}


def executor_named(
    name: str, workers: int | None = None, options: Mapping[str, str] | None = None
) -> Executor:
    """An executor.

    Args:
        workers: stages, or parts of them, at the same time; None: the executor decides. options: its own settings.

    Raises:
        UsageError: no such executor or option. DataMissingError: its package is not installed.
    """
    if name not in EXECUTORS:
        raise UsageError(f"no executor {name!r}", where="--executor", remedy=f"Use {', '.join(EXECUTORS)}.")
    return EXECUTORS[name](workers, options or {})
