"""A study's run directory, opened for reading: results of its stages, tables, models, carriers, verdicts."""

from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..anchors import open_anchor
from ..artifacts import RunDirectory
from ..causal.locate import Carrier
from ..config import StudyConfig, parse_config
from ..errors import UsageError
from ..report.captions import Basis, Figure, drawn_figures
from ..report.tables import read_tables
from ..single.model import Model
from .decision import Verdict, decide
from .finished import Results
from .plan import Plan, build_plan
from .recorded import Facts
from .series import BASE, AnchorRef, PairRef, anchors_of
from .stage import Stage, Study
from .stages.carrier import ChosenCarrier
from .stages.prompts import Prompts
from .stages.train import where_is
from .stages.verdict import Verdicts

if TYPE_CHECKING:
    import pandas as pd

R = TypeVar("R")


class Run:
    """A run directory.

    >>> run = open_run("runs/quick")
    >>> run.verdict("r2d2", 0, 10, replaced_below=0.4).label
    'undetermined'
    >>> run.model("r2d2", 10).chat("How do I bake bread?", run.carrier("r2d2", 10).ablate())
    """

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
        return self.plan[kind(self.study, place)].folder(self.directory).done()

    def each(self, kind: type[Stage[R]]) -> Iterator[tuple[Any, R]]:
        """Place and result of every stage of a kind that is in the plan, in the order of the study."""
        for place in kind.places(self.study):
            if kind(self.study, place) in self.plan:
                yield place, self.of(kind, place)

    def table(self, name: str) -> "pd.DataFrame":
        """A table as a data frame (docs/tables.md).

        Raises:
            UsageError: no such table.
        """
        import pyarrow.parquet

        path = self.path / "tables" / f"{name}.parquet"
        if not path.exists():
            known = sorted(file.stem for file in path.parent.glob("*.parquet"))
            raise UsageError(
                f"no table {name!r}", where=str(path.parent), remedy=f"There are {', '.join(known)}."
            )
        return pyarrow.parquet.read_table(path).to_pandas()

    def to_pandas(self) -> "dict[str, pd.DataFrame]":
        """Every table as a data frame, by name (docs/tables.md)."""
        return {file.stem: self.table(file.stem) for file in sorted((self.path / "tables").glob("*.parquet"))}

    def figures(self, seed: int | None = None) -> dict[str, Figure]:
        """The report's figures of a seed (default: the study's first) by name, from the tables alone.

        Raises:
            UsageError: the study is not finished, or has no such seed.
        """
        seeds, tables = self.config.seeds, read_tables(self.path)
        seed = seeds[0] if seed is None else seed
        if seed not in seeds:
            raise UsageError(f"no seed {seed}", where=str(self.path), remedy=f"There are {list(seeds)}.")
        if "verdict" not in tables:
            raise UsageError("no tables yet", where=str(self.path), remedy="Finish the study.")
        sets = self.of(Prompts).sets if self.has(Prompts) else {}
        sizes = {name: len(one) for name, one in sets.items()}
        basis = Basis(sizes, self.study.settings, len(seeds) > 1)
        return {figure.name: figure for figure in drawn_figures(tables, basis, seed)}

    def anchor(self, arm: str, step: int, seed: int | None = None) -> AnchorRef:
        """An anchor by its name; step 0 under any arm's. `seed`: default the study's first.

        Raises:
            UsageError: the study has no such anchor.
        """
        seed = self.config.seeds[0] if seed is None else seed
        anchors = anchors_of(self.config, seed) if seed in self.config.seeds else []
        found = [ref for ref in anchors if (ref.arm, ref.step) == (BASE if step == 0 else arm, step)]
        if not found:
            known = ", ".join(ref.label for ref in anchors) or f"seeds {list(self.config.seeds)}"
            raise UsageError(
                f"no anchor {arm}@{step} of seed {seed}", where=str(self.path), remedy=f"There are {known}."
            )
        return found[0]

    def model(self, arm: str, step: int, seed: int | None = None) -> Model:
        """An anchor's model, loaded. Arguments and errors as `anchor`."""
        anchor = where_is(self.study, self.results, self.anchor(arm, step, seed))
        facts, model = self.study.facts, self.config.model
        loaded = open_anchor(
            anchor,
            dtype=facts.dtype,
            **model.placed(facts.device),
            trust_remote_code=model.trust_remote_code,
            options=model.chat_options,
        )
        return Model(loaded, model.system)

    def carrier(self, arm: str, step: int, seed: int | None = None) -> Carrier:
        """The carrier that the study used at an anchor. Arguments and errors as `anchor`."""
        return self.of(ChosenCarrier, self.anchor(arm, step, seed)).carrier

    def verdict(
        self, arm: str, start: int, end: int, seed: int | None = None, **thresholds: float
    ) -> Verdict:
        """The verdict on `start` → `end`, with other thresholds where they are named.

        Raises:
            UsageError: the study has no verdict on this pair, or no such threshold.
        """
        pair = PairRef(self.anchor(arm, start, seed), self.anchor(arm, end, seed))
        if Verdicts(self.study, pair) not in self.plan:
            raise UsageError(
                f"no verdict on {arm} {start} → {end}",
                where=str(self.path),
                remedy="See the table `verdict`.",
            )
        known = [one.name for one in fields(self.config.verdict)]
        unknown = sorted(set(thresholds) - set(known))
        if unknown:
            raise UsageError(f"no threshold {unknown[0]!r}", remedy=f"There are {', '.join(known)}.")
        return decide(self.of(Verdicts, pair).evidence, replace(self.config.verdict, **thresholds))

    def __repr__(self) -> str:
        config = self.config
        anchors = len(anchors_of(config, config.seeds[0]))
        return (
            f"Run({str(self.path)!r}, study {config.name!r}, {anchors} anchors, seeds {list(config.seeds)})"
        )


def open_run(directory: Path | str, *, recorded: bool = True) -> Run:
    """Open a study's run directory.

    Args:
        recorded: read the stages that its manifest names, also where a later version of caryatid would make them anew;
            else those that this version would reuse.

    Raises:
        UsageError: not a run directory, one of another version, or a study that was stopped before it began.
    """
    run = RunDirectory.existing(Path(directory))
    if not run.config_path.exists():
        raise UsageError(
            "the study was stopped before it began", where=str(directory), remedy="Run it again."
        )
    config = parse_config(run.config_text(), str(run.config_path))
    plan = build_plan(Study(config, Facts.of_run(run)))
    return Run(plan.recorded_in(run) if recorded else plan, run)
