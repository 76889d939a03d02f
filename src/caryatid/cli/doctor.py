"""`caryatid doctor`: what is here, what is missing, what to do."""

from dataclasses import asdict

import typer

from . import options
from .console import print_json, print_table

EXAMPLE = "Example: caryatid doctor --json"


def doctor(
    device: str | None = options.Device,
    no_test: bool = typer.Option(False, "--no-test", help="Leave the self-test of seconds out."),
    as_json: bool = options.Json,
) -> None:
    """Look at packages, device, memory, disk, data and backbone, test them on a tiny model, and say what to do."""
    from ..single.doctor import examine, exit_code

    findings = list(examine(device, self_test=not no_test))
    code = exit_code(findings)
    if as_json:
        print_json({"exit_code": code, "findings": [asdict(one) for one in findings]})
    else:
        print_table(
            ["check", "state", "found", "what to do"],
            [[one.check, one.state, one.found, one.remedy] for one in findings],
        )
    if code:
        raise typer.Exit(code)
