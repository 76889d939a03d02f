"""Chat data: files, datasets, self-distillation, and batches that all arms share."""

import json
from typing import NamedTuple

import pytest

from caryatid.data.chat import (
    ChatExample,
    chat_batches,
    distill,
    hold_out,
    load_chat_dataset,
    load_chat_jsonl,
    without_overlaps,
)
from caryatid.data.prompts import Prompt, PromptSet, Role
from caryatid.errors import DataMissingError, InputError


def turn(role, content):
    return {"role": role, "content": content}


MESSAGES = [turn("system", "Be kind"), turn("user", "Hi"), turn("assistant", "Hello"), turn("user", "Bye")]


def write(path, *rows):
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n", encoding="utf-8")
    return path


def test_jsonl_pairs_and_messages(tmp_path):
    path = write(tmp_path / "c.jsonl", {"user": "Q\u2028?", "answer": "A"}, {"messages": MESSAGES})
    assert load_chat_jsonl(path) == [
        ChatExample("c_000001", "Q\u2028?", "A"),
        ChatExample("c_000002", "Hi", "Hello"),
    ]
    assert len(load_chat_jsonl(path, n=1)) == 1


@pytest.mark.parametrize(
    "bad",
    [
        {"user": "only"},
        {"user": "x", "answer": " "},
        {"user": 3, "answer": "y"},
        ["user", "answer"],
        {"messages": [turn("user", "a"), turn("user", "b")]},
        {"messages": [turn("assistant", "a")]},
        {"messages": "text"},
    ],
)
def test_jsonl_line_that_is_no_example(tmp_path, bad):
    path = write(tmp_path / "c.jsonl", {"user": "q", "answer": "a"}, bad)
    with pytest.raises(InputError, match=r"c\.jsonl:2: no chat example") as caught:
        load_chat_jsonl(path)
    assert caught.value.exit_code == 2


def test_jsonl_that_is_no_json_or_empty_or_missing(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_text('{"user": "q", "answer": "a"}\n\n{"user": \n')
    with pytest.raises(InputError, match=r"c\.jsonl:3:\d+: not JSON"):
        load_chat_jsonl(path)
    path.write_text("\n")
    with pytest.raises(InputError, match="no chat examples"):
        load_chat_jsonl(path)
    with pytest.raises(DataMissingError):
        load_chat_jsonl(tmp_path / "none.jsonl")


@pytest.mark.parametrize("offline", [False, True])
def test_dataset_from_a_folder(tmp_path, monkeypatch, offline):
    pytest.importorskip("datasets", reason="the datasets library is not installed")
    monkeypatch.setattr("caryatid.data.chat.hub_offline", lambda: offline)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    folder = tmp_path / "set"
    folder.mkdir()
    rows = [{"messages": MESSAGES}, {"messages": [turn("user", "alone")]}, {"messages": MESSAGES[1:]}]
    write(folder / "train.jsonl", *rows)
    found = load_chat_dataset(str(folder), "train", 10)
    assert found == [
        ChatExample("train_000001", "Hi", "Hello"),
        ChatExample("train_000003", "Hi", "Hello"),
    ]
    assert len(load_chat_dataset(str(folder), "train", 1)) == 1
    with pytest.raises(InputError, match="split 'test' cannot be loaded"):
        load_chat_dataset(str(folder), "test", 1)
    with pytest.raises(DataMissingError, match="dataset cannot be had"):
        load_chat_dataset(str(tmp_path / "none"), "train", 1)


def ask(*texts):
    return [Prompt(f"p{i}", text, "s", "harmless") for i, text in enumerate(texts)]


class Answer(NamedTuple):
    text: str
    ended: bool


def test_distill_keeps_order_and_leaves_out_empty_answers():
    got = distill(ask("a", "b", "c"), lambda texts: [f"{text}!" if text != "b" else " \n" for text in texts])
    assert got == [ChatExample("p0", "a", "a!"), ChatExample("p2", "c", "c!")]
    got = distill(ask("a", "b"), lambda texts: [Answer("cut off at", False), Answer("whole.", True)])
    assert [one.complete for one in got] == [False, True]
    with pytest.raises(InputError, match="answers none"):
        distill(ask("a"), lambda texts: [""])
    with pytest.raises(ValueError, match="shorter"):
        distill(ask("a", "b"), lambda texts: ["one"])


def test_distill_asks_what_the_user_sends():
    prompt = Prompt("p", "Do it", "s", "harmless", context="Story")
    seen = []
    distill([prompt], lambda texts: seen.extend(texts) or ["ok"])
    assert seen == [prompt.user_text]


def test_examples_that_are_prompts_of_another_role_are_left_out():
    examples = [ChatExample("a", "What is the capital of France?", "Paris"), ChatExample("b", "Hi", "Hello")]
    suite = PromptSet("utility", Role.EVALUATION, tuple(ask("what is the capital of france")), "s", "MIT")
    kept, dropped = without_overlaps(examples, [suite], "c.jsonl")
    assert kept == [examples[1]]
    assert [(row.prompt_id, row.kept_id) for row in dropped] == [("a", "p0")]
    with pytest.raises(InputError, match="every chat example"):
        without_overlaps(examples[:1], [suite], "c.jsonl")


def test_held_out_examples_are_not_trained_on():
    examples = [ChatExample(str(i), f"Question {i % 8}?", f"a{i}") for i in range(16)]
    train, heldout = hold_out(examples, 4, seed=1)
    assert len(heldout) == 4
    assert not {one.user for one in train} & {one.user for one in heldout}
    assert (train, heldout) == hold_out(examples, 4, seed=1)
    assert heldout != hold_out(examples, 4, seed=2).heldout
    assert all(one in heldout or one in train or one.user in {h.user for h in heldout} for one in examples)
    with pytest.raises(InputError, match="leave nothing to train on"):
        hold_out(examples[:8], 8, seed=0)
    with pytest.raises(InputError, match=r"nothing can be held out of 1 chat example\(s\)"):
        hold_out(examples[:1], 0, seed=0)


EXAMPLES = [ChatExample(str(i), f"q{i}", f"a{i}") for i in range(10)]


def test_batches_are_a_function_of_their_arguments():
    first = chat_batches(EXAMPLES, 7, 4, seed=5)
    assert first == chat_batches(EXAMPLES, 7, 4, seed=5)
    assert first != chat_batches(EXAMPLES, 7, 4, seed=6)
    assert chat_batches(EXAMPLES, 30, 4, seed=5)[:7] == first
    assert [len(batch) for batch in first] == [4] * 7


def test_every_epoch_deals_out_every_example_once_in_a_new_order():
    dealt = [i for batch in chat_batches(EXAMPLES, 10, 4, seed=0) for i in batch]
    epochs = [dealt[i : i + 10] for i in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_batch_larger_than_the_data():
    (batch,) = chat_batches(EXAMPLES[:3], 1, 8, seed=0)
    assert len(batch) == 8
    assert sorted(batch[:3]) == [0, 1, 2]
    with pytest.raises(InputError, match="no chat examples"):
        chat_batches([], 1, 8, seed=0)


def test_json_round_trip():
    example = ChatExample("a", "q", "ä\n", complete=False)
    assert ChatExample.from_json(json.loads(json.dumps(example.to_json()))) == example
