"""`caryatid study status --watch`: a run as it goes on."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

from .console import out

if TYPE_CHECKING:
    from rich.console import Group

    from ..study.watching import Look

EVERY = 2.0  # seconds between two looks


def watch_run(directory: Path) -> None:
    """Show a run until it is finished, or until Ctrl-C; where stdout is no terminal, one line whenever a stage ends.

    Raises:
        UsageError: not a run directory.
    """
    from rich.live import Live

    from ..study.watching import Watch

    watch = Watch(directory)
    look = watch.look()
    try:
        if out.is_terminal:
            with Live(_shown(look), console=out) as live:
                while not look.finished:
                    time.sleep(EVERY)
                    look = watch.look()
                    live.update(_shown(look))
            return
        out.print(look.line, markup=False)
        while not look.finished:
            time.sleep(EVERY)
            before, look = look, watch.look()
            if before.kinds != look.kinds:
                out.print(look.line, markup=False)
    except KeyboardInterrupt:  # the way to stop looking; the study is another process
        return


def _shown(look: "Look") -> "Group":
    """Kinds of stages with what is done of them, and the line on the whole below."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table("stage", "done", "seconds", "each", box=None, pad_edge=False)
    for kind, state in look.kinds.items():
        each = f"{state.seconds / state.done:.1f}" if state.done else ""
        style = "bold" if look.running.partition("/")[0] == kind else None
        table.add_row(kind, f"{state.done}/{state.total}", f"{state.seconds:.0f}", each, style=style)
    return Group(table, Text(look.line))
