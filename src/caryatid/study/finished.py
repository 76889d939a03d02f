"""Results of finished stages, read from a run directory."""

from typing import Any, TypeVar

from ..artifacts import RunDirectory
from .plan import Plan
from .stage import Stage

R = TypeVar("R")
KEPT = 24  # results in memory


class Results:
    """Results of finished stages, each read once while it is among the last few that were asked for."""

    def __init__(self, plan: Plan, run: RunDirectory) -> None:
        self.plan, self.run = plan, run
        self._read: dict[str, Any] = {}

    def of(self, stage: Stage[R]) -> R:
        """A stage's result."""
        entry = self.plan[stage]
        if entry.key not in self._read:
            self._read[entry.key] = entry.stage.load(entry.folder(self.run))
        result: R = self._read.pop(entry.key)
        self._read[entry.key] = result  # now the most recent one
        while len(self._read) > KEPT:
            del self._read[next(iter(self._read))]
        return result

    def clear(self) -> None:
        """Forget all."""
        self._read.clear()
