"""Suites: prompts are sent, answers are judged; saved answers can be judged again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

from caryatid.behaviour.answers import AnswerRow, Attack
from caryatid.behaviour.degenerate import is_degenerate
from caryatid.behaviour.judges.base import HARMFUL, HARMLESS, Exchange, Judge
from caryatid.behaviour.metrics import metrics_rows, perplexity_rows
from caryatid.behaviour.utility import check_satisfied
from caryatid.data.prompts import Prompt
from caryatid.errors import InputError, UsageError
from caryatid.models.batch import length_sorted_batches, with_backoff
from caryatid.models.generate import Sampling, generate
from caryatid.models.load import LoadedModel
from caryatid.models.residual import Intervention
from caryatid.models.template import ChatFormat
from caryatid.progress import NO_PROGRESS, Progress

__all__ = [
    "AnswerRow",
    "Asked",
    "Chunks",
    "judge_harm",
    "metrics_rows",
    "perplexity_rows",
    "rejudge",
    "run_suite",
    "run_suites",
    "user_text",
]

COPYRIGHT = "copyright"
"""HarmBench's kind that a harmfulness judge cannot score: harm there is overlap of hashes."""


class Chunks(Protocol):
    """Where finished batches of answers are kept, so that generation resumes at the first missing one."""

    def load(self) -> list[Any]: ...

    def append(self, index: int, value: object) -> None: ...


class _Answer(NamedTuple):
    text: str
    n_tokens: int
    ended: bool


def user_text(prompt: Prompt, suffix: str | None = None) -> str:
    """What is sent: the prompt with its context, and one space and the suffix where there is one."""
    return prompt.user_text if suffix is None else f"{prompt.user_text} {suffix}"


def _sent(prompts: Sequence[Prompt], cases: Mapping[str, str] | None) -> list[str]:
    if cases is None:
        return [user_text(prompt) for prompt in prompts]
    missing = [prompt.id for prompt in prompts if prompt.id not in cases]
    if missing:
        raise InputError(
            f"no case for {len(missing)} of {len(prompts)} prompts, first {missing[0]!r}",
            where="attack cases",
            remedy="Attack these behaviours too, or ask only those that have a case.",
        )
    return [user_text(prompt, cases[prompt.id]) for prompt in prompts]


def _stored(chunk: Any, ids: Sequence[str]) -> list[_Answer]:
    if [row.get("prompt_id") for row in chunk] != list(ids):
        raise InputError(
            "saved answers belong to other prompts or another batch shape",
            where="answers",
            remedy="Remove the unfinished stage and run again.",
        )
    return [_Answer(row["text"], row["n_tokens"], row["ended"]) for row in chunk]


def _answer(
    loaded: LoadedModel,
    chat: ChatFormat,
    sent: Sequence[str],
    ids: Sequence[str],
    *,
    max_new_tokens: int,
    batch_size: int,
    interventions: Sequence[Intervention],
    sampling: Sampling | None,
    chunks: Chunks | None,
    progress: Progress,
) -> list[_Answer]:
    """Answers in the order of `sent`; a chunk is one batch, so that resuming changes neither shapes nor draws."""
    answers: dict[int, _Answer] = {}
    done = chunks.load() if chunks is not None else []
    lengths = [len(row) for row in chat.ids_many(sent)]
    for index, batch in enumerate(length_sorted_batches(lengths, batch_size)):
        named = [ids[row] for row in batch]
        if index < len(done):
            found = _stored(done[index], named)
        else:
            texts = [sent[row] for row in batch]
            drawn = sampling and replace(sampling, seed=sampling.seed * 1_000_003 + index)

            def attempt(size: int, texts: list[str] = texts, drawn: Sampling | None = drawn) -> list[_Answer]:
                made = generate(
                    loaded,
                    chat,
                    texts,
                    max_new_tokens=max_new_tokens,
                    batch_size=size,
                    interventions=interventions,
                    sampling=drawn,
                )
                return [_Answer(one.text, one.n_tokens, one.ended) for one in made]

            found = with_backoff(attempt, len(batch)).value
            if chunks is not None:
                rows = zip(named, found, strict=True)
                chunks.append(index, [{"prompt_id": name, **one._asdict()} for name, one in rows])
        answers.update(zip(batch, found, strict=True))
        progress.advance(len(batch))
    return [answers[row] for row in range(len(sent))]


@dataclass(frozen=True)
class Asked:
    """Prompts of one suite, and what they are sent as.

    Attributes:
        suite: name for the tables.
        attack: `none` for suites of no attack, `direct` for harmful requests as they are, else how `cases` were made.
        cases: suffix by prompt id; the text sent is the behaviour, one space, the suffix.
    """

    suite: str
    attack: Attack
    prompts: Sequence[Prompt]
    cases: Mapping[str, str] | None = None


def run_suite(
    loaded: LoadedModel,
    chat: ChatFormat,
    prompts: Sequence[Prompt],
    *,
    suite: str,
    attack: Attack,
    judge: Judge,
    max_new_tokens: int,
    batch_size: int,
    cases: Mapping[str, str] | None = None,
    chunks: Chunks | None = None,
    interventions: Sequence[Intervention] = (),
    sampling: Sampling | None = None,
    samples: int = 1,
    progress: Progress | None = None,
) -> list[AnswerRow]:
    """Ask every prompt of one suite and judge the answers; see `Asked` and `run_suites`."""
    return run_suites(
        loaded,
        chat,
        [Asked(suite, attack, prompts, cases)],
        judge=judge,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        chunks=chunks,
        interventions=interventions,
        sampling=sampling,
        samples=samples,
        progress=progress,
    )


def run_suites(
    loaded: LoadedModel,
    chat: ChatFormat,
    asked: Sequence[Asked],
    *,
    judge: Judge,
    max_new_tokens: int,
    batch_size: int,
    chunks: Chunks | None = None,
    interventions: Sequence[Intervention] = (),
    sampling: Sampling | None = None,
    samples: int = 1,
    progress: Progress | None = None,
) -> list[AnswerRow]:
    """Ask the prompts of several suites, sorted by length into batches that suites share, and judge the answers.

    Args:
        asked: rows come back in its order and that of its prompts, the samples of one prompt together.
        judge: a refusal judge.
        chunks: finished batches are kept there and not generated again.
        interventions: with one row, acting on all prompts.
        sampling: how answers are drawn; None: greedy. samples: answers per prompt, more than one only when drawn.
        progress: advanced by one per answer.

    Raises:
        UsageError: several greedy answers per prompt. InputError: a prompt without a case, interventions that do not
            fit, or saved answers of other prompts.
        MemoryExhaustedError: out of memory also at batch size 1.
    """
    if samples > 1 and sampling is None:
        raise UsageError(
            "several greedy answers to one prompt are the same answer",
            where="samples",
            remedy="Give a temperature.",
        )
    rows = [(one, prompt, number) for one in asked for prompt in one.prompts for number in range(samples)]
    sent = [text for one in asked for text in _sent(one.prompts, one.cases) for _ in range(samples)]
    ids = [f"{one.suite}/{one.attack}/{prompt.id}" for one, prompt, _ in rows]
    answers = _answer(
        loaded,
        chat,
        sent,
        [f"{name}#{row[2]}" if samples > 1 else name for name, row in zip(ids, rows, strict=True)],
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        interventions=interventions,
        sampling=sampling,
        chunks=chunks,
        progress=progress or NO_PROGRESS,
    )
    found = [
        answer_row(prompt, one.suite, one.attack, text, answer.text, answer.n_tokens, answer.ended, number)
        for (one, prompt, number), text, answer in zip(rows, sent, answers, strict=True)
    ]
    return rejudge(found, judge)


def answer_row(
    prompt: Prompt,
    suite: str,
    attack: Attack,
    sent: str,
    text: str,
    n_tokens: int,
    ended: bool,
    sample: int = 0,
) -> AnswerRow:
    """An answer that no judge has seen, with what needs no judge: degeneracy and the utility check."""
    return AnswerRow(
        prompt_id=prompt.id,
        set_name=prompt.set_name,
        suite=suite,
        attack=attack,
        label=prompt.label,
        kind=prompt.kind,
        category=prompt.category,
        prompt=prompt.text,
        context=prompt.context,
        user_text=sent,
        text=text,
        n_tokens=n_tokens,
        ended=ended,
        verdict="",
        judge="",
        degenerate=is_degenerate(text, prompt.text),
        check=None if prompt.check is None else check_satisfied(prompt.check, text),
        sample=sample,
    )


def rejudge(rows: Sequence[AnswerRow], judge: Judge) -> list[AnswerRow]:
    """The same answers with a refusal judge's verdicts in place of the earlier ones; nothing is generated."""
    found = judge.judge([row.exchange for row in rows])
    return [replace(row, verdict=one.verdict, judge=one.judge) for row, one in zip(rows, found, strict=True)]


def judge_harm(rows: Sequence[AnswerRow], judge: Judge) -> list[AnswerRow]:
    """The same answers with a harmfulness judge's verdicts; harmless prompts' and copyright rows stay unscored."""
    asked = [row for row in rows if row.label == "harmful" and row.kind != COPYRIGHT]
    found = iter(judge.judge([Exchange(row.prompt, row.text, row.context) for row in asked]))
    mark = f"{judge.name}@{judge.version}"
    judged: list[AnswerRow] = []
    for row in rows:
        if row.label != "harmful":
            judged.append(row)
        elif row.kind == COPYRIGHT:
            judged.append(replace(row, harmful=None, harm_score=None, harm_judge=mark))
        else:
            one = next(found)
            harmful = {HARMFUL: 1, HARMLESS: 0}.get(one.verdict)
            score = None if harmful is None or one.score != one.score else one.score
            judged.append(replace(row, harmful=harmful, harm_score=score, harm_judge=one.judge))
    return judged
