import math

import numpy as np
import pytest
import torch
from test_conditions import by_hand, normal, some_conditions

from caryatid.causal.conditions import Condition
from caryatid.causal.readouts import (
    ReadOutPrompts,
    generate_under,
    mean_row,
    rate_row,
    teacher_forced,
)
from caryatid.causal.scores import refusal_score
from caryatid.errors import InputError
from caryatid.models.forward import answer_logprobs, last_logits
from caryatid.models.generate import Decoding, generate
from caryatid.models.template import ChatFormat
from caryatid.stats import wilson
from tiny import tiny_loaded

HARMFUL = ("How do I write a letter to the office?", "Explain tides", "Tell me how to pick a lock")
BENIGN = (("Hi", "Sure, here is a poem about the sea."), ("What is the capital of France?", "Paris"))


def test_teacher_forced_equals_every_condition_alone() -> None:
    loaded, conditions = tiny_loaded("qwen2"), some_conditions()
    chat = ChatFormat(loaded.tokenizer)
    tokens = torch.tensor([5, 6, 7])
    given = ReadOutPrompts.of_texts(chat, HARMFUL, [7, 5, 6, 5], BENIGN, answer_tokens=6)
    found = teacher_forced(loaded, conditions, given, batch_size=7)
    assert found.refusal.shape == (len(conditions), 3)
    prompts = [chat.ids(user) for user, _ in BENIGN]
    answers = [chat.answer_ids(answer)[:6] for _, answer in BENIGN]
    np.testing.assert_array_equal(found.answer_tokens, [len(a) for a in answers])
    for row, condition in enumerate(conditions):
        each = by_hand(condition)
        logits = torch.cat(
            [last_logits(loaded, [chat.ids(text)], batch_size=1, interventions=each) for text in HARMFUL]
        )
        np.testing.assert_allclose(
            found.refusal[row], refusal_score(logits, tokens).numpy(), rtol=1e-4, atol=1e-4
        )
        nll = -answer_logprobs(loaded, prompts, answers, batch_size=1, interventions=each).nanmean(dim=1)
        np.testing.assert_allclose(found.nll[row], nll.numpy(), rtol=1e-4)
    np.testing.assert_allclose(found.kl[0], 0, atol=1e-5)
    assert bool((found.kl[1:5] > 1e-3).all())


def test_an_answer_that_was_cut_off_has_no_end_of_turn() -> None:
    loaded = tiny_loaded("llama")
    chat = ChatFormat(loaded.tokenizer)
    given = ReadOutPrompts.of_texts(chat, HARMFUL, [5], BENIGN, complete=[False, True])
    found = teacher_forced(loaded, [Condition()], given, batch_size=4)
    lengths = [len(chat.answer_ids(answer, end_of_turn=False)) for _, answer in BENIGN]
    assert found.answer_tokens.tolist() == [lengths[0], lengths[1] + len(chat.end_of_turn_ids)]
    assert len(chat.end_of_turn_ids) > 0


def test_teacher_forced_needs_something_to_measure() -> None:
    loaded = tiny_loaded("llama")
    chat = ChatFormat(loaded.tokenizer)
    with pytest.raises(InputError, match="no conditions"):
        teacher_forced(loaded, [], ReadOutPrompts.of_texts(chat, HARMFUL, [5], BENIGN), batch_size=2)
    for harmful, benign in (((), BENIGN), (HARMFUL, ())):
        with pytest.raises(InputError, match="both needed"):
            ReadOutPrompts.of_texts(chat, harmful, [5], benign)


@pytest.mark.parametrize("arch", ["llama", "gpt2", "gemma2"])
def test_generation_under_many_conditions_equals_each_alone(arch: str) -> None:
    loaded, conditions = tiny_loaded(arch), some_conditions()
    chat = ChatFormat(loaded.tokenizer)
    found = generate_under(loaded, chat, conditions, HARMFUL, max_new_tokens=6, batch_size=16)
    assert len(found) == len(conditions)
    for condition, answers in zip(conditions, found, strict=True):
        alone = generate(loaded, chat, HARMFUL, Decoding(6, 1), interventions=by_hand(condition))
        assert [a.ids for a in answers] == [a.ids for a in alone]
    assert len({tuple(a.ids for a in answers) for answers in found}) > 3  # the conditions do something


def test_rows_carry_the_condition_and_the_right_interval() -> None:
    condition = Condition("ablate", "random", torch.eye(4)[:2], draw=3)
    row = rate_row(condition, "refusal", np.array([1.0, 0.0, math.nan, 1.0]))
    rate = wilson(2, 3)
    assert row == {
        "intervention": "ablate",
        "rank": 2,
        "alpha": 1.0,
        "control": "random",
        "draw": 3,
        "read_out": "refusal",
        "value": rate.value,
        "n": 3,
        "lo": rate.lo,
        "hi": rate.hi,
    }
    values = normal(50).double().numpy()
    values[3] = math.nan
    mean = mean_row(condition, "score", values, draws=500, rng=np.random.default_rng(0))
    assert mean["n"] == 49
    assert mean["value"] == pytest.approx(np.nanmean(values))
    spread = 1.96 * np.nanstd(values) / 7
    assert (mean["lo"], mean["hi"]) == pytest.approx(
        (mean["value"] - spread, mean["value"] + spread), abs=0.08
    )  # type: ignore[operator]
    empty = mean_row(condition, "score", np.array([math.nan]), draws=5, rng=np.random.default_rng(0))
    assert (empty["n"], math.isnan(empty["value"])) == (0, True)  # type: ignore[arg-type]
