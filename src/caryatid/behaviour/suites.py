"""Suites: prompts are sent, answers are judged; saved answers can be judged again."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from ..data.prompts import Prompt
from ..errors import InputError, UsageError
from ..models.batch import batch_cost, length_sorted_batches, with_backoff
from ..models.generate import Decoding, Sampling, generate
from ..models.load import LoadedModel
from ..models.thoughts import part_text
from ..models.turns import Sent, Turn, turn_ids
from ..progress import NO_PROGRESS, Progress
from .answers import AnswerRow, Attack
from .judges.base import (
    HARMFUL,
    HARMLESS,
    UNSCORED,
    Judge,
    Judgement,
    judge_answers,
    judge_id,
)
from .judges.copyright import NAME as COPYRIGHT_RULE
from .judges.copyright import CopyrightHashes
from .judges.saved import Chunks, judged
from .outcomes import degeneracy, is_copyright, judged_prompts
from .utility import check_satisfied


@dataclass(frozen=True)
class Asking:
    """How a model is asked.

    Attributes:
        max_new_tokens: token limit of every answer. batch_size: answers per batch.
        system: the system message; None leaves it to the template.
        sampling: how answers are drawn; None: greedy. samples: answers per prompt, more than one only when drawn.

    Raises:
        UsageError: several greedy answers per prompt.
    """

    max_new_tokens: int
    batch_size: int
    system: str | None = None
    sampling: Sampling | None = None
    samples: int = 1

    def __post_init__(self) -> None:
        if self.samples > 1 and self.sampling is None:
            raise UsageError(
                "several greedy answers to one prompt are the same answer",
                where="samples",
                remedy="Give a temperature.",
            )


class Answer(NamedTuple):
    """What a model said: its text, the number of generated tokens, and whether it ended before the limit."""

    text: str
    n_tokens: int
    ended: bool


def _sent(prompts: Sequence[Prompt], cases: Mapping[str, Sent] | None) -> list[Sent]:
    if cases is None:
        return [prompt.user_text for prompt in prompts]
    missing = [prompt.id for prompt in prompts if prompt.id not in cases]
    if missing:
        raise InputError(
            f"no case for {len(missing)} of {len(prompts)} prompts, first {missing[0]!r}",
            where="attack cases",
            remedy="Attack these behaviours too, or ask only those that have a case.",
        )
    return [cases[prompt.id] for prompt in prompts]


def _stored(chunk: Any, ids: Sequence[str]) -> list[Answer]:
    if [row.get("prompt_id") for row in chunk] != list(ids):
        raise InputError(
            "saved answers belong to other prompts or another batch shape",
            where="answers",
            remedy="Remove the unfinished stage and run again.",
        )
    return [Answer(row["text"], row["n_tokens"], row["ended"]) for row in chunk]


def _answer(
    loaded: LoadedModel,
    sent: Sequence[Sent],
    ids: Sequence[str],
    asking: Asking,
    chunks: Chunks | None,
    progress: Progress,
) -> list[Answer]:
    """Answers in the order of `sent`; a chunk is one batch, so that resuming changes neither shapes nor draws."""
    chat, sampling = loaded.chat(asking.system), asking.sampling
    answers: dict[int, Answer] = {}
    done = chunks.load() if chunks is not None else []
    lengths = [len(row) for row in turn_ids(chat, sent)]
    cost = batch_cost(loaded.device, asking.max_new_tokens)
    for index, batch in enumerate(length_sorted_batches(lengths, asking.batch_size, cost)):
        named = [ids[row] for row in batch]
        if index < len(done):
            found = _stored(done[index], named)
        else:
            texts = [sent[row] for row in batch]
            drawn = sampling and replace(sampling, seed=sampling.seed * 1_000_003 + index)

            def attempt(size: int, texts: list[Sent] = texts, drawn: Sampling | None = drawn) -> list[Answer]:
                decoding = Decoding(asking.max_new_tokens, size, drawn)
                made = generate(loaded, chat, texts, decoding)
                return [Answer(one.text, one.n_tokens, one.ended) for one in made]

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
        cases: what is sent by prompt id: the whole text, or more than text; None: the prompts as they are, with their
            contexts.
    """

    suite: str
    attack: Attack
    prompts: Sequence[Prompt]
    cases: Mapping[str, Sent] | None = None


def run_suites(
    loaded: LoadedModel,
    asked: Sequence[Asked],
    asking: Asking,
    *,
    judge: Judge,
    chunks: Chunks | None = None,
    progress: Progress = NO_PROGRESS,
) -> list[AnswerRow]:
    """Ask the prompts of several suites, sorted by length into batches that suites share, and judge the answers.

    Args:
        asked: rows come back in its order and that of its prompts, the samples of one prompt together.
        judge: a refusal judge.
        chunks: finished batches are kept there and not generated again.
        progress: advanced by one per answer.

    Raises:
        InputError: a prompt without a case, or saved answers of other prompts.
        MemoryExhaustedError: out of memory also at batch size 1.
    """
    rows = [
        (one, prompt, number) for one in asked for prompt in one.prompts for number in range(asking.samples)
    ]
    sent = [text for one in asked for text in _sent(one.prompts, one.cases) for _ in range(asking.samples)]
    ids = [f"{one.suite}/{one.attack}/{prompt.id}" for one, prompt, _ in rows]
    if asking.samples > 1:
        ids = [f"{name}#{number}" for name, (_, _, number) in zip(ids, rows, strict=True)]
    answers = _answer(loaded, sent, ids, asking, chunks, progress)
    found = [
        answer_row(prompt, one.suite, one.attack, Turn.of(turn).text, answer, number)
        for (one, prompt, number), turn, answer in zip(rows, sent, answers, strict=True)
    ]
    return rejudge(found, judge)


def answer_row(
    prompt: Prompt, suite: str, attack: Attack, sent: str, answer: Answer, sample: int = 0
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
        **answer._asdict(),
        verdict="",
        judge="",
        degenerate=degeneracy(answer.text, prompt.text),
        check=None if prompt.check is None else check_satisfied(prompt.check, part_text(answer.text).answer),
        sample=sample,
    )


def rejudge(rows: Sequence[AnswerRow], judge: Judge) -> list[AnswerRow]:
    """The same answers with a refusal judge's verdicts in place of the earlier ones; nothing is generated."""
    found = judge_answers(judge, [row.exchange for row in rows])
    return [
        replace(row, verdict=one.verdict, judge=one.judge, proxy=judge.proxy)
        for row, one in zip(rows, found, strict=True)
    ]


def judge_harm(
    rows: Sequence[AnswerRow],
    judge: Judge,
    *,
    hashes: CopyrightHashes | None = None,
    chunks: Chunks | None = None,
) -> list[AnswerRow]:
    """The same answers with a harmfulness judge's verdicts; those to harmless prompts are left as they are.

    A blank answer is a failure (harmful 0, score 0) and not shown to the judge. Answers to copyright behaviours are
    compared with `hashes`, and unscored without them.

    Args:
        chunks: finished batches of verdicts are kept there and not asked again.

    Raises:
        DataMissingError: `hashes` lack a behaviour; else as the judge.
    """
    harmful = [row for row in rows if row.label == "harmful" and not row.blank]
    found = iter(judged(judge, [row.exchange for row in judged_prompts(harmful)], chunks))
    return [
        row if row.label != "harmful" else _with_harm(row, _harm_of(row, judge, hashes, found), judge.proxy)
        for row in rows
    ]


def _harm_of(
    row: AnswerRow, judge: Judge, hashes: CopyrightHashes | None, found: Iterator[Judgement]
) -> Judgement:
    if row.blank:
        score = 0.0 if getattr(judge, "graded", False) else math.nan
        return Judgement(HARMLESS, judge_id(judge), score=score)
    if not is_copyright(row):
        return next(found)
    said = part_text(row.text)
    if hashes is None or said.unfinished:
        return Judgement(UNSCORED, judge_id(judge))
    return hashes.judge(row.prompt_id, said.answer)


def _with_harm(row: AnswerRow, one: Judgement, proxy: bool) -> AnswerRow:
    return replace(
        row,
        harmful={HARMFUL: 1, HARMLESS: 0}.get(one.verdict),
        harm_score=_number(one.score),
        harm_probability=_number(one.probability),
        harm_judge=one.judge,
        harm_proxy=proxy and one.judge != COPYRIGHT_RULE,
    )


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
