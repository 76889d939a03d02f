"""`caryatid attack …`: attacks on a model that the user loads, to measure its defence."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ..errors import LostError
from . import options
from .console import TerminalProgress, announce, print_json, print_table

if TYPE_CHECKING:
    from ..attacks.base import AttackResult

app = typer.Typer(help="Attack a model that you load, to measure its defence.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    pass


@app.command(
    epilog="Example: caryatid attack gcg --model embedded --behaviors behaviors.csv --steps 50 --json"
)
@options.grouped
def gcg(
    model: str = options.Model,
    behaviors: Path = typer.Option(..., "--behaviors", help="CSV with HarmBench's columns, or `prompt`."),
    targets: Path | None = typer.Option(None, "--targets", help="JSON object: behaviour id to target text."),
    steps: int = typer.Option(500, "--steps", min=0, help="GCG steps per behaviour."),
    width: int = typer.Option(512, "--width", min=1, help="Candidates per step."),
    top_k: int = typer.Option(256, "--top-k", min=1, help="Substitutions considered per position."),
    suffix_length: int = typer.Option(20, "--suffix-length", min=1, help="Tokens of the initial suffix."),
    stop_below: float | None = typer.Option(
        None, "--stop-below", help="A behaviour's search ends once its loss is below this."
    ),
    batch_size: int = typer.Option(0, "--batch-size", min=0, help="Candidates per forward; 0: chosen."),
    together: int = typer.Option(
        0, "--together", min=0, help="Behaviours that are attacked together; 0: chosen."
    ),
    seed: int = typer.Option(0, "--seed", help="Seed of the search."),
    out: Path | None = typer.Option(
        None, "--out", help="Folder for finished behaviours; the same command goes on."
    ),
    test_cases: Path | None = typer.Option(
        None, "--test-cases", help="Also write the cases as HarmBench's test_cases.json, to this file."
    ),
    *,
    given: options.ModelOptions,
    as_json: bool = options.Json,
) -> None:
    """Greedy coordinate gradient (arXiv 2307.15043) against each behaviour of a file."""
    from ..artifacts import write_json
    from ..attacks.gcg.settings import GcgSettings
    from ..attacks.goals import read_goals
    from ..attacks.run import AttackPlan, cases_json, goals_together, run_attack
    from ..attacks.saved import harmbench_json
    from ..models.batch import plan_batch_sizes

    settings = GcgSettings(steps, width, top_k, suffix_length, stop_below)
    goals = tuple(read_goals(behaviors, targets))
    loaded = given.load(model)
    batch = plan_batch_sizes(loaded, 256)
    block_size = together or goals_together(settings, str(loaded.device), batch)
    plan = AttackPlan("gcg", settings, goals, seed, batch_size or batch.gcg, block_size)
    try:
        with TerminalProgress() as progress:
            results = run_attack(loaded, loaded.chat(given.system), plan, out=out, progress=progress)
    except KeyboardInterrupt:
        if out is not None:
            raise
        raise LostError(
            "interrupted, nothing is kept", remedy="With --out DIR finished behaviours are."
        ) from None
    _say_stalled(results)
    if test_cases is not None:
        write_json(test_cases, harmbench_json(results))
    if as_json:
        print_json(cases_json(results))
    else:
        _print_results(results)


def _say_stalled(results: "Sequence[AttackResult]") -> None:
    for result in results:
        if result.stalled_steps:
            announce(
                f"{result.behavior_id}: {result.stalled_steps} of {result.steps} steps kept their suffix, no candidate "
                "came back unchanged from its text"
            )


def _print_results(results: "Sequence[AttackResult]") -> None:
    columns = ["behaviour", "loss at start", "loss", "steps", "candidates", "forward tokens", "seconds"]
    rows = [
        (
            r.behavior_id,
            f"{r.losses[0]:.3f}",
            f"{r.loss:.3f}",
            r.steps,
            r.candidates,
            r.forward_tokens,
            f"{r.seconds:.1f}",
        )
        for r in results
    ]
    print_table(columns, rows)
