"""Results of finished stages, read from a run directory."""

from pathlib import Path
from typing import Any, TypeVar

from ..anchors import Anchor
from ..artifacts import RunDirectory, StageFolder
from .plan import Plan
from .stage import Stage

R = TypeVar("R")
KEPT = 24  # results in memory


class Results:
    """Results of finished stages, each read once while it is among the last few that were asked for.

    Files are compared with the checksums of their stage's manifest when they are first read.
    """

    def __init__(self, plan: Plan, run: RunDirectory) -> None:
        self.plan, self.run = plan, run
        self._read: dict[str, Any] = {}
        self._checked: set[Path] = set()

    def of(self, stage: Stage[R]) -> R:
        """A stage's result.

        Raises:
            DataMissingError: one of its files is missing or damaged; names it.
        """
        entry = self.plan[stage]
        if entry.key not in self._read:
            folder = entry.folder(self.run)
            self._check(folder, folder.path)
            self._read[entry.key] = entry.stage.load(folder)
        result: R = self._read.pop(entry.key)
        self._read[entry.key] = result  # now the most recent one
        while len(self._read) > KEPT:
            del self._read[next(iter(self._read))]
        return result

    def intact(self, anchor: Anchor) -> Anchor:
        """The anchor, after its weights were checked that are in the run directory. Errors as `of`."""
        stages = self.run.path.resolve() / "stages"
        for name in filter(None, (*anchor.adapters, anchor.weights)):
            weights = Path(name).resolve()
            if weights.is_relative_to(stages):
                kind, key = weights.relative_to(stages).parts[:2]
                self._check(StageFolder(kind, key, stages / kind / key, {}), weights)
        return anchor

    def _check(self, stage: StageFolder, files: Path) -> None:
        """The files of a stage that lie directly in a folder."""
        if files not in self._checked and stage.done():
            stage.check(folder=files)
            self._checked.add(files)

    def clear(self) -> None:
        """Forget all."""
        self._read.clear()
