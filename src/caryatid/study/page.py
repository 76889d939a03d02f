"""The report of a run: what the page needs from its stages and tables; no model, no network, no GPU."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..report.page import Content, Fold, write_page
from ..report.tables import read_tables
from .run import Run
from .series import all_anchors
from .stages.answers import Answers
from .stages.prompts import Prompts
from .table import all_tables

HARMFUL_SUITES = frozenset({"harmbench", "strongreject", "xstest_unsafe"})
SAMPLE_ANSWERS = 3


def build_report(run: Run, *, show_answers: bool = False) -> Path:
    """Write `report/index.html` and `figures/*.svg` from artifacts; answers to harmful prompts stay redacted.

    Raises:
        UsageError: the run has no tables yet. InputError: a table or artifact is damaged.
    """
    tables, known = read_tables(run.path), all_tables()
    if not any(table.name in tables for table in known):
        raise UsageError(
            "no tables yet",
            where=str(run.path),
            remedy="Finish the study with `caryatid study run`.",
        )
    folds = [
        Fold(
            table.name,
            table.shown.section,
            table.shown.title,
            table.shown.columns or tuple(column.name for column in table.columns),
            table.shown.note or table.about,
        )
        for table in known
        if table.shown is not None and table.name in tables  # an earlier version's run has fewer
    ]
    content = Content(
        settings=run.study.settings,
        manifest={"libraries": {}, **run.directory.manifest()},
        config=run.directory.config_text(),
        tables=tables,
        figures={seed: list(run.figures(seed).values()) for seed in sorted(run.config.seeds)},
        folds=tuple(folds),
        sources=tuple(_sources(run)),
        samples=tuple(_samples(run, show_answers)),
        show_answers=show_answers,
    )
    return write_page(run.path, content)


def _sources(run: Run) -> Iterator[dict[str, Any]]:
    """Every prompt set with its role, size, source and licence."""
    sets = run.of(Prompts).sets if run.has(Prompts) else {}
    for name, one in sets.items():
        row = {"field": name, "n": len(one), "role": one.role.value}
        yield {**row, "source": one.source, "licence": one.licence}


def _samples(run: Run, show: bool) -> Iterator[dict[str, Any]]:
    """A few answers of each suite at each anchor; those to harmful prompts redacted unless asked for."""
    anchors = [ref for ref in all_anchors(run.config) if run.has(Answers, ref)]
    for ref, found in ((ref, run.of(Answers, ref)) for ref in anchors):
        for suite, attack in dict.fromkeys((row.suite, row.attack) for row in found.rows):
            for row in found.to(suite, attack)[:SAMPLE_ANSWERS]:
                hidden = suite in HARMFUL_SUITES and not show
                yield {
                    "anchor": ref.name,
                    "suite": suite,
                    "attack": attack,
                    "prompt": row.user_text,
                    "answer": f"[redacted, {len(row.text)} characters]" if hidden else row.text,
                    "verdict": row.verdict or "unscored",
                    "judge": row.judge,
                    "degenerate": row.degenerate or "",
                }
