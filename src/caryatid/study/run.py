"""A study's run directory, opened for reading: results of its stages, tables, models, carriers, verdicts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from ..artifacts import RunDirectory
from ..config import StudyConfig, parse_config
from ..errors import UsageError
from .facts import Facts
from .finished import Results
from .plan import Plan, build_plan
from .stage import Stage, Study

R = TypeVar("R")


class Run:
    """A run directory."""

    def __init__(self, plan: Plan, directory: RunDirectory) -> None:
        self.plan, self.directory = plan, directory
        self.results = Results(plan, directory)

    @property
    def study(self) -> Study:
        """Its configuration and what was settled when it was planned."""
        return self.plan.study

    @property
    def path(self) -> Path:
        """The run directory."""
        return self.directory.path

    @property
    def config(self) -> StudyConfig:
        """The resolved configuration."""
        return self.study.config

    def of(self, kind: type[Stage[R]], place: Any = None) -> R:
        """The result of a stage at a place; None: the whole study."""
        return self.results.of(kind(self.study, place))

    def has(self, kind: type[Stage[Any]], place: Any = None) -> bool:
        """Whether a stage's artifacts are here: a run that was shared may come with its tables alone."""
        return self.plan[kind(self.study, place)].folder(self.directory).manifest_path.exists()

    def each(self, kind: type[Stage[R]]) -> Iterator[tuple[Any, R]]:
        """Place and result of every stage of a kind, in the order of the study."""
        for place in kind.places(self.study):
            yield place, self.of(kind, place)


def open_run(directory: Path | str) -> Run:
    """Open a study's run directory.

    Raises:
        UsageError: not a run directory, one of another version, or a study that was stopped before it began.
    """
    run = RunDirectory.existing(Path(directory))
    if not run.config_path.exists():
        raise UsageError(
            "the study was stopped before it began", where=str(directory), remedy="Run it again."
        )
    config = parse_config(run.config_text(), str(run.config_path))
    return Run(build_plan(Study(config, Facts.from_json(run.manifest()["facts"]))), run)
