"""`caryatid train ARM`: one arm and its anchors."""

from pathlib import Path

import typer

from . import options
from .console import TerminalProgress, announce, print_json, say

EXAMPLE = "Example: caryatid train r2d2 --model embedded --preset quick --out runs/r2d2"


def train(
    arm: str = typer.Argument(help="sft, refusal_sft, r2d2, r2d2_static, cat, lat, circuit_breakers or dpo."),
    model: str | None = typer.Option(
        None, "--model", "-m", help="Backbone; default: that of the preset or file."
    ),
    preset: str | None = typer.Option(
        None, "--preset", help="A preset: quick, smollm2-gpu, qwen-0.5b, qwen-1.5b, mistral-7b."
    ),
    config: Path | None = typer.Option(None, "--config", help="A YAML file instead of a preset."),
    out: Path | None = typer.Option(None, "--out", help="Run directory; default runs/ARM."),
    overrides: list[str] = typer.Option([], "--set", metavar="KEY=VALUE", help="Change one setting."),
    track: list[str] = options.Track,
    as_json: bool = options.Json,
) -> None:
    """Train one arm in a run directory; a study in the same directory goes on from there."""
    from ..config import load_config
    from ..study.flow import train_only
    from ..training.arms import arm_named

    arm_named(arm)
    named = [f"arms=[{arm}]", *([f"model.spec={model}"] if model else [])]
    settings = load_config(
        preset=preset or (None if config else "quick"), file=config, overrides=[*named, *overrides]
    )
    with TerminalProgress() as progress:
        anchors = train_only(
            settings, out or Path("runs") / arm, track=track, progress=progress, announce=announce
        )
    if not anchors:  # one of several processes that train together, not the first
        return
    if as_json:
        print_json({"arm": arm, "anchors": anchors})
    else:
        for anchor in anchors:
            say(f"{anchor['arm']} step {anchor['step']}: {anchor['folder']}")
