"""`caryatid compare`."""

from pathlib import Path

import typer

from . import options
from .console import print_json, say

EXAMPLE = "Example: caryatid compare runs/seed0 runs/seed1 --out runs/compared"


def compare(
    directories: list[Path] = typer.Argument(help="Run directories of finished studies, two or more."),
    out: Path = typer.Option(..., "--out", help="Folder for the page and the joined tables."),
    as_json: bool = options.Json,
) -> None:
    """Several studies (seeds, backbones, arms) on one page, and their tables joined; verdicts are never pooled."""
    from ..report.comparison import agreement, opened, write_comparison
    from ..report.story import stories

    runs = opened(directories)
    page = write_comparison(out, runs)
    rows = agreement([(run, story) for run in runs for story in stories(run.tables)])
    if as_json:
        print_json({"page": str(page), "runs": [run.name for run in runs], "agreement": rows})
        return
    for row in rows:
        say(f"{row['arm']}: {row['label']}, {row['count']} of {row['of']}")
    say(str(page))
