"""`caryatid export …`: a run for other tools."""

from pathlib import Path

import typer

from . import options
from .console import print_json, say

app = typer.Typer(help="Write a run in the formats of other tools.", no_args_is_help=True)


@app.callback()
def _export() -> None:
    """Write a run in the formats of other tools."""


@app.command(
    epilog="Example: caryatid export inspect runs/quick",
    short_help="Judged answers as logs that Inspect opens.",
)
def inspect(
    directory: Path = typer.Argument(help="A run directory."),
    out: Path | None = typer.Option(None, "--out", help="Folder for the logs; default DIR/inspect."),
    show_answers: bool = typer.Option(
        False, "--show-answers", help="Do not redact answers to harmful prompts."
    ),
    as_json: bool = options.Json,
) -> None:
    """Judged answers as logs that `inspect view` opens: one an anchor, suite and attack."""
    from ..study.inspect_log import export_logs
    from ..study.run import open_run

    paths = export_logs(open_run(directory), out or directory / "inspect", show_answers=show_answers)
    if as_json:
        print_json({"logs": [str(path) for path in paths]})
    else:
        say(f"{len(paths)} logs in {out or directory / 'inspect'}")
