"""`caryatid attack …`: attacks on a model that the user loads, to measure its defence; a command each."""

import re
from collections.abc import Callable, Sequence
from dataclasses import field, fields, make_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import typer

from ..attacks.base import Attack, AttackResult
from ..attacks.builtin import attack_named
from ..errors import LostError, UsageError
from ..settings import Settings
from . import options
from .console import TerminalProgress, announce, print_json, print_table

_HELP = {
    "gcg": "Greedy coordinate gradient (arXiv 2307.15043) against each behaviour of a file.",
    "autodan": "AutoDAN's genetic search over frames of the request (arXiv 2310.04451), with synonyms as mutator.",
    "prefill": "The answer begins with the target; what is sent is more than a text.",
    "templates": "The request in each of some frames; the one with the lowest target loss is kept.",
    "random_search": "Random search over a suffix (arXiv 2404.02151).",
    "embedding": "Descent on a suffix's embeddings (arXiv 2402.09063), a bound from above; what is sent is no text.",
    "best_of_n": "Garbled requests with drawn answers (arXiv 2412.03556), until the refusal rules find one answered.",
}
app = typer.Typer(help="Attack a model that you load, to measure its defence.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    pass


def _option(name: str, hint: Any, default: Any, about: dict[str, Any]) -> tuple[str, Any, Any]:
    """A setting as a field of a group of options: `grouped` makes an option of it."""
    if get_origin(hint) is Literal or any(get_origin(one) is Literal for one in get_args(hint)):
        literals = [
            one for kind in (hint, *get_args(hint)) if get_origin(kind) is Literal for one in get_args(kind)
        ]
        about = {**about, "description": f"{about['description']} One of {', '.join(literals)}."}
        hint = str | None if type(None) in get_args(hint) else str
    elif any(get_origin(one) is tuple for one in get_args(hint)):
        hint = int  # a range can be given in a configuration
    least = about["gt"] + 1 if "gt" in about else about.get("ge")
    limits = {"min": least} if least is not None and hint in (int, int | None) else {}
    flag = f"--{name.replace('_', '-')}"
    if hint in (bool, bool | None):
        flag = f"{flag}/--no-{flag[2:]}"
    return name, hint, field(default=typer.Option(default, flag, help=about["description"], **limits))


def _options_of(settings: type[Settings]) -> type:
    """A group of options, one a setting."""
    hints = get_type_hints(settings)
    listed = [_option(one.name, hints[one.name], one.default, dict(one.metadata)) for one in fields(settings)]  # type: ignore[arg-type]  # every subclass is a dataclass
    return make_dataclass(f"{settings.__name__}Options", listed)


def _command(attack: Attack) -> Callable[..., None]:
    """The command of one attack: the options that all have, and its own settings."""
    chosen_type: Any = _options_of(attack.settings)

    def command(
        model: str = options.Model,
        behaviors: Path = typer.Option(..., "--behaviors", help="CSV with HarmBench's columns, or `prompt`."),
        targets: Path | None = typer.Option(
            None, "--targets", help="JSON object: behaviour id to target text."
        ),
        *,
        chosen: chosen_type,
        batch_size: int = typer.Option(0, "--batch-size", min=0, help="Rows per forward; 0: chosen."),
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
        given: options.ModelOptions,
        as_json: bool = options.Json,
    ) -> None:
        from ..artifacts import write_json
        from ..attacks.goals import read_goals
        from ..attacks.run import AttackPlan, cases_json, goals_together, run_attack
        from ..attacks.saved import harmbench_json
        from ..behaviour.answering import answered_by
        from ..behaviour.judges.registry import open_refusal_judge
        from ..models.batch import plan_batch_sizes

        settings = _settings(attack, chosen)
        goals = tuple(read_goals(behaviors, targets))
        loaded = given.load(model)
        batch = plan_batch_sizes(loaded, 256)
        block_size = together or goals_together(settings, str(loaded.device), batch)
        plan = AttackPlan(attack.name, settings, goals, seed, batch_size or batch.gcg, block_size)
        try:
            with TerminalProgress() as progress:
                results = run_attack(
                    loaded,
                    loaded.chat(given.system),
                    plan,
                    out=out,
                    progress=progress,
                    answered=answered_by(open_refusal_judge()),
                )
        except KeyboardInterrupt:
            if out is not None:
                raise
            raise LostError(
                "interrupted, nothing is kept", remedy="With --out DIR finished behaviours are."
            ) from None
        _say_stalled(results)
        if as_json:
            print_json(cases_json(results))
        else:
            _print_results(results)
        if test_cases is not None:
            write_json(test_cases, harmbench_json(results))

    return command


def _settings(attack: Attack, chosen: Any) -> Settings:
    """The attack's settings from its options.

    Raises:
        UsageError: a value that they do not take.
    """
    try:
        return attack.settings(**vars(chosen))
    except ValueError as error:
        raise UsageError(str(error), where=f"attack {attack.name}", remedy="See --help.") from error


def _say_stalled(results: Sequence[AttackResult]) -> None:
    for result in results:
        if result.stalled_steps:
            announce(
                f"{result.behavior_id}: {result.stalled_steps} of {result.steps} steps kept their suffix, no candidate "
                "came back unchanged from its text"
            )


def _print_results(results: Sequence[AttackResult]) -> None:
    from ..models.turns import Turn

    columns = [
        "behaviour",
        "sent as",
        "loss at start",
        "loss",
        "steps",
        "candidates",
        "forward tokens",
        "seconds",
    ]
    rows = [
        (
            r.behavior_id,
            Turn.of(r.sent).form,
            f"{r.losses[0]:.3f}" if r.losses else "–",
            f"{r.loss:.3f}" if r.loss == r.loss else "–",
            r.steps,
            r.candidates,
            r.forward_tokens,
            f"{r.seconds:.1f}",
        )
        for r in results
    ]
    print_table(columns, rows)


for _name in _HELP:
    app.command(
        _name,
        help=_HELP[_name],
        short_help=re.split(r"[;(]", _HELP[_name])[0].strip(),
        epilog=f"Example: caryatid attack {_name} --model embedded --behaviors behaviors.csv --json",
    )(options.grouped(_command(attack_named(_name))))
