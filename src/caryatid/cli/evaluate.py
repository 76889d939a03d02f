"""`caryatid evaluate`: one model's behaviour, outside a study."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import typer

from . import options
from .console import TerminalProgress, announce, print_json, print_rows

if TYPE_CHECKING:
    from ..models.turns import Sent

EXAMPLE = "Example: caryatid evaluate embedded --suite xstest --suite utility --limit 16 --json"
ROW = ("suite", "attack", "group", "metric", "value", "n", "lo", "hi", "judge")


# Long because each option is a parameter; two commands' worth of helpers would hold the same list twice.
@options.grouped
def evaluate(
    model: str = options.ModelArgument,
    suites: list[str] = typer.Option(
        ..., "--suite", help="harmbench, strongreject, xstest, utility, all (of these), or perplexity."
    ),
    chat: Path | None = typer.Option(None, "--chat", help="Held-out chat (JSONL) for the perplexity suite."),
    cases: Path | None = typer.Option(
        None,
        "--cases",
        help="Test cases to send as fixed-source attack: of a study, of `attack … --json`, or HarmBench's JSON.",
    ),
    limit: int = typer.Option(0, "--limit", min=0, help="Prompts per suite; 0: all."),
    max_new_tokens: int = typer.Option(256, "--max-new-tokens", min=1, help="Token limit of answers."),
    samples: int = typer.Option(1, "--samples", min=1, help="Answers per prompt; more than 1 are drawn."),
    temperature: float = typer.Option(
        0.0, "--temperature", min=0.0, help="Of drawn answers; 0: greedy, or 1 with --samples."
    ),
    top_p: float = typer.Option(1.0, "--top-p", help="Share of probability that answers are drawn from."),
    source: str = options.Source,
    batch_size: int = typer.Option(0, "--batch-size", min=0, help="Answers per batch; 0: chosen."),
    seed: int = typer.Option(0, "--seed", help="Seed of the choice of prompts and of drawn answers."),
    by: str | None = typer.Option(None, "--by", help="Also rates by `kind` (XSTest's types) or `category`."),
    out: Path | None = typer.Option(
        None, "--out", help="Folder for answers (JSONL, parquet) and rates; a stopped run goes on from there."
    ),
    export_prompts: Path | None = typer.Option(
        None, "--export-prompts", help="Write the prompts for another engine as JSONL, and stop."
    ),
    answers: Path | None = typer.Option(
        None,
        "--answers",
        help="Judge the answers in a file: another engine's (JSONL: id, text), or results of HarmBench or "
        "AdversariaLLM (JSON, or a folder of run.json).",
    ),
    *,
    given: options.ModelOptions,
    judge: str = options.HarmJudge,
    judging: options.JudgeOptions,
    show_answers: bool = typer.Option(False, "--show-answers", help="Put the answers into the JSON."),
    as_json: bool = options.Json,
) -> None:
    """Ask a model the prompts of suites and judge its answers (rates of offline judges are proxies)."""
    from ..behaviour.evaluate import Judges, Wanted
    from ..behaviour.judges.registry import open_copyright_hashes, open_harm_judge, open_refusal_judge
    from ..behaviour.suites import Asking
    from ..data.chat import load_chat_jsonl
    from ..models.generate import Sampling

    _check(by, suites, chat is not None and answers is None and export_prompts is None)
    drawn = temperature > 0 or samples > 1
    sampling = Sampling(temperature or 1.0, top_p, seed) if drawn else None
    asking = Asking(max_new_tokens, batch_size, given.system, sampling, samples)
    wanted = Wanted(
        tuple(suites),
        options.source_named(source),
        limit=limit,
        seed=seed,
        cases=_texts(cases) if cases is not None else None,
        chat_examples=tuple(load_chat_jsonl(chat)) if chat is not None else (),
        by=cast(Any, by),
    )
    if export_prompts is not None:
        _export(model, wanted, asking, export_prompts, given)
        return
    spec = judging.spec(judge, given.dtype, given.device)
    judges = Judges(open_refusal_judge(), open_harm_judge(spec), open_copyright_hashes(spec))
    if answers is not None:
        found = _judged(answers, wanted, samples, judges, out)
    else:
        found = _asked(model, wanted, asking, judges, out, given)
    if judges.harm is not None and judges.harm.usage is not None:
        announce(judges.harm.usage)
    if out is not None:
        _write(out, found)
    _show(found, as_json, show_answers)


def _texts(cases: Path) -> "dict[str, Sent]":
    """What to send for each behaviour; of several the first."""
    from ..attacks.saved import read_sent_texts

    found = read_sent_texts(cases)
    further = sum(len(texts) - 1 for texts in found.values())
    if further:
        announce(f"{cases}: {further} further texts are not sent; of each behaviour the first one is")
    return {name: texts[0] for name, texts in found.items()}


def _check(by: str | None, suites: Sequence[str], perplexity: bool) -> None:
    from ..errors import UsageError

    if by not in (None, "kind", "category"):
        raise UsageError(f"cannot break down by {by!r}", where="--by", remedy="Use kind or category.")
    if "perplexity" in suites and not perplexity:
        raise UsageError(
            "perplexity needs held-out chat and the model itself",
            where="--suite",
            remedy="Name a file with --chat and let caryatid run the model, or leave it out.",
        )


def _asked(
    model: str, wanted: Any, asking: Any, judges: Any, out: Path | None, given: options.ModelOptions
) -> Any:
    from dataclasses import asdict, replace

    from ..artifacts import Chunks, content_key
    from ..behaviour.evaluate import evaluate as run
    from ..models.batch import plan_batch_sizes

    loaded = given.load(model)
    planned = plan_batch_sizes(loaded, 256 + asking.max_new_tokens).generate
    asking = replace(asking, batch_size=asking.batch_size or planned)
    which = {name: getattr(wanted, name) for name in ("source", "limit", "seed")}
    cases = wanted.cases and {
        name: sent if isinstance(sent, str) else sent.to_json() for name, sent in wanted.cases.items()
    }
    key = content_key(
        {
            "model": loaded.identity,
            "dtype": str(loaded.dtype),
            "asking": asdict(asking),
            **which,
            "cases": cases,
        }
    )
    chunks = (lambda suite: Chunks(out / "partial" / key / suite)) if out is not None else None
    with TerminalProgress() as progress:
        return run(loaded, wanted, asking, judges, chunks=chunks, progress=progress)


def _judged(file: Path, wanted: Any, samples: int, judges: Any, out: Path | None) -> Any:
    from ..artifacts import Chunks
    from ..behaviour.evaluate import evaluated
    from ..behaviour.files import import_answers
    from ..behaviour.results import result_answers
    from ..behaviour.suites import rejudge

    sets = wanted.prompts()
    prompts = {suite: one.prompts for suite, one in sets.items()}
    attacks = {suite: wanted.attack_of(suite) for suite in sets}
    if not file.is_dir() and file.suffix != ".json":
        rows = import_answers(file, prompts, attacks, cases=wanted.cases, samples=samples)
    else:
        rows = result_answers(file, prompts, wanted.attack)
        asked = sum(len(one) for one in prompts.values())
        announce(f"{file}: answers to {len({(row.suite, row.prompt_id) for row in rows})} of {asked} prompts")
    chunks = (lambda suite: Chunks(out / "partial" / "answers" / suite)) if out is not None else None
    found = rejudge(rows, judges.refusal)
    return evaluated(found, sets, judges, seed=wanted.seed, by=wanted.by, chunks=chunks)


def _export(model: str, wanted: Any, asking: Any, path: Path, given: options.ModelOptions) -> None:
    from ..behaviour.files import export_prompts
    from ..models.load import load_tokenizer
    from ..models.template import ChatFormat

    chat = ChatFormat(load_tokenizer(model, revision=given.revision), given.system, given.chat(), model)
    prompts = {suite: one.prompts for suite, one in wanted.prompts().items()}
    count = export_prompts(path, prompts, chat, cases=wanted.cases, samples=asking.samples)
    announce(f"{count} prompts written to {path}")


def _write(out: Path, found: Any) -> None:
    from ..behaviour.files import write_answers
    from ..report.tables import write_table
    from ..study.tables.behaviour import TABLE

    write_answers(out, found.answers)
    write_table(out, TABLE.name, TABLE.columns, found.rows)
    announce(f"answers and rates written to {out}")


def _show(found: Any, as_json: bool, show_answers: bool) -> None:
    if as_json:
        print_json(found.to_json(answers=show_answers))
        return
    for note in found.notes:
        announce(note)
    print_rows(ROW, found.rows)
