"""One model's behaviour on named suites: what `caryatid evaluate` does."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from ..data.chat import ChatExample
from ..data.download import DownloadError
from ..data.embedded_sets import embedded_fields, embedded_set, embedded_utility
from ..data.prompts import PromptSet, Role
from ..data.sources import Lookup, read_set
from ..data.study_prompts import Source
from ..errors import InputError, UsageError
from ..models.load import LoadedModel
from ..models.turns import Sent
from ..progress import NO_PROGRESS, Progress
from .answers import AnswerRow, Attack
from .judges.base import Judge
from .judges.copyright import CopyrightHashes
from .judges.saved import Chunks
from .metrics import By, Row, metrics_rows, perplexity_rows
from .perplexity import heldout_perplexity
from .suites import Asked, Asking, judge_harm, run_suites

if TYPE_CHECKING:
    import pandas as pd

SUITES = ("harmbench", "strongreject", "xstest_safe", "xstest_unsafe", "utility", "perplexity")
GROUPS: Mapping[str, tuple[str, ...]] = {
    "xstest": ("xstest_safe", "xstest_unsafe"),
    "all": ("harmbench", "strongreject", "xstest_safe", "xstest_unsafe", "utility"),
}
ATTACKED = frozenset({"harmbench", "strongreject"})
"""Suites of harmful requests, whose answers a harmfulness judge reads."""

# All 400 HarmBench text behaviours; a study uses the 320 of the test split only.
_PUBLISHED: Mapping[str, tuple[str, ...]] = {
    "harmbench": ("harmbench_test", "harmbench_val"),
    "strongreject": ("strongreject",),
    "xstest_safe": ("xstest_safe",),
    "xstest_unsafe": ("xstest_unsafe",),
}


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        rows: of the `behaviour` table.
        answers: every judged answer.
        sets: what was asked, by suite.
        notes: what a reader should know: where the prompts come from, what a judge's rates stand for.
        model_notes: the same of the model; a warning when it was loaded, too.
    """

    rows: tuple[Row, ...]
    answers: tuple[AnswerRow, ...]
    sets: Mapping[str, PromptSet]
    notes: tuple[str, ...]
    model_notes: tuple[str, ...] = ()

    def to_pandas(self) -> "pd.DataFrame":
        """The rates as a data frame, with the columns of the `behaviour` table that say something here."""
        import pandas as pd

        return pd.DataFrame(list(self.rows)).dropna(axis="columns", how="all")

    def __repr__(self) -> str:
        """What was asked; answers, which may be harmful, only on request."""
        asked = ", ".join(f"{name} {len(one)}" for name, one in self.sets.items())
        return f"Evaluation({asked}; {len(self.rows)} rates, {len(self.answers)} answers)"

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
            "notes": [*self.notes, *self.model_notes],
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
class Wanted:
    """Which prompts of which suites are asked, and how they are counted.

    Attributes:
        suites: names or groups, see `expand_suites`. source, lookup: where prompts come from, see `evaluation_set`.
        limit: prompts per suite, spread over kinds and categories; 0 for all. seed: of that choice.
        cases: what is sent by behaviour id; only behaviours with one are asked. attack: how they were made.
        chat_examples: held-out chat for the perplexity suite. by: also rows broken down by kind or category.
    """

    suites: tuple[str, ...]
    source: Source = "auto"
    lookup: Lookup | None = None
    limit: int = 0
    seed: int = 0
    cases: Mapping[str, Sent] | None = None
    attack: Attack = "fixed_source"
    chat_examples: tuple[ChatExample, ...] = ()
    by: By | None = None

    def prompts(self) -> dict[str, PromptSet]:
        """The prompts of each suite but perplexity.

        Raises:
            UsageError: an unknown suite. InputError: an empty set. DataMissingError: prompts that cannot be had.
        """
        return {suite: self._chosen(suite) for suite in expand_suites(self.suites) if suite != "perplexity"}

    def _chosen(self, suite: str) -> PromptSet:
        found = evaluation_set(suite, self.source, self.lookup)
        cases = self.cases_of(suite)
        if cases is not None:
            found = replace(found, prompts=tuple(prompt for prompt in found if prompt.id in cases))
        if not len(found):
            raise InputError(
                "no prompt to ask",
                where=suite,
                remedy="The cases name behaviours of another set." if self.cases else None,
            )
        return found.subsample(self.limit, self.seed)

    def cases_of(self, suite: str) -> Mapping[str, Sent] | None:
        """What a suite's prompts are sent as; None for suites that are sent as they are."""
        return self.cases if suite == "harmbench" else None

    def attack_of(self, suite: str) -> Attack:
        """What a suite's prompts are sent as: `attack` where they have cases, else `direct` or `none`."""
        if self.cases_of(suite) is not None:
            return self.attack
        return "direct" if suite in ATTACKED else "none"


class Judges(NamedTuple):
    """Who judges: refusals, and harm of answers to harmful requests if anyone does.

    `hashes` is the rule for copyright behaviours, whose harm is unscored without it.
    """

    refusal: Judge
    harm: Judge | None = None
    hashes: CopyrightHashes | None = None


def evaluate(
    loaded: LoadedModel,
    wanted: Wanted,
    asking: Asking,
    judges: Judges,
    *,
    chunks: Callable[[str], Chunks] | None = None,
    progress: Progress = NO_PROGRESS,
) -> Evaluation:
    """Ask a model the prompts of suites, judge its answers, and give the rows of the `behaviour` table.

    Args:
        chunks: makes, for a suite, the place where finished batches are kept.

    Raises:
        UsageError: an unknown suite, or perplexity without chat. InputError: an empty set. DataMissingError: prompts
            that cannot be had.
    """
    perplexity = "perplexity" in expand_suites(wanted.suites)
    if perplexity and not wanted.chat_examples:
        raise UsageError("perplexity needs held-out chat", remedy="Give chat examples, or leave it out.")
    chosen = wanted.prompts()
    answers: list[AnswerRow] = []
    for suite, prompts in chosen.items():
        progress.start(suite, len(prompts) * asking.samples)
        answers += run_suites(
            loaded,
            [Asked(suite, wanted.attack_of(suite), prompts.prompts, wanted.cases_of(suite))],
            asking,
            judge=judges.refusal,
            chunks=chunks(suite) if chunks is not None else None,
            progress=progress,
        )
        progress.done()
    found = evaluated(answers, chosen, judges, seed=wanted.seed, by=wanted.by, chunks=chunks)
    found = replace(found, model_notes=loaded.notes)
    if not perplexity:
        return found
    chatted = heldout_perplexity(
        loaded, loaded.chat(asking.system), wanted.chat_examples, batch_size=asking.batch_size
    )
    return replace(found, rows=(*found.rows, *perplexity_rows(chatted, "base", 0, wanted.seed, "chat")))


def evaluated(
    answers: Sequence[AnswerRow],
    sets: Mapping[str, PromptSet],
    judges: Judges,
    *,
    seed: int = 0,
    by: By | None = None,
    chunks: Callable[[str], Chunks] | None = None,
) -> Evaluation:
    """The evaluation of answers whose refusals are judged: harm judged, rates counted; nothing is generated.

    Args:
        chunks: makes, for `harm-<suite>`, the place where finished batches of verdicts are kept.
    """
    judged: list[AnswerRow] = []
    rows: list[Row] = []
    for suite in sets:
        mine = [row for row in answers if row.suite == suite]
        if judges.harm is not None and suite in ATTACKED:
            kept = chunks(f"harm-{suite}") if chunks is not None else None
            mine = judge_harm(mine, judges.harm, hashes=judges.hashes, chunks=kept)
        judged += mine
        for part in (None, by) if by is not None else (None,):
            rows += metrics_rows(mine, "base", 0, seed, by=part)
    return Evaluation(tuple(rows), tuple(judged), sets, _notes(sets, rows))


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
