"""The report of a run: what the page needs from its stages and tables; no model, no network, no GPU."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..behaviour.answers import AnswerRow
from ..errors import UsageError
from ..report.files import write_figures as write_files
from ..report.page import ANSWERS_TEXT, Content, Fold, TableAbout, write_page
from ..report.tables import read_tables
from ..training.arms import ARMS
from .run import Run
from .series import AnchorRef, all_anchors
from .stages.answers import Answers
from .stages.prompts import Prompts
from .table import all_tables

ROW = 24  # characters that an answer takes in the page beside its texts
HARMFUL_SUITES = frozenset({"harmbench", "strongreject", "xstest_unsafe"})


def build_report(run: Run, *, show_answers: bool = False) -> Path:
    """Write `report/index.html` and `tables/*.tex`; answers to harmful prompts stay redacted.

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
    answers, answered = _answers(run, show_answers)
    content = Content(
        settings=run.study.settings,
        manifest={"libraries": {}, **run.directory.manifest()},
        config=run.directory.config_text(),
        tables=tables,
        arms=_arms(run),
        known=tuple(
            TableAbout(table.name, table.about, tuple(column.name for column in table.columns))
            for table in known
            if table.name in tables  # an earlier version's run has fewer
        ),
        figures={seed: list(run.figures(seed).values()) for seed in sorted(run.config.seeds)},
        folds=tuple(folds),
        sources=tuple(_sources(run)),
        answers=tuple(answers),
        answered=answered,
        show_answers=show_answers,
    )
    return write_page(run.path, content)


def write_figures(run: Run) -> int:
    """Write every figure of every seed to `figures/` as SVG and PDF, some seconds in all; returns their number.

    Raises:
        UsageError: the run has no tables yet.
    """
    return write_files(
        run.path, (figure for seed in run.config.seeds for figure in run.figures(seed).values())
    )


def _arms(run: Run) -> dict[str, str]:
    """What each arm of a run is, in words; those of an observed series were trained elsewhere."""
    if run.config.observed:
        return {one.arm: "checkpoints that were trained elsewhere" for one in run.config.observed_anchors}
    return {name: ARMS[name].about for name in run.config.arms if name in ARMS}


def _sources(run: Run) -> Iterator[dict[str, Any]]:
    """Every prompt set with its role, size, source and licence."""
    sets = run.of(Prompts).sets if run.has(Prompts) else {}
    for name, one in sets.items():
        row = {"field": name, "n": len(one), "role": one.role.value}
        yield {**row, "source": one.source, "licence": one.licence}


def _answers(run: Run, show: bool) -> tuple[list[dict[str, Any]], int]:
    """Answers of each suite at each anchor, as many as the page has room for, the same prompts at every anchor, and how
    many there are; those to harmful prompts redacted unless asked for."""
    anchors = [ref for ref in all_anchors(run.config) if run.has(Answers, ref)]
    queues: list[list[dict[str, Any]]] = []
    for ref, found in ((ref, run.of(Answers, ref)) for ref in anchors):
        for suite, attack in dict.fromkeys((row.suite, row.attack) for row in found.rows):
            queues.append([_answer(ref, row, show) for row in found.to(suite, attack)])
    kept: list[list[dict[str, Any]]] = [[] for _ in queues]
    left, prompts = ANSWERS_TEXT, set[str]()
    for place in range(max(map(len, queues), default=0)):
        new = [queue[place] if place < len(queue) else None for queue in queues]
        left -= sum(
            len(row["answer"]) + (0 if row["prompt"] in prompts else len(row["prompt"])) + ROW
            for row in new
            if row
        )
        if left < 0 and place:
            break
        for rows, row in zip(kept, new, strict=True):
            if row:
                rows.append(row)
                prompts.add(row["prompt"])
    return [row for rows in kept for row in rows], sum(map(len, queues))


def hidden(row: AnswerRow) -> bool:
    """Whether an answer is shown only where it is asked for."""
    return row.suite in HARMFUL_SUITES or row.label == "harmful"


def _answer(ref: AnchorRef, row: AnswerRow, show: bool) -> dict[str, Any]:
    return {
        **ref.columns,
        "suite": row.suite,
        "attack": row.attack,
        "prompt": row.user_text,
        "answer": f"[redacted, {len(row.text)} characters]" if hidden(row) and not show else row.text,
        "verdict": row.verdict or "",
        "degenerate": row.degenerate or "",
    }
