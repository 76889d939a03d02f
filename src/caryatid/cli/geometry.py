"""`caryatid directions …` and `caryatid geometry …`."""

from pathlib import Path

import typer

from . import options
from .console import TerminalProgress, print_json, print_table, say

directions_app = typer.Typer(help="Refusal directions: extract, select.", no_args_is_help=True)
metrics_app = typer.Typer(help="Geometry of saved directions.", no_args_is_help=True)


@metrics_app.callback()
def _group() -> None:
    pass


@directions_app.command(
    epilog="Example: caryatid directions extract embedded -o directions.safetensors",
    short_help="Difference in means at every layer and position.",
)
@options.grouped
def extract(
    model: str = options.ModelArgument,
    output: Path = typer.Option(
        ..., "-o", "--output", help="Safetensors file: `directions` [positions, layers, d]."
    ),
    prompts: int = typer.Option(128, "--prompts", min=2, help="Extraction prompts of each kind."),
    activations: Path | None = typer.Option(
        None, "--activations", help="Also write every prompt's activations to this safetensors file."
    ),
    source: str = options.Source,
    seed: int = typer.Option(0, "--seed", help="Seed of the choice of prompts."),
    *,
    given: options.ModelOptions,
    as_json: bool = options.Json,
) -> None:
    """Difference in means (arXiv 2406.11717) at every block input and post-instruction position."""
    from ..single.extract import extract_directions

    loaded = given.load(model)
    with TerminalProgress() as progress:
        facts = extract_directions(
            loaded,
            output,
            prompts=prompts,
            source=options.source_named(source),
            seed=seed,
            system=given.system,
            activations=activations,
            progress=progress,
        )
    if as_json:
        print_json(facts)
    else:
        say(f"{output}: directions {facts['shape']} (positions, layers, width)")


@directions_app.command(
    epilog="Example: caryatid directions select direction_evaluations.json --layers 18 --json",
    short_help="The best admissible direction of a table.",
)
def select(
    file: Path = typer.Argument(
        help="JSON rows: position, layer, refusal_score, steering_score, kl_div_score; for cosmic "
        "position, layer, kl_div_score, cosmic_ablated, cosmic_added."
    ),
    layers: int = typer.Option(..., "--layers", min=1, help="Layers of the model."),
    profile: str = typer.Option("published", "--profile", help="published or calibrated."),
    selector: str = typer.Option(
        "bypass", "--selector", help="bypass (lowest refusal score) or cosmic (highest sum of its cosines)."
    ),
    harmful_score: float | None = typer.Option(
        None, "--harmful-score", help="Unablated mean score, harmful."
    ),
    harmless_score: float | None = typer.Option(
        None, "--harmless-score", help="Unablated mean score, harmless."
    ),
    as_json: bool = options.Json,
) -> None:
    """Select the best admissible direction from a table of scores."""
    from ..geometry_files import select_file

    found = select_file(
        file,
        layers,
        profile,
        selector=selector,
        harmful_score=harmful_score,
        harmless_score=harmless_score,
    )._asdict()
    if as_json:
        print_json({**found, "profile": profile, "selector": selector})
    else:
        print_table(list(found), [list(found.values())])


@metrics_app.command(
    epilog="Example: caryatid geometry metrics directions.safetensors --json",
    short_help="Effective, participation and stable rank.",
)
def metrics(
    file: Path = typer.Argument(help="Safetensors (or .pt) file with matrices [rows, d] or stacks of them."),
    unit_norm: bool = typer.Option(False, "--unit-norm", help="Normalise the rows first."),
    as_json: bool = options.Json,
) -> None:
    """Effective rank, participation ratio and stable rank of a matrix or of each slice."""
    from ..geometry_files import metrics_file

    found = metrics_file(file, unit_norm=unit_norm)
    if as_json:
        print_json(found)
        return
    columns = ("effective_rank", "participation_ratio", "stable_rank")
    rows: list[list[object]] = []
    for name, result in found.get("tensors", {found.get("tensor"): found}).items():
        for one in result.get("slices", [result]):
            rows.append([name, one.get("slice"), *(one[column] for column in columns)])
    print_table(("tensor", "slice", *columns), rows)
