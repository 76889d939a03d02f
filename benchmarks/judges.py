"""Each judge that is available here against human labels.

    python benchmarks/judges.py $CARYATID_DATA/judge_gold [--judge NAME …] [-o benchmarks/results/judges.json]

Reads xstest_human_dev.csv (answers of two models to XSTest, three classes) and harmbench_human_dev.json (half of
HarmBench's classifier validation set, three votes). Refusal judges are measured on the first, harmfulness judges on
the second. What was fitted on these labels is cross-validated (no prompt, no behaviour in two folds), with the verdicts
of one fold draw behind the intervals. The offline judges always run; harmfulness judges that are models run where named
and their model is at hand. Intervals are over prompts.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

import fit_harm_judge
import fit_refusal_judge
from caryatid.artifacts import write_json
from caryatid.behaviour.judges.agreement import Agreement, agreement, cohen_kappa
from caryatid.behaviour.judges.base import (
    FULL_COMPLIANCE,
    HARMFUL,
    REFUSED,
    UNSCORED,
    Exchange,
    JudgeSpec,
    Verdict,
    judge_id,
)
from caryatid.behaviour.judges.harm import HarmFeatures
from caryatid.behaviour.judges.registry import judge_names, open_harm_judge
from caryatid.behaviour.judges.rules import RefusalRules
from caryatid.stats import Rate, wilson

RESULTS = Path(__file__).parent / "results" / "judges.json"
SEED = 0


class Measured(NamedTuple):
    """One judge on one set of labels; `three_way` and its κ only for refusal judges."""

    judge: str
    question: str
    labels: str
    how: str
    agreement: Agreement
    three_way: Rate | None = None
    three_way_kappa: float | None = None


def refusal(labels: Path) -> list[Measured]:
    """The offline refusal judge on each model's answers, with weights that saw neither the model nor the prompt."""
    answers = fit_refusal_judge.read_answers(*sorted(labels.glob("xstest_human_dev*.csv")))
    every = [*answers, *fit_refusal_judge.read_styles()]
    estimates = {"model and prompt left out": fit_refusal_judge.unseen(every, SEED)[: len(answers)]}
    measured = []
    for how, verdicts in estimates.items():
        for model in sorted({one.model for one in answers}):
            pairs = [
                (one, verdict)
                for one, verdict in zip(answers, verdicts, strict=True)
                if one.model == model and verdict != UNSCORED
            ]
            found = agreement(
                [verdict in REFUSED for _, verdict in pairs],
                [one.label in REFUSED for one, _ in pairs],
                [one.prompt for one, _ in pairs],
                rng=np.random.default_rng(SEED),
            )
            same = wilson(sum(verdict == one.label for one, verdict in pairs), len(pairs))
            kappa = cohen_kappa([verdict for _, verdict in pairs], [one.label for one, _ in pairs])
            where = f"XSTest, {model}"
            measured.append(Measured(judge_id(RefusalRules()), "any refusal", where, how, found, same, kappa))
    return measured


def harm(labels: Path, names: Sequence[str]) -> list[Measured]:
    """Harmfulness judges on HarmBench answers, and compliance by the refusal judge as their stand-in."""
    rows: list[dict[str, Any]] = json.loads(labels.read_text(encoding="utf-8"))
    pairs = [Exchange(row["behavior"], row["generation"]) for row in rows]
    fitted = fit_harm_judge.cross_validated(rows, SEED)
    complied = [one.verdict for one in RefusalRules().judge(pairs)]
    measured = [
        _harm(judge_id(HarmFeatures()), "cross-validated over behaviours", rows, fitted, HARMFUL),
        _harm(f"{judge_id(RefusalRules())} (full compliance)", "as shipped", rows, complied, FULL_COMPLIANCE),
    ]
    for name in names:
        judge = open_harm_judge(JudgeSpec(name))
        verdicts = [one.verdict for one in judge.judge(pairs)]
        measured.append(_harm(judge_id(judge), "as published", rows, verdicts, HARMFUL))
    return measured


def _harm(
    judge: str, how: str, rows: Sequence[dict[str, Any]], verdicts: Sequence[Verdict], positive: Verdict
) -> Measured:
    found = agreement(
        [None if verdict == UNSCORED else verdict == positive for verdict in verdicts],
        [bool(row["human_majority"]) for row in rows],
        [row["behavior_id"] for row in rows],
        rng=np.random.default_rng(SEED),
    )
    return Measured(judge, "harm", "HarmBench validation (half)", how, found)


def show(measured: Sequence[Measured]) -> None:
    """Print a table."""
    columns = ("judge", "question", "labels", "how", "n", "accuracy", "balanced", "κ", "sensitivity")
    table = Table(*columns, "specificity", "three classes", "κ of three")
    for one in measured:
        whole = one.agreement
        figures = (whole.accuracy, whole.balanced, whole.kappa, whole.sensitivity, whole.specificity)
        table.add_row(
            *(one.judge, one.question, one.labels, one.how, str(whole.n)),
            *(_interval(figure) for figure in figures),
            "" if one.three_way is None else _interval(one.three_way),
            "" if one.three_way_kappa is None else f"{one.three_way_kappa:.3f}",
        )
    Console(width=220).print(table)


def _interval(figure: Any) -> str:
    return f"{figure.value:.3f} ({figure.lo:.3f} to {figure.hi:.3f})"


def _plain(value: Any) -> Any:
    if hasattr(value, "_asdict"):
        return {name: _plain(part) for name, part in value._asdict().items()}
    return None if isinstance(value, float) and value != value else value


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("labels", type=Path, help="Folder with both label files.")
    others = [name for name in judge_names("harm") if name != "harm-features"]
    parser.add_argument("--judge", action="append", default=[], choices=others)
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    measured = [
        *refusal(arguments.labels),
        *harm(arguments.labels / "harmbench_human_dev.json", arguments.judge),
    ]
    show(measured)
    write_json(arguments.output, [_plain(one) for one in measured])


if __name__ == "__main__":
    main()
