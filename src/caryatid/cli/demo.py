"""`caryatid demo`: a finished study that ships with the package."""

import os
import sys
from pathlib import Path

import typer

from . import options
from .console import announce, print_json, say

EXAMPLE = "Example: caryatid demo --out runs/demo"
SHIPPED = "nothing was run here, and answers to harmful prompts are blanked"


def demo(
    out: Path = typer.Option(Path("runs/demo"), "--out", help="Folder to copy the study to."),
    no_open: bool = typer.Option(False, "--no-open", help="Do not open the report in a browser."),
    as_json: bool = options.Json,
) -> None:
    """Copy a finished study out of the package, open its report, and say what to try next; no model, no network."""
    import webbrowser

    from ..study.demo import headline, next_steps, unpack

    copied = unpack(out)
    lines = list(headline(copied))
    steps = next_steps(copied)
    if as_json:
        paths = {"directory": str(copied.directory), "report": str(copied.report)}
        print_json({**paths, "title": copied.title, "headline": lines[1:], "next": steps})
    else:
        about = f"A finished study, copied from the package to {copied.directory}; {SHIPPED}."
        say("\n".join([about, *lines, f"report: {copied.report}", "", "Try next:", *steps]))
    if not no_open and _has_display() and not webbrowser.open(copied.report.resolve().as_uri()):
        announce(f"no browser could be opened; the report is {copied.report}")


def _has_display() -> bool:
    """Whether a browser has a screen: always but on Linux and the BSDs, where the environment says so."""
    return sys.platform in ("darwin", "win32") or bool(
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )
