"""`caryatid study …` and `caryatid report`."""

from pathlib import Path

import typer

from .console import TerminalProgress, announce, print_json, print_table

app = typer.Typer(help="Plan, run and inspect studies.", no_args_is_help=True, rich_markup_mode=None)

REPORT_EXAMPLE = "Example: caryatid report runs/quick"

Preset = typer.Option(None, "--preset", help="A preset: quick, smollm2-gpu, mistral-7b.")
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
    as_json: bool = typer.Option(False, "--json", help="Print the result as JSON."),
) -> None:
    """Run a study, or resume it where it stopped."""
    from ..config import load_config
    from ..study.flow import run_study
    from ..study.summary import summary_lines

    settings = load_config(preset=preset, file=config, overrides=overrides)
    if null and not settings.nulls.redraws:
        nulls = settings.nulls.model_copy(update={"redraws": 10})
        settings = settings.model_copy(update={"nulls": nulls})
    with TerminalProgress() as progress:
        result = run_study(
            settings, out or Path("runs") / settings.name, progress=progress, announce=announce
        )
    if not result.main:
        return
    if as_json:
        facts = {"directory": str(result.directory), "report": str(result.report)}
        print_json({**facts, "executed": result.executed, "reused": result.reused, "seconds": result.seconds})
        return
    for line in summary_lines(result):
        typer.echo(line)


@app.command(epilog="Example: caryatid study plan --preset quick")
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
        help="Share of requests that an arm's last anchor may refuse, for reach.",
    ),
    as_json: bool = typer.Option(False, "--json", help="Print the plan as JSON."),
) -> None:
    """Show the stages of a study with their sizes, and which verdicts are within reach."""
    from ..artifacts import RunDirectory
    from ..config import load_config
    from ..study.reach import reach_lines
    from ..study.runner import settled_plan

    settings = load_config(preset=preset, file=config, overrides=overrides)
    settled, stages = settled_plan(settings, out)
    facts = settled.facts
    reached = reach_lines(settings, settled.prompts, refusal_rate) if settled.prompts else []
    rows = [[entry.id, entry.stage.kind, entry.stage.size(), entry.key] for entry in stages]
    if out is not None:
        states = [entry.folder(RunDirectory(out)).state() for entry in stages]
        rows = [[*row, state] for row, state in zip(rows, states, strict=True)]
    if as_json:
        names = ("id", "stage", "size", "key", "state")
        print_json(
            {
                "facts": facts.to_json(),
                "stages": [dict(zip(names, row, strict=False)) for row in rows],
                "reach": reached,
            }
        )
        return
    announce(f"prompts: {facts.prompts_note}; batches {dict(facts.batch)}")
    print_table(["stage", "kind", "size", "key", *(["state"] if out else [])], rows)
    for line in reached:
        typer.echo(line)


@app.command(epilog="Example: caryatid study status runs/quick")
def status(
    directory: Path = typer.Argument(help="A run directory."),
    as_json: bool = typer.Option(False, "--json", help="Print the states as JSON."),
) -> None:
    """Show which stages are done, running or failed."""
    from ..study.runner import study_status

    rows = study_status(directory)
    if as_json:
        print_json([vars(row) for row in rows])
        return
    print_table(["stage", "state", "seconds", "detail"], [[r.id, r.state, r.seconds, r.detail] for r in rows])


def report(
    directory: Path = typer.Argument(help="A run directory."),
    show_answers: bool = typer.Option(
        False, "--show-answers", help="Do not redact answers to harmful prompts."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print the report's path as JSON."),
) -> None:
    """Rebuild the report from artifacts alone."""
    from ..study.page import build_report
    from ..study.run import open_run

    path = build_report(open_run(directory), show_answers=show_answers)
    if as_json:
        print_json({"report": str(path)})
    else:
        typer.echo(str(path))
