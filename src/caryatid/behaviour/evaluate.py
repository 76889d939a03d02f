"""One model's behaviour on named suites: what `caryatid evaluate` does."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from caryatid.behaviour.answers import AnswerRow, Attack
from caryatid.behaviour.judges.base import Judge
from caryatid.behaviour.metrics import By, Row, metrics_rows, perplexity_rows
from caryatid.behaviour.perplexity import heldout_perplexity
from caryatid.behaviour.suites import Chunks, judge_harm, run_suite
from caryatid.data.chat import ChatExample
from caryatid.data.download import DownloadError
from caryatid.data.embedded_sets import embedded_fields, embedded_set, embedded_utility
from caryatid.data.prompts import PromptSet, Role
from caryatid.data.sources import Lookup, read_set
from caryatid.errors import InputError, UsageError
from caryatid.models.generate import Sampling
from caryatid.models.load import LoadedModel
from caryatid.models.template import ChatFormat
from caryatid.progress import NO_PROGRESS, Progress

SUITES = ("harmbench", "strongreject", "xstest_safe", "xstest_unsafe", "utility", "perplexity")
GROUPS: Mapping[str, tuple[str, ...]] = {
    "xstest": ("xstest_safe", "xstest_unsafe"),
    "all": ("harmbench", "strongreject", "xstest_safe", "xstest_unsafe", "utility"),
}
_ATTACKED = frozenset({"harmbench", "strongreject"})
# All 400 HarmBench text behaviours; a study uses the 320 of the test split only.
_PUBLISHED: Mapping[str, tuple[str, ...]] = {
    "harmbench": ("harmbench_test", "harmbench_val"),
    "strongreject": ("strongreject",),
    "xstest_safe": ("xstest_safe",),
    "xstest_unsafe": ("xstest_unsafe",),
}
Source = Literal["auto", "benchmarks", "embedded"]


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        rows: of the `behaviour` table. answers: every judged answer. sets: what was asked, by suite.
        notes: what a reader should know: where the prompts come from, what a judge's rates stand for.
    """

    rows: tuple[Row, ...]
    answers: tuple[AnswerRow, ...]
    sets: Mapping[str, PromptSet]
    notes: tuple[str, ...]

    def to_json(self, answers: bool = False) -> dict[str, Any]:
        """Plain JSON values; answers only when asked for."""
        found: dict[str, Any] = {
            "rows": [
                {name: None if isinstance(v, float) and v != v else v for name, v in row.items()}
                for row in self.rows
            ],
            "prompts": {
                name: {"n": len(one), "source": one.source, "sha256": one.sha256, "licence": one.licence}
                for name, one in self.sets.items()
            },
            "notes": list(self.notes),
        }
        return {**found, "answers": [row.to_json() for row in self.answers]} if answers else found


def expand_suites(names: Sequence[str]) -> tuple[str, ...]:
    """The suites that `names` stand for (`xstest` is both halves, `all` all but perplexity), in order, each once.

    Raises:
        UsageError: no suite of that name, or none at all.
    """
    found: list[str] = []
    for name in names:
        if name not in SUITES and name not in GROUPS:
            known = ", ".join(dict.fromkeys((*SUITES, *GROUPS)))
            raise UsageError(f"no suite named {name!r}", remedy=f"Choose from {known}.")
        found += GROUPS.get(name, (name,))
    if not found:
        raise UsageError("no suite named", remedy=f"Choose from {', '.join(SUITES)}.")
    return tuple(dict.fromkeys(found))


def _published(suite: str, lookup: Lookup) -> PromptSet:
    parts = [read_set(name, lookup) for name in _PUBLISHED[suite]]
    prompts = tuple(replace(prompt, set_name=suite) for part in parts for prompt in part)
    source = "+".join(part.source for part in parts)
    return replace(parts[0], name=suite, role=Role.EVALUATION, prompts=prompts, source=source)


def evaluation_set(suite: str, source: Source = "auto", lookup: Lookup | None = None) -> PromptSet:
    """The prompts of a suite: published ones, or the package's own.

    `auto` takes the package's own only where the published set would need a download that fails. The utility audit
    always is the package's own.

    Raises:
        DataMissingError: `benchmarks` were asked for and cannot be had, or a file that is here is damaged.
    """
    if suite == "utility":
        return embedded_set("utility", "utility", Role.EVALUATION, embedded_utility())
    if source != "embedded":
        try:
            return _published(suite, lookup or Lookup.from_environment())
        except DownloadError:
            if source == "benchmarks":
                raise
    return embedded_fields({suite: Role.EVALUATION})[suite]


@dataclass(frozen=True)
class Asking:
    """How a model is asked.

    Attributes:
        max_new_tokens: token limit of every answer. batch_size: answers per batch.
        system: the system message; None leaves it to the template.
        sampling: how answers are drawn; None: greedy. samples: answers per prompt.
    """

    max_new_tokens: int
    batch_size: int
    system: str | None = None
    sampling: Sampling | None = None
    samples: int = 1


def chosen_prompts(
    suites: Sequence[str],
    *,
    source: Source = "auto",
    lookup: Lookup | None = None,
    limit: int = 0,
    seed: int = 0,
    cases: Mapping[str, str] | None = None,
) -> dict[str, PromptSet]:
    """The prompts of each suite but perplexity.

    Args:
        suites: names or groups, see `expand_suites`. source, lookup: where prompts come from, see `evaluation_set`.
        limit: prompts per suite, spread over kinds and categories; 0 for all. seed: of that choice.
        cases: suffix by behaviour id; with it only behaviours that have a case are asked.

    Raises:
        UsageError: an unknown suite. InputError: an empty set. DataMissingError: prompts that cannot be had.
    """
    wanted = expand_suites(suites)
    return {
        suite: _choose(suite, source, lookup, limit, seed, cases) for suite in wanted if suite != "perplexity"
    }


def attack_of(suite: str, cases: Mapping[str, str] | None, attack: Attack = "fixed_source") -> Attack:
    """What a suite's prompts are sent as: `attack` where they carry suffixes, else `direct` or `none`."""
    if suite == "harmbench" and cases is not None:
        return attack
    return "direct" if suite in _ATTACKED else "none"


def evaluate(
    loaded: LoadedModel,
    suites: Sequence[str],
    *,
    judge: Judge,
    asking: Asking,
    harm_judge: Judge | None = None,
    source: Source = "auto",
    lookup: Lookup | None = None,
    limit: int = 0,
    seed: int = 0,
    cases: Mapping[str, str] | None = None,
    attack: Attack = "fixed_source",
    chat_examples: Sequence[ChatExample] = (),
    by: By | None = None,
    chunks: Callable[[str], Chunks] | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Ask a model the prompts of suites, judge its answers, and give the rows of the `behaviour` table.

    Args:
        loaded: the model. suites, source, lookup, limit, seed, cases: which prompts, see `chosen_prompts`.
        judge: a refusal judge. harm_judge: a harmfulness judge for harmful requests, if any.
        attack: how `cases` were made. chat_examples: held-out chat for the perplexity suite.
        by: also rows broken down by kind or category.
        chunks: makes, for a suite, the place where finished batches are kept.

    Raises:
        UsageError: an unknown suite, or perplexity without chat. InputError: an empty set. DataMissingError: prompts
            that cannot be had.
    """
    perplexity = "perplexity" in expand_suites(suites)
    if perplexity and not chat_examples:
        raise UsageError("perplexity needs held-out chat", remedy="Give chat examples, or leave it out.")
    chosen = chosen_prompts(suites, source=source, lookup=lookup, limit=limit, seed=seed, cases=cases)
    chat = ChatFormat(loaded.tokenizer, asking.system)
    report = progress or NO_PROGRESS
    answers: list[AnswerRow] = []
    for suite, prompts in chosen.items():
        report.start(suite, len(prompts) * asking.samples)
        answers += run_suite(
            loaded,
            chat,
            prompts.prompts,
            suite=suite,
            attack=attack_of(suite, cases, attack),
            judge=judge,
            max_new_tokens=asking.max_new_tokens,
            batch_size=asking.batch_size,
            cases=cases if suite == "harmbench" else None,
            chunks=chunks(suite) if chunks is not None else None,
            sampling=asking.sampling,
            samples=asking.samples,
            progress=report,
        )
        report.done()
    found = evaluated(answers, chosen, harm_judge, seed=seed, by=by)
    if not perplexity:
        return found
    chatted = heldout_perplexity(loaded, chat, chat_examples, batch_size=asking.batch_size)
    return replace(found, rows=(*found.rows, *perplexity_rows(chatted, "base", 0, seed, "chat")))


def evaluated(
    answers: Sequence[AnswerRow],
    sets: Mapping[str, PromptSet],
    harm_judge: Judge | None,
    *,
    seed: int = 0,
    by: By | None = None,
) -> Evaluation:
    """The evaluation of answers whose refusals are judged: harm judged, rates counted; nothing is generated."""
    judged: list[AnswerRow] = []
    rows: list[Row] = []
    for suite in sets:
        mine = [row for row in answers if row.suite == suite]
        if harm_judge is not None and suite in _ATTACKED:
            mine = judge_harm(mine, harm_judge)
        judged += mine
        for part in (None, by) if by is not None else (None,):
            rows += metrics_rows(mine, "base", 0, seed, by=part)
    return Evaluation(tuple(rows), tuple(judged), sets, _notes(sets, rows))


def _choose(
    suite: str,
    source: Source,
    lookup: Lookup | None,
    limit: int,
    seed: int,
    cases: Mapping[str, str] | None,
) -> PromptSet:
    found = evaluation_set(suite, source, lookup)
    if suite == "harmbench" and cases is not None:
        found = replace(found, prompts=tuple(prompt for prompt in found if prompt.id in cases))
    if not len(found):
        raise InputError(
            "no prompt to ask",
            where=suite,
            remedy="The cases name behaviours of another set." if cases else None,
        )
    return found.subsample(limit, seed)


def _notes(sets: Mapping[str, PromptSet], rows: Sequence[Row]) -> tuple[str, ...]:
    own = [name for name, one in sets.items() if one.source.startswith("embedded") and name != "utility"]
    notes = []
    if own:
        notes.append(f"The package's own prompts stand in for: {', '.join(own)}.")
    proxies = sorted({str(row["judge"]) for row in rows if row["proxy"]})
    if proxies:
        notes.append(f"Rates judged by {', '.join(proxies)} are proxies for human labels.")
    if not {"harmbench", "strongreject"}.isdisjoint(sets) and not set(GROUPS["xstest"]) <= set(sets):
        notes.append("Low compliance may be blanket refusal: ask --suite xstest beside it.")
    return tuple(notes)
