"""`caryatid stage`: single stages of a study, as an executor runs them."""

from pathlib import Path

import typer

from ..errors import UsageError
from . import options
from .console import TerminalProgress, announce, print_json, say

app = typer.Typer(help="Single stages of a study.", no_args_is_help=True)


@app.command(
    name="run",
    epilog="Example: caryatid stage run runs/quick cases/seed0 --shard 1/2",
    short_help="Run stages whose needs are done, or parts of one.",
)
def run_stage(
    directory: Path = typer.Argument(help="A run directory."),
    names: list[str] = typer.Argument(
        metavar="ID…", help="Stages' ids, as `caryatid study status` shows them; run in this order."
    ),
    shard: str | None = typer.Option(
        None,
        "--shard",
        metavar="I/N",
        help="Only part I of N of one stage (attacks: whole blocks of cases); the stage itself then collects them.",
    ),
    track: list[str] = options.Track,
    as_json: bool = options.Json,
) -> None:
    """Run stages whose needs are done; other runners may work in the same directory."""
    from ..study.jobs import run_stages

    part = None if shard is None else _part(shard)
    with TerminalProgress() as progress:
        ran = run_stages(directory, names, part, progress=progress, announce=announce, track=track)
    rows = [{"stage": name, "ran": name in ran} for name in names]
    if as_json:
        print_json(rows if len(rows) > 1 else rows[0])
        return
    for row in rows:
        done = f"part {shard} done" if shard else "done"
        say(f"{row['stage']}: {done if row['ran'] else 'was done already'}")


def _part(text: str) -> tuple[int, int]:
    """`2/4` as numbers."""
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal()):
        raise UsageError(f"{text!r} is no part", where="--shard", remedy="Write I/N, such as 1/4.")
    return int(index), int(count)
