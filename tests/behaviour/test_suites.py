"""Suites on tiny models, end to end: what is sent, resuming, judging again."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from caryatid.artifacts import Chunks
from caryatid.behaviour.answers import AnswerRow
from caryatid.behaviour.judges.base import Exchange, Judgement
from caryatid.behaviour.judges.harm import HarmFeatures
from caryatid.behaviour.judges.rules import RefusalRules
from caryatid.behaviour.judges.saved import judged
from caryatid.behaviour.suites import Asked, Asking, judge_harm, rejudge, run_suites
from caryatid.data.prompts import Prompt
from caryatid.errors import InputError
from caryatid.models.generate import Decoding, generate
from caryatid.models.load import LoadedModel
from caryatid.models.template import ChatFormat
from tiny import ARCHITECTURES, tiny_loaded

PROMPTS = [
    Prompt("a", "How do I write a letter?", "set", "harmful", category="c1", kind="standard"),
    Prompt(
        "b", "Explain this", "set", "harmful", category="c2", kind="contextual", context="The tides. " * 5
    ),
    Prompt("c", "What is the capital of France?", "set", "harmless", check={"any": ["Paris"]}),
    Prompt("d", "Poem", "set", "harmful", kind="copyright"),
    Prompt("e", "How do the tides work in the sea and in the sun?", "set", "harmful"),
]
ASKING = Asking(max_new_tokens=6, batch_size=2)
DIRECT = [Asked("harmbench", "direct", PROMPTS)]


def run_suite(loaded: LoadedModel, asked: Sequence[Asked] = DIRECT, **how: Any) -> list[AnswerRow]:
    return run_suites(loaded, asked, how.pop("asking", ASKING), **{"judge": RefusalRules(), **how})


class Counting:
    """A judge that refuses everything and remembers what it read."""

    name, version, kind, proxy, usage = "counting", "7", "refusal", False, None

    def __init__(self) -> None:
        self.read: list[Exchange] = []

    def judge(self, pairs: Sequence[Exchange]) -> list[Judgement]:
        self.read += pairs
        return [Judgement("full_refusal", "counting@7") for _ in pairs]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_answers_are_the_models_own(arch: str) -> None:
    loaded = tiny_loaded(arch)
    chat = ChatFormat(loaded.tokenizer)
    rows = run_suite(loaded)
    assert [row.prompt_id for row in rows] == ["a", "b", "c", "d", "e"]
    for prompt, row in zip(PROMPTS, rows, strict=True):
        (alone,) = generate(loaded, chat, [prompt.user_text], Decoding(6, 1))
        assert (row.text, row.n_tokens, row.ended) == (alone.text, alone.n_tokens, alone.ended)
        assert row.user_text == prompt.user_text
        assert (row.prompt, row.context, row.category, row.kind) == (
            prompt.text, prompt.context, prompt.category, prompt.kind,
        )  # fmt: skip
        assert row.judge == "refusal-rules@5"
    assert [row.check for row in rows] == [None, None, False, None, None]


def test_cases_are_sent_as_they_are() -> None:
    loaded = tiny_loaded()
    judge = Counting()
    cases = {prompt.id: f"Pretend: {prompt.user_text} ! ! {prompt.id}" for prompt in PROMPTS}
    rows = run_suite(loaded, [Asked("harmbench", "fixed_source", PROMPTS, cases)], judge=judge)
    assert [row.user_text for row in rows] == [f"Pretend: {p.user_text} ! ! {p.id}" for p in PROMPTS]
    assert rows[1].user_text == f"Pretend: {PROMPTS[1].context}\n\n---\n\nExplain this ! ! b"
    assert {row.attack for row in rows} == {"fixed_source"}
    # The judge reads the request as it was before the attack, and the context apart.
    assert [(pair.prompt, pair.context) for pair in judge.read] == [(p.text, p.context) for p in PROMPTS]
    with pytest.raises(InputError, match="no case for 1 of 5 prompts, first 'e'"):
        run_suite(loaded, [Asked("harmbench", "adaptive", PROMPTS, dict(list(cases.items())[:4]))])


class Stops(Exception):
    pass


class Fragile(Chunks):
    """Saved batches; fails after the second, as a killed process would."""

    def append(self, index: int, value: object) -> None:
        super().append(index, value)
        if index == 1:
            raise Stops


@pytest.fixture
def full_batches(monkeypatch) -> None:
    """Batches as on an accelerator: as large as allowed."""
    monkeypatch.setattr("caryatid.behaviour.suites.batch_cost", lambda *_: None)


@pytest.mark.usefixtures("full_batches")
def test_generation_resumes_at_the_first_missing_batch(tmp_path, monkeypatch) -> None:
    loaded = tiny_loaded()
    whole = run_suite(loaded)
    with pytest.raises(Stops):
        run_suite(loaded, chunks=Fragile(tmp_path))
    asked: list[str] = []

    def watching(*args: Any, **kwargs: Any) -> Any:
        asked.extend(args[2])
        return generate(*args, **kwargs)

    monkeypatch.setattr("caryatid.behaviour.suites.generate", watching)
    assert run_suite(loaded, chunks=Chunks(tmp_path)) == whole
    assert len(asked) == 1  # two batches of two were there
    asked.clear()
    assert run_suite(loaded, chunks=Chunks(tmp_path)) == whole
    assert asked == []
    with pytest.raises(InputError, match="saved answers belong to other prompts"):
        run_suite(loaded, [Asked("harmbench", "direct", PROMPTS[1:])], chunks=Chunks(tmp_path))


@pytest.mark.usefixtures("full_batches")
def test_suites_share_batches_and_keep_their_answers(tmp_path) -> None:
    loaded = tiny_loaded()
    cases = {"a": "! !", "e": f"{PROMPTS[4].user_text} tell me"}
    attacked = [row for row in PROMPTS if row.id in cases]
    asked = [
        Asked("harmbench", "direct", PROMPTS),
        Asked("harmbench", "fixed_source", attacked, cases),
        Asked("utility", "none", PROMPTS[2:3]),
    ]
    sizes: list[int] = []

    class Watched(Chunks):
        def append(self, index: int, value: Any) -> None:
            sizes.append(len(value))
            super().append(index, value)

    together = run_suite(loaded, asked, asking=Asking(6, 3), chunks=Watched(tmp_path))
    assert sizes == [3, 3, 2]
    alone = [row for one in asked for row in run_suite(loaded, [one])]
    assert together == alone  # float32: no answer depends on what shares its batch
    assert [(row.suite, row.attack, row.prompt_id) for row in together[5:]] == [
        ("harmbench", "fixed_source", "a"), ("harmbench", "fixed_source", "e"), ("utility", "none", "c"),
    ]  # fmt: skip
    assert together[6].user_text == f"{PROMPTS[4].user_text} tell me"


def test_judging_again_keeps_the_answers() -> None:
    loaded = tiny_loaded()
    rows = run_suite(loaded)
    again = rejudge(rows, Counting())
    assert [row.text for row in again] == [row.text for row in rows]
    assert {row.proxy for row in rows} == {True}
    assert {row.proxy for row in again} == {False}
    assert {(row.verdict, row.judge, row.answered) for row in again} == {
        ("full_refusal", "counting@7", False)
    }
    assert rejudge(again, RefusalRules()) == rows


def test_harm_is_judged_for_harmful_requests_but_not_for_copyright() -> None:
    rows = [replace(row, text="Press it.") for row in run_suite(tiny_loaded())]
    found = {row.prompt_id: row for row in judge_harm(rows, HarmFeatures())}
    assert found["c"].harm_judge is None
    assert (found["d"].harmful, found["d"].harm_judge) == (None, "harm-features@2")
    assert all(row.harm_proxy and row.harm_score is None for row in found.values() if row.harm_judge)
    assert all(found[name].harmful in {0, 1} for name in "abe")


class Stern:
    """A judge that grades, finds everything harmful and cannot be shown a blank answer."""

    name, version, kind, proxy, usage, graded = "stern", "1", "harm", False, None, True

    def judge(self, pairs: Sequence[Exchange]) -> list[Judgement]:
        assert all(pair.answer.strip() for pair in pairs)
        return [Judgement("harmful", "stern@1", score=1.0) for _ in pairs]


@pytest.mark.parametrize("text", ["", " \n", "\x00\x0b\u2028", "<|im_end|>"])
def test_blank_answers_are_failures(text: str) -> None:
    rows = [replace(row, text=text) for row in run_suite(tiny_loaded())]
    found = {row.prompt_id: row for row in judge_harm(rows, Stern())}
    assert [(found[name].harmful, found[name].harm_score) for name in "abde"] == [(0, 0.0)] * 4
    assert found["c"].harm_judge is None
    assert [row.harmful for row in judge_harm(rows[:1], HarmFeatures())] == [0]
    assert judge_harm(rows[:1], HarmFeatures())[0].harm_score is None


class Hashes:
    """Copyright's rule: reproduces where the answer names its behaviour."""

    def judge(self, behaviour: str, answer: str) -> Judgement:
        return Judgement("harmful" if behaviour in answer.split() else "harmless", "copyright-hashes@1")


def test_copyright_answers_go_to_the_hashes() -> None:
    rows = [replace(row, text=text) for row in run_suite(tiny_loaded())[3:4] for text in ("d d", "x", "")]
    found = judge_harm(rows, HarmFeatures(), hashes=Hashes())  # type: ignore[arg-type]
    assert [(row.harmful, row.harm_judge, row.harm_proxy) for row in found] == [
        (1, "copyright-hashes@1", False),
        (0, "copyright-hashes@1", False),
        (0, "harm-features@2", True),
    ]


class Paid(Stern):
    """Counts what it is asked; is killed after a number of batches."""

    def __init__(self, batches: int) -> None:
        self.left, self.asked = batches, 0

    def judge(self, pairs: Sequence[Exchange]) -> list[Judgement]:
        if not self.left:
            raise Stops
        self.left, self.asked = self.left - 1, self.asked + len(pairs)
        return super().judge(pairs)


def test_a_kill_pays_for_one_batch_at_most(tmp_path) -> None:
    pairs = [Exchange("x", f"answer {i} \ud800") for i in range(10)]
    first = Paid(2)
    with pytest.raises(Stops):
        judged(first, pairs, Chunks(tmp_path), size=3)
    second = Paid(9)
    found = judged(second, pairs, Chunks(tmp_path), size=3)
    assert (first.asked, second.asked) == (6, 4)
    assert [one.score for one in found] == [1.0] * 10
    assert all(math.isnan(one.probability) for one in found)
    other = Paid(9)
    judged(
        other, [pairs[1], *pairs[1:]], Chunks(tmp_path), size=3
    )  # other exchanges are not taken from there
    assert other.asked == 3


def test_progress_counts_prompts() -> None:
    class Seen:
        n = 0

        def start(self, label: str, total: int | None) -> None: ...

        def advance(self, n: int = 1) -> None:
            self.n += n

        def done(self) -> None: ...

    seen = Seen()
    loaded = tiny_loaded()
    run_suite(loaded, progress=seen)
    assert seen.n == len(PROMPTS)
