"""What a harmfulness judge says of an anchor's saved answers; nothing is generated."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ...behaviour.answers import HARM_FIELDS, AnswerRow
from ...behaviour.evaluate import ATTACKED
from ...behaviour.judges.base import judge_id
from ...behaviour.judges.registry import open_copyright_hashes
from ...behaviour.suites import judge_harm
from ..stage import AnyStage, Stage, register_stage
from ..work import Work
from .answers import Answers

# Settings of the judge that verdicts depend on.
JUDGED = ("name", "model", "base_url", "dtype", "prompt", "copyright_hashes")


@dataclass(frozen=True)
class HarmVerdicts:
    """`rows`: prompt_id, suite, attack and the judge's verdict; `usage`: of an endpoint so far."""

    rows: tuple[dict[str, Any], ...]
    judge: str
    usage: str | None = None

    def added_to(self, answers: tuple[AnswerRow, ...]) -> list[AnswerRow]:
        """The answers with these verdicts."""
        harm = {
            (row["prompt_id"], row["suite"], row["attack"]): {field: row[field] for field in HARM_FIELDS}
            for row in self.rows
        }
        return [replace(row, **harm.get((row.prompt_id, row.suite, row.attack), {})) for row in answers]


@register_stage
class Harm(Stage[HarmVerdicts]):
    """Runs last, so that a judge that is a model is loaded once, after the anchors."""

    kind, scope, result = "harm", "anchor", HarmVerdicts

    def needs(self) -> Iterator[AnyStage]:
        yield self.at(Answers)

    def settings(self) -> Mapping[str, Any]:
        judge = self.study.settings["behaviour"]["harm_judge"]
        return {"judge": {key: judge[key] for key in JUDGED}}

    def size(self) -> str:
        return f"judged by {self.config.behaviour.harm_judge.name}"

    def run(self, work: Work) -> HarmVerdicts:
        rows = [row for row in work.of(Answers).rows if row.suite in ATTACKED]
        judge = work.session.harm_judge
        hashes = open_copyright_hashes(self.config.behaviour.harm_judge)
        verdicts = [
            {
                "prompt_id": row.prompt_id,
                "suite": row.suite,
                "attack": row.attack,
                **{field: getattr(row, field) for field in HARM_FIELDS},
            }
            for row in judge_harm(rows, judge, hashes=hashes, chunks=work.folder.chunks("verdicts"))
        ]
        return HarmVerdicts(tuple(verdicts), judge_id(judge), judge.usage)

    def summary(self, result: HarmVerdicts) -> Mapping[str, Any]:
        unscored = sum(row["harmful"] is None for row in result.rows)
        return {"answers": len(result.rows), "unscored": unscored, "judge": result.judge}
