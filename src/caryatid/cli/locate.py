"""`caryatid locate`: where one model carries refusal."""

import re
from pathlib import Path
from typing import Any

import typer

from . import options
from .console import TerminalProgress, announce, print_json, say

EXAMPLE = "Example: caryatid locate Qwen/Qwen2.5-0.5B-Instruct --out runs/locate-qwen --json"


@options.grouped
def locate(
    model: str = options.ModelArgument,
    out: Path | None = typer.Option(
        None,
        "--out",
        help="Folder of page, tables and carrier; a stopped run goes on there. Default runs/locate-NAME.",
    ),
    extraction: int = typer.Option(64, "--extraction", min=2, help="Extraction prompts of each kind."),
    selection: int = typer.Option(32, "--selection", min=2, help="Selection prompts of each kind."),
    evaluation: int = typer.Option(
        64, "--evaluation", min=2, help="Harmful prompts asked (HarmBench, XSTest unsafe), and harmless ones."
    ),
    controls: int = typer.Option(8, "--controls", min=1, help="Random subspaces beside the carrier."),
    thorough: bool = typer.Option(
        False,
        "--thorough",
        help="On a CPU, too: all positions, every candidate, as many resamples as on a GPU.",
    ),
    prompts: list[str] = typer.Option(
        [],
        "--prompts",
        metavar="FIELD=FILE",
        help="Your own prompts, such as harmbench=mine.csv; repeatable.",
    ),
    max_new_tokens: int = typer.Option(24, "--max-new-tokens", min=1, help="Token limit of answers."),
    source: str = options.Source,
    seed: int = typer.Option(0, "--seed", help="Seed of prompts, resamples and controls."),
    *,
    given: options.ModelOptions,
    as_json: bool = options.Json,
) -> None:
    """Does it refuse, where is that carried, how sure, what do removing and adding it do, and what does it cost?"""
    from ..models.check import check_loaded
    from ..report.location import headline, write_location
    from ..single.locate import locate as run
    from ..single.located import LocateSettings

    wanted: dict[str, Any] = {
        **{"source": options.source_named(source), "files": _files(prompts), "seed": seed},
        **{"extraction": extraction, "selection": selection, "evaluation": evaluation},
        **{"controls": controls, "max_new_tokens": max_new_tokens},
    }
    loaded = given.load(model)
    check_loaded(loaded, given.system)
    settings = LocateSettings.for_device("thorough" if thorough else loaded.device.type, **wanted)
    name = re.sub(r"[^\w.-]+", "_", Path(model).name) or "model"
    folder = out or Path("runs") / f"locate-{name}"
    with TerminalProgress() as progress:
        found = run(loaded, settings, system=given.system, out=folder, progress=progress)
    page = write_location(folder, found)
    if as_json:
        print_json(found.to_json())
        if found.remedy:
            announce(f"no carrier: {found.facts['reason']}. {found.remedy}")
        announce(f"page, tables and carrier: {page}")
        return
    say(headline(found))
    say(str(page))


def _files(prompts: list[str]) -> dict[str, Path]:
    from ..errors import UsageError

    pairs = [one.partition("=") for one in prompts]
    wrong = ["".join(pair) for pair in pairs if not all(pair)]
    if wrong:
        raise UsageError(
            f"{wrong[0]!r} is not FIELD=FILE", where="--prompts", remedy="Write harmbench=mine.csv."
        )
    return {name: Path(file) for name, _, file in pairs}
