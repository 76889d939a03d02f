"""`caryatid data …`: the named prompt sets."""

from typing import Any

import typer

from . import options
from .console import TerminalProgress, announce, print_json, print_table

app = typer.Typer(help="Named prompt sets: what they are and whether they are here.", no_args_is_help=True)


def _show(rows: tuple[Any, ...], as_json: bool) -> None:
    from dataclasses import asdict

    if as_json:
        print_json([asdict(row) for row in rows])
        return
    print_table(
        ["set", "rows", "role", "licence", "where", "sha256"],
        [[r.name, r.rows, r.role, r.licence, _place(r), " ".join(s[:12] for s in r.sha256)] for r in rows],
    )
    if any(row.state == "missing" for row in rows):
        announce("what is missing: `caryatid data fetch all`, or name a folder that has it in CARYATID_DATA")


def _place(row: Any) -> str:
    """Where a set was found, or what is wrong with it."""
    return str(row.where if row.state == "ok" else row.state)


@app.command("list", epilog="Example: caryatid data list")
def list_(as_json: bool = options.Json) -> None:
    """Every named set: rows, licence, checksums, where it was found."""
    from ..data.sources import list_sets

    _show(list_sets(), as_json)


@app.command(epilog="Example: caryatid data fetch harmbench xstest")
def fetch(
    names: list[str] = typer.Argument(help="Sets or groups, or `all`."), as_json: bool = options.Json
) -> None:
    """Download sets from their official addresses and check them."""
    from ..data.sources import fetch_sets

    progress = TerminalProgress()
    try:
        found = fetch_sets(names, progress=progress)
    finally:
        progress.done()
    _show(found, as_json)


@app.command(epilog="Example: caryatid data verify")
def verify(
    names: list[str] = typer.Argument(None, help="Sets or groups; default: all that are here."),
    as_json: bool = options.Json,
) -> None:
    """Check the files of sets against their checksums."""
    from ..data.sources import verify_sets

    _show(verify_sets(names or ()), as_json)
