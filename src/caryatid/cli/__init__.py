"""The command line: thin commands, no logic."""

import os
import sys

import typer

from .. import __version__
from ..errors import CaryatidError, ConfigError, user_error
from ..interrupts import heed_sigterm
from . import (
    attack,
    compare,
    data,
    demo,
    doctor,
    evaluate,
    export,
    geometry,
    judge,
    locate,
    measure,
    models,
    stage,
    study,
    training,
)
from .console import announce, speaking

# What all errors of typer's parser are. Newer versions of typer bring a click of their own, so it is looked up by name.
_ClickException: type[Exception] = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)
INTERRUPTED = 130
app = typer.Typer(
    name="caryatid",
    help="Where inside a language model refusal is carried, and how safety training moves it.",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(study.app, name="study")
app.add_typer(stage.app, name="stage")
app.add_typer(models.app, name="models")
app.add_typer(data.app, name="data")
app.add_typer(attack.app, name="attack")
app.add_typer(judge.app, name="judge")
app.add_typer(export.app, name="export")
app.add_typer(geometry.directions_app, name="directions")
app.add_typer(geometry.metrics_app, name="geometry")

# In one line of the list of commands, which is 80 columns wide; a command's own help says more.
for _command, _example, _short in (
    (study.report, study.REPORT_EXAMPLE, "Rebuild a run's report from its artifacts alone."),
    (compare.compare, compare.EXAMPLE, "Several studies on one page."),
    (training.train, training.EXAMPLE, "Train one arm, and keep its anchors."),
    (evaluate.evaluate, evaluate.EXAMPLE, "Ask a model the prompts of suites, and judge its answers."),
    (measure.intervene, measure.INTERVENE_EXAMPLE, "Ablate and add a direction: one causal table."),
    (locate.locate, locate.EXAMPLE, "Where one model carries refusal, how surely, at what cost."),
    (doctor.doctor, doctor.EXAMPLE, "What is here, what is missing, and what to do about it."),
    (demo.demo, demo.EXAMPLE, "A finished study that ships: its report and tables."),
):
    app.command(epilog=_example, short_help=_short)(_command)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"caryatid {__version__}")
        raise typer.Exit


NEXT = """\
caryatid demo                       a finished study: its report and tables, no model needed
caryatid doctor                     what this machine has, what is missing, and what to do about it
caryatid study run --preset quick   a small study here (`caryatid study plan --preset quick`: how long); all: --help"""


@app.callback()
def _root(
    context: typer.Context,
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(NEXT)


def run(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code (see `errors`). Bugs keep their traceback."""
    try:
        with speaking():
            result = app(args=arguments, standalone_mode=False, prog_name="caryatid")
        if result == INTERRUPTED:  # newer typer turns Ctrl-C into this
            raise KeyboardInterrupt
        return int(result) if isinstance(result, int) else 0
    except ConfigError as error:
        for problem in error.problems or (str(error),):
            announce(f"caryatid: {problem}")
        return error.exit_code
    except CaryatidError as error:
        announce(f"caryatid: {error}")
        return error.exit_code
    except _ClickException as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            # All of typer's errors have it; their class is found at run time, so that mypy cannot know.
            announce(error.format_message())  # type: ignore[attr-defined]
            return 2
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "caryatid"
        message = " ".join(error.format_message().split())  # type: ignore[attr-defined]
        announce(f"{command}: {message.rstrip('.')}. See {command} --help.")
        return 2
    except (KeyboardInterrupt, typer.Abort):
        announce("caryatid: interrupted. Run the same command again to go on where it stopped.")
        return INTERRUPTED
    except (OSError, MemoryError, RuntimeError) as error:
        found = user_error(error)
        if found is None:
            raise
        announce(f"caryatid: {found}")
        return found.exit_code


# Read by libraries when they are imported, which is later; a setting of the user's stays.
ENVIRONMENT = {
    "TRANSFORMERS_VERBOSITY": "error",  # its advice is about its own options
    "OPENBLAS_NUM_THREADS": "1",  # numpy's and scipy's: what they solve here is small
}
# Threads that wait for each other sleep: some 15 % slower on free cores, several times as fast on cores that others use
# (docs/performance.md).
SHARED = {"OMP_WAIT_POLICY": "PASSIVE"}
BUSY = 0.25  # processes that run or wait, per core


def _cores_are_shared() -> bool:
    """Whether others have kept the cores busy in the last minute; False where the system does not say."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return load > BUSY * (os.cpu_count() or 1)


def main() -> None:
    """Entry point of the `caryatid` command."""
    for name, value in (ENVIRONMENT | (SHARED if _cores_are_shared() else {})).items():
        os.environ.setdefault(name, value)
    heed_sigterm()
    sys.exit(run())
