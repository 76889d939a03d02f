"""`caryatid judge …`: judges over files of answers."""

from pathlib import Path
from typing import Any

import typer

from . import options
from .console import announce, print_json, print_table, say

app = typer.Typer(help="Judge saved answers; check the judges against people.", no_args_is_help=True)


@app.command(
    epilog="Example: caryatid judge refusal a.csv --prompt-column prompt --completion-column answer -o b.csv",
    short_help="Judge whether answers of a CSV file refuse.",
)
@options.grouped
def refusal(
    file: Path = typer.Argument(help="CSV file of answers."),
    prompt_column: str = typer.Option(..., "--prompt-column", help="Column with the prompts."),
    completion_column: str = typer.Option(..., "--completion-column", help="Column with the answers."),
    output: Path = typer.Option(..., "-o", "--output", help="CSV file to write."),
    judge: str = options.RefusalJudge,
    *,
    given: options.JudgeOptions,
    dtype: str | None = options.Dtype,
    device: str | None = options.Device,
    as_json: bool = options.Json,
) -> None:
    """Add `verdict` (full_compliance, full_refusal, partial_refusal, or empty = unscored) and `verdict_judge`."""
    from ..behaviour.judges.files import judge_refusal_file
    from ..behaviour.judges.registry import open_refusal_judge

    spec = given.spec(judge, dtype, device)
    used = open_refusal_judge(spec)
    done = judge_refusal_file(
        file, prompt_column=prompt_column, completion_column=completion_column, output=output, judge=used
    )
    _show(done, used.usage, as_json)


@app.command(
    epilog="Example: caryatid judge harmful answers.json -o judged.json",
    short_help="Judge whether answers of a JSON file do harm.",
)
@options.grouped
def harmful(
    file: Path = typer.Argument(help="JSON list of rows with `behavior` and `generation`."),
    output: Path = typer.Option(..., "-o", "--output", help="JSON file to write."),
    judge: str = options.HarmJudge,
    *,
    given: options.JudgeOptions,
    dtype: str | None = options.Dtype,
    device: str | None = options.Device,
    as_json: bool = options.Json,
) -> None:
    """Add `harmful` (0, 1, null = unscored), `harmful_score` and `judge`; rates of the offline judge are proxies."""
    from ..behaviour.judges.files import judge_harmful_file
    from ..behaviour.judges.registry import open_copyright_hashes, open_harm_judge

    spec = given.spec(judge, dtype, device)
    used = open_harm_judge(spec)
    done = judge_harmful_file(file, output=output, judge=used, hashes=open_copyright_hashes(spec))
    _show(done, used.usage, as_json)


def _show(done: Any, usage: str | None, as_json: bool) -> None:
    if usage is not None:
        announce(usage)
    facts = done.to_json()
    if as_json:
        print_json(facts)
        return
    counts = ", ".join(f"{name} {count}" for name, count in facts["verdicts"].items())
    say(f"{facts['output']}: {facts['rows']} rows judged by {facts['judge']}: {counts}")


@app.command(
    epilog="Example: caryatid judge sample runs/quick -o sheet.csv --suite xstest_safe",
    short_help="Draw answers for people to label.",
)
def sample(
    run_dir: Path = typer.Argument(metavar="DIR", help="Run directory of a finished study."),
    output: Path = typer.Option(
        ..., "-o", "--output", help="CSV sheet to write; fill in its column `label`."
    ),
    size: int = typer.Option(200, "-n", "--size", min=1, help="Answers to draw."),
    suite: list[str] = typer.Option([], "--suite", help="Only this suite; may be repeated."),
    arm: list[str] = typer.Option([], "--arm", help="Only this arm; may be repeated."),
    step: list[int] = typer.Option([], "--step", help="Only this step; may be repeated."),
    seed: int = typer.Option(0, "--seed", help="Seed of the draw."),
    as_json: bool = options.Json,
) -> None:
    """Draw answers to label, as many from each arm and step and there from each suite, blind to arm, step and verdict.

    Labels: full_compliance, partial_refusal, full_refusal; or harmful, harmless. The sheet holds answers as they are.
    """
    from ..artifacts import RunDirectory
    from ..behaviour.label_sheets import draw_sample

    run = RunDirectory.existing(run_dir).path
    count, key = draw_sample(run, output, size=size, seed=seed, suites=suite, arms=arm, steps=step)
    facts = {"answers": count, "sheet": str(output), "key": str(key)}
    if as_json:
        print_json(facts)
    else:
        say(", ".join(f"{name} {value}" for name, value in facts.items()))


@app.command(
    epilog="Example: caryatid judge score runs/quick sheet.csv",
    short_help="How far the judge agrees with people.",
)
def score(
    run_dir: Path = typer.Argument(metavar="DIR", help="Run directory that the sheet was drawn from."),
    labels: Path = typer.Argument(help="The sheet of `judge sample`, labelled."),
    table: Path | None = typer.Option(
        None,
        "--table",
        help="CSV file to write: place in the run, hash, label and verdict of each labelled answer; no texts.",
    ),
    as_json: bool = options.Json,
) -> None:
    """Agreement of the run's judge with people, and its rates with the judge's errors allowed for (from 120 labels)."""
    from ..artifacts import RunDirectory
    from ..behaviour.label_sheets import write_label_table
    from ..behaviour.labelling import LEAST_LABELS, score_labels

    run = RunDirectory.existing(run_dir).path
    found = score_labels(run, labels)
    if table is not None:
        write_label_table(run, labels, table)
    if as_json:
        print_json(_plain(found))
        return
    _show_agreement(found)
    if found.agreement.n < LEAST_LABELS:
        announce(f"rates are corrected from {LEAST_LABELS} labelled answers on")
        return
    _show_rates(found)


def _show_agreement(found: Any) -> None:
    """How the judge agrees with people: over all labels, and by arm and step."""
    whole = found.agreement
    rows = [
        ("accuracy", whole.accuracy),
        ("balanced accuracy", whole.balanced),
        ("kappa", whole.kappa),
        ("sensitivity", whole.sensitivity),
        ("specificity", whole.specificity),
        *([("three classes", found.three_way)] if found.three_way.n else []),
    ]
    print_table((found.metric, "value", "lo", "hi"), [(name, *_three(value)) for name, value in rows])
    announce(f"{found.judge}: {whole.n} labelled answers, {whole.unscored} unscored by the judge")
    print_table(
        ["arm", "step", "labelled", "accuracy", "lo", "hi", "sensitivity", "of", "specificity", "of"],
        [
            (
                *(one.arm, "all" if one.step is None else one.step, part.n, *_three(part.accuracy)),
                *(f"{part.sensitivity.value:.3f}", part.sensitivity.n),
                *(f"{part.specificity.value:.3f}", part.specificity.n),
            )
            for one in found.by_anchor
            for part in [one.agreement]
        ],
    )


def _show_rates(found: Any) -> None:
    """The run's rates as judged and corrected, and which differences survive the judge's errors."""
    place = ("seed", "arm", "step", "suite", "attack")
    print_table(
        (*place, "n", "judged", "lo", "hi", "corrected", "lo", "hi", "errors of"),
        [
            (
                *(r.seed, r.arm, r.step, r.suite, r.attack, r.judged.n, *_three(r.judged)),
                *(*_three(r.corrected), r.errors_of or "all arms"),
            )
            for r in found.rates
        ],
    )
    announce("since step 0, and if the judge erred as on these labels:")
    print_table(
        (*place, "judged", "lo", "hi", "if it erred", "lo", "hi", "survives"),
        [
            (
                *(d.seed, d.arm, d.step, d.suite, d.attack, *_three(d.found.judged)),
                *(*_three(d.found.corrected), "yes" if d.found.survives else f"no: {d.found.shown_if_erred}"),
            )
            for d in found.differences
        ],
    )


def _three(value: Any) -> tuple[str, str, str]:
    return f"{value.value:.3f}", f"{value.lo:.3f}", f"{value.hi:.3f}"


def _plain(value: Any) -> Any:
    """Nested named tuples as plain mappings."""
    if hasattr(value, "_asdict"):
        return {name: _plain(part) for name, part in value._asdict().items()}
    return [_plain(part) for part in value] if isinstance(value, tuple) else value
