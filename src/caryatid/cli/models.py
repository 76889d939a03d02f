"""`caryatid models …`: what a model is, and the embedded backbone."""

import typer

from . import options
from .console import print_json, print_table, say

app = typer.Typer(help="Explain models; get the embedded backbone.", no_args_is_help=True)


@app.command(
    epilog="Example: caryatid models check embedded",
    short_help="What a model is to caryatid, or why it cannot be used.",
)
@options.grouped
def check(
    model: str = options.ModelArgument,
    *,
    given: options.ModelOptions,
    trust_remote_code: bool = options.TrustRemoteCode,
    as_json: bool = options.Json,
) -> None:
    """Explain a model as caryatid sees it, or say why it cannot be used and what to do."""
    from dataclasses import asdict

    from ..models.check import check_loaded

    report = asdict(check_loaded(given.load(model, trust_remote_code), given.system))
    if as_json:
        print_json(report)
    else:
        print_table(["fact", "value"], list(report.items()))


@app.command(
    epilog="Example: caryatid models fetch embedded",
    short_help="Get a model into the cache, and convert the embedded one.",
)
def fetch(
    name: str = typer.Argument(help="`embedded`, `embedded-refusing`, or a hub id."),
    revision: str | None = options.Revision,
    as_json: bool = options.Json,
) -> None:
    """Get a model into the cache; the embedded one is converted to safetensors once, its checksum verified."""
    from ..models.resolve import resolve

    found = resolve(name, revision=revision)
    if as_json:
        print_json({"model": name, "folder": str(found.folder), "identity": found.identity})
    else:
        say(f"{name}: {found.folder}")
