"""What a run leaves for others beside its tables: every judged answer."""

from ..behaviour.files import write_answers as write_files
from .run import Run
from .tables.behaviour import judged_answers


def write_answers(run: Run) -> None:
    """Write `answers/answers.jsonl` and `.parquet`, not redacted (docs/answers.md)."""
    answers = judged_answers(run)
    where = [
        {"arm": one.anchor.arm, "step": one.anchor.step, "seed": one.anchor.seed}
        for one in answers
        for _ in one.rows
    ]
    write_files(run.path / "answers", [row for one in answers for row in one.rows], where)
