"""`caryatid intervene`: one model and one carrier, outside a study."""

from pathlib import Path

import typer

from . import options
from .console import TerminalProgress, announce, print_json, print_rows

INTERVENE_EXAMPLE = (
    "Example: caryatid intervene embedded --carrier directions.safetensors --rank 1 --rank 3 --json"
)


@options.grouped
def intervene(
    model: str = options.ModelArgument,
    carrier: Path = typer.Option(
        ...,
        "--carrier",
        help="Safetensors with `direction`, of `directions extract`, or of a study's anchor.",
    ),
    layer: int | None = typer.Option(
        None,
        "--layer",
        help="Layer at whose input the direction was taken; default: the file's own, or chosen by scores.",
    ),
    ranks: list[int] = typer.Option([1], "--rank", help="Ranks ablated; may be repeated."),
    alphas: list[float] = typer.Option([1.0], "--alpha", help="Added, in units of ‖r‖; may be repeated."),
    prompts: int = typer.Option(32, "--prompts", min=2, help="Prompts of each kind."),
    draws: int = typer.Option(
        8,
        "--draws",
        min=1,
        help="Random controls, matched on the benign activations they hold (read-out `benign_energy`).",
    ),
    generated_controls: int = typer.Option(
        0, "--generated-controls", min=0, help="Random controls that answer too, for coupling by answers."
    ),
    max_new_tokens: int = typer.Option(64, "--max-new-tokens", min=1, help="Token limit of answers."),
    source: str = options.Source,
    seed: int = typer.Option(0, "--seed", help="Seed of prompts and controls."),
    *,
    given: options.ModelOptions,
    as_json: bool = options.Json,
) -> None:
    """One causal table: ablate and add a direction at run time, beside random controls. Nothing is written."""
    from ..single.carrier_file import read_carrier
    from ..single.intervene import InterveneSettings, intervene_once

    settings = InterveneSettings(
        layer=layer,
        ranks=tuple(dict.fromkeys(ranks)),
        prompts=prompts,
        alphas=tuple(dict.fromkeys(alphas)),
        draws=draws,
        generated_controls=generated_controls,
        max_new_tokens=max_new_tokens,
        source=options.source_named(source),
        seed=seed,
    )
    loaded = given.load(model)
    with TerminalProgress() as progress:
        found = intervene_once(loaded, read_carrier(carrier, loaded), settings, given.system, progress)
    admissible = found.choice.admissible if found.choice else None
    if admissible is not None:
        words = "admissible" if admissible else "no layer is admissible, the best of the rest"
        announce(f"layer {found.layer} chosen (calibrated profile: {words}); --layer names another")
    if as_json:
        print_json({"layer": found.layer, "admissible": admissible, "rows": found.rows})
        return
    columns = ("intervention", "rank", "alpha", "control", "draw", "read_out", "value", "lo", "hi", "n")
    print_rows(columns, found.rows)
