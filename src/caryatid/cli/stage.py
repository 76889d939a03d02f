"""`caryatid stage`: single stages of a study, as an executor runs them."""

from pathlib import Path

import typer

from . import options
from .console import TerminalProgress, announce, print_json, say

app = typer.Typer(help="Single stages of a study.", no_args_is_help=True)


@app.command(name="run", epilog="Example: caryatid stage run runs/quick answers/base@0/seed0")
def run_stage(
    directory: Path = typer.Argument(help="A run directory."),
    name: str = typer.Argument(metavar="ID", help="A stage's id, as `caryatid study status` shows it."),
    as_json: bool = options.Json,
) -> None:
    """Run one stage whose needs are done; other runners may work in the same directory."""
    from ..study.runner import run_one

    with TerminalProgress() as progress:
        ran = run_one(directory, name, progress, announce)
    if as_json:
        print_json({"stage": name, "ran": ran})
    else:
        say(f"{name}: {'done' if ran else 'was done already'}")
