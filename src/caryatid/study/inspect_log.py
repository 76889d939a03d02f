"""A run's judged answers as logs that `inspect view` opens and `inspect_ai.analysis` reads (extra `inspect`)."""

import datetime as dt
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..behaviour.answers import AnswerRow
from ..errors import DataMissingError
from ..models.planted import PLANTED
from ..texts import visible
from .page import hidden
from .recorded import Facts
from .run import Run
from .series import AnchorRef, all_anchors
from .stages.answers import Answers
from .stages.harm import Harm

WHEN = dt.datetime(2000, 1, 1, tzinfo=dt.UTC).isoformat()  # the same run gives the same log


def export_logs(run: Run, out: Path, *, show_answers: bool = False) -> list[Path]:
    """Write one log an anchor, suite and attack; returns their paths.

    Each answer is a sample with the scores `refused`, `answered`, `degenerate`, `passed` and `harmful`: 1 or 0; what
    was not scored has no score. Counts are those of the answers. Harmful ones are redacted unless asked for.

    Raises:
        DataMissingError: inspect_ai is not installed.
    """
    try:
        from inspect_ai.log import write_eval_log
    except ImportError as error:
        remedy = "Install it: pip install 'caryatid[inspect]'."
        raise DataMissingError("inspect_ai is not installed", remedy=remedy) from error
    paths = []
    for ref in all_anchors(run.config):
        if not run.has(Answers, ref):
            continue
        rows = run.of(Answers, ref).rows
        if run.has(Harm, ref):
            rows = tuple(run.of(Harm, ref).added_to(rows))
        for suite, attack in dict.fromkeys((row.suite, row.attack) for row in rows):
            mine = [row for row in rows if (row.suite, row.attack) == (suite, attack)]
            name = re.sub(r"[^\w.-]+", "_", f"{ref.arm}-{ref.step}-seed{ref.seed}-{suite}-{attack}")
            out.mkdir(parents=True, exist_ok=True)
            paths.append(out / f"{name}.eval")
            write_eval_log(_log(run, ref, mine, name, show_answers), str(paths[-1]), format="eval")
    return paths


def scores_of(row: AnswerRow) -> dict[str, int]:
    """What was judged of an answer, 1 or 0 by name; what was not scored is left out."""
    found: dict[str, int] = {"degenerate": int(row.degenerate is not None)}
    if row.scored:
        found |= {"refused": int(row.refused), "answered": int(row.answered)}
    if row.scored and row.check is not None:
        found["passed"] = int(row.passed)
    if row.harmful is not None:
        found["harmful"] = row.harmful
    return found


def metadata_of(facts: Facts, ref: AnchorRef, row: AnswerRow) -> dict[str, Any]:
    """What a log says of itself: anchor, suite, attack and judge, and what must be said of a planted backbone."""
    found = {**ref.columns, "suite": row.suite, "attack": row.attack, "judge": row.judge}
    return {**found, "note": PLANTED} if facts.planted else found


def _log(run: Run, ref: AnchorRef, rows: Sequence[AnswerRow], name: str, show: bool) -> Any:
    from inspect_ai.log import EvalConfig, EvalDataset, EvalLog, EvalMetric, EvalResults, EvalScore, EvalSpec

    every = [scores_of(row) for row in rows]
    results = []
    for score in dict.fromkeys(key for found in every for key in found):
        values = [found[score] for found in every if score in found]
        mean = EvalMetric(name="mean", value=sum(values) / len(values))
        judge = rows[0].harm_judge if score == "harmful" else rows[0].judge
        results.append(
            EvalScore(
                name=score,
                scorer=judge or score,
                metrics={"mean": mean},
                scored_samples=len(values),
                unscored_samples=len(rows) - len(values),
            )
        )
    spec = EvalSpec(
        created=WHEN,
        task=f"caryatid/{rows[0].suite}-{rows[0].attack}",
        task_id=name,
        run_id=run.config.name,
        eval_id=name,
        dataset=EvalDataset(name=rows[0].set_name, samples=len(rows)),
        model=f"{run.config.model.spec}/{ref.label}",
        config=EvalConfig(),
        metadata=metadata_of(run.study.facts, ref, rows[0]),
    )
    found = EvalResults(total_samples=len(rows), completed_samples=len(rows), scores=results)
    return EvalLog(status="success", eval=spec, results=found, samples=[_sample(row, show) for row in rows])


def _sample(row: AnswerRow, show: bool) -> Any:
    from inspect_ai.log import EvalSample
    from inspect_ai.model import ChatMessageAssistant, ChatMessageUser, ModelOutput
    from inspect_ai.scorer import Score

    text = visible(row.text) if show or not hidden(row) else f"[redacted, {len(row.text)} characters]"
    asked = visible(row.user_text)
    return EvalSample(
        id=f"{row.prompt_id}-{row.sample}" if row.sample else row.prompt_id,
        epoch=1,
        input=asked,
        target="",
        messages=[ChatMessageUser(content=asked), ChatMessageAssistant(content=text)],
        output=ModelOutput.from_content("caryatid", text),
        scores={name: Score(value=value) for name, value in scores_of(row).items()},
        metadata={"category": row.category, "kind": row.kind, "verdict": row.verdict, "ended": row.ended},
    )
