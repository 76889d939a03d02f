"""`caryatid study …` and `caryatid report`."""

from pathlib import Path
from typing import Any

import typer

from ..errors import UsageError
from . import options
from .console import TerminalProgress, announce, print_json, print_table, say
from .watching import watch_run

app = typer.Typer(help="Plan, run and inspect studies.", no_args_is_help=True, rich_markup_mode=None)

REPORT_EXAMPLE = "Example: caryatid report runs/quick"

Preset = typer.Option(
    None, "--preset", help="A preset: quick, smollm2-gpu, qwen-0.5b, qwen-1.5b, mistral-7b."
)
ConfigFile = typer.Option(None, "--config", help="A YAML file; it may say `extends: PRESET`.")
Overrides = typer.Option([], "--set", metavar="KEY=VALUE", help="Change one setting; may be repeated.")


@app.command(epilog="Example: caryatid study run --preset quick --out runs/quick --set seeds=[1]")
def run(
    preset: str | None = Preset,
    config: Path | None = ConfigFile,
    out: Path | None = typer.Option(None, "--out", help="Run directory; default runs/NAME."),
    overrides: list[str] = Overrides,
    null: bool = typer.Option(
        False,
        "--null",
        help="Also compare step 0 with itself, all prompts drawn anew, ten times (nulls.redraws=10).",
    ),
    executor: str = typer.Option(
        "inline", "--executor", help="Where stages run: inline (this process), ray or slurm (docs/scale.md)."
    ),
    workers: int | None = typer.Option(
        None, "--workers", min=1, help="How many stages, or parts of them, run at a time."
    ),
    executor_options: list[str] = typer.Option(
        [], "--executor-set", metavar="KEY=VALUE", help="A setting of the executor; may be repeated."
    ),
    repair: bool = typer.Option(
        False,
        "--repair",
        help="Compare all finished stages with their checksums; compute anew what is damaged.",
    ),
    track: list[str] = options.Track,
    as_json: bool = typer.Option(False, "--json", help="Print the result as JSON."),
) -> None:
    """Run a study, or resume it where it stopped."""
    from ..config import load_config
    from ..study.executors.choice import executor_named
    from ..study.flow import run_study
    from ..study.page import write_figures
    from ..study.run import open_run
    from ..study.summary import summary_lines

    settings = load_config(preset=preset, file=config, overrides=overrides)
    if null and not settings.nulls.redraws:
        nulls = settings.nulls.model_copy(update={"redraws": 10})
        settings = settings.model_copy(update={"nulls": nulls})
    where = executor_named(executor, workers, dict(map(_pair, executor_options)))
    with TerminalProgress() as progress:
        result = run_study(
            settings,
            out or Path("runs") / settings.name,
            executor=where,
            repair=repair,
            track=track,
            progress=progress,
            announce=announce,
        )
    if not result.main:
        return
    if result.executed or not (result.directory / "figures").is_dir():
        announce("drawing figures")
        write_figures(open_run(result.directory))
    if as_json:
        facts = {"directory": str(result.directory), "report": str(result.report)}
        print_json({**facts, "executed": result.executed, "reused": result.reused, "seconds": result.seconds})
        return
    for line in summary_lines(result):
        say(line)


def _pair(text: str) -> tuple[str, str]:
    """`KEY=VALUE` as two texts."""
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise UsageError(f"{text!r} is no setting", where="--executor-set", remedy="Write KEY=VALUE.")
    return key, value


@app.command(
    epilog="Example: caryatid study plan --preset quick",
    short_help="Stages with sizes, time, memory and disk; verdicts in reach.",
)
def plan(
    preset: str | None = Preset,
    config: Path | None = ConfigFile,
    out: Path | None = typer.Option(None, "--out", help="Show what is already done there."),
    overrides: list[str] = Overrides,
    refusal_rate: float = typer.Option(
        0.5,
        "--refusal-rate",
        min=0,
        max=1,
        help="Share of requests that an arm's last anchor may refuse, for reach and time.",
    ),
    again: bool = typer.Option(
        False, "--recalibrate", help="Time this device anew; else its last timing is used."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print the plan as JSON."),
) -> None:
    """Show the stages of a study with sizes, time, memory and disk, and which verdicts are within reach.

    The backbone is timed on this device once, for some seconds.
    """
    from ..artifacts import RunDirectory
    from ..config import load_config
    from ..models.planted import PLANTED
    from ..models.quiet import said_once
    from ..study.forecast import forecast_of
    from ..study.reach import reach_lines
    from ..study.runner import settled_plan

    settings = load_config(preset=preset, file=config, overrides=overrides)
    with said_once(PLANTED):  # it stands in the plan itself
        settled, stages = settled_plan(settings, out)
        forecast = forecast_of(stages, settled.prompts, again=again, refusal_rate=refusal_rate)
    facts = settled.facts
    reached = reach_lines(settings, settled.prompts, refusal_rate) if settled.prompts else []
    rows = forecast.rows(stages, None if out is None else RunDirectory(out))
    left = [entry for entry, row in zip(stages, rows, strict=True) if row.get("state") != "done"]
    if as_json:
        total: dict[str, Any] = {
            "seconds": sum(forecast.costs[one.id].seconds for one in left),
            "left": len(left),
            "text": forecast.line(left),
            "calibration": forecast.note,
        }
        shown = {"facts": facts.to_json(), "notes": facts.notes, "stages": rows}
        print_json({**shown, "reach": reached, "forecast": total})
        return
    announce(f"prompts: {facts.prompts_note}; batches {dict(facts.batch)}")
    names = ["id", "size", "seconds", "memory", "disk", *(["state"] if out else [])]
    print_table(["stage", *names[1:]], [[_cell(row, name) for name in names] for row in rows])
    say(f"{len(left)} stages: {forecast.line(left)}")
    for line in (*reached, *facts.notes):
        say(line)


def _cell(row: dict[str, Any], name: str) -> str:
    """A cell of the plan's table, with its unit."""
    from ..study.forecast import size

    value = row[name]
    if name in ("memory", "disk"):
        return size(value) if value else ""
    return f"{value:.1f}" if name == "seconds" else str(value)


@app.command(epilog="Example: caryatid study status runs/quick --watch")
def status(
    directory: Path = typer.Argument(help="A run directory."),
    watch: bool = typer.Option(
        False, "--watch", help="Keep showing stages, pace and remaining time until the study is finished."
    ),
    verify: bool = typer.Option(
        False, "--verify", help="Compare all files of finished stages with their checksums."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print the states as JSON."),
) -> None:
    """Show which stages are done, running, failed or damaged."""
    from ..study.status import study_status

    if watch:
        watch_run(directory)
        return
    rows = study_status(directory, verify=verify)
    if as_json:
        print_json([vars(row) for row in rows])
        return
    print_table(["stage", "state", "seconds", "detail"], [[r.id, r.state, r.seconds, r.detail] for r in rows])


def report(
    directory: Path = typer.Argument(help="A run directory."),
    show_answers: bool = typer.Option(
        False, "--show-answers", help="Do not redact answers to harmful prompts."
    ),
    draw: bool = typer.Option(True, help="Also draw the figures as files."),
    as_json: bool = typer.Option(False, "--json", help="Print the report's path as JSON."),
) -> None:
    """Rebuild the report from artifacts alone: its page, its figures as SVG and PDF, its tables for TeX."""
    from ..study.page import build_report, write_figures
    from ..study.run import open_run

    run = open_run(directory)
    path = build_report(run, show_answers=show_answers)
    if draw:
        announce("drawing figures (--no-draw leaves them out)")
    figures = write_figures(run) if draw else 0
    if as_json:
        print_json({"report": str(path), "figures": figures})
    else:
        say(str(path))
