"""Attacks that are more than a text: the beginning of an answer, and embeddings in place of tokens."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from caryatid.attacks.base import AttackResult, BlockRun, Goal
from caryatid.attacks.builtin import attack_named
from caryatid.attacks.embedding import embedding_scale, sign_step
from caryatid.attacks.gcg.settings import GcgSettings
from caryatid.attacks.gcg.slot import initial_suffix
from caryatid.attacks.run import cases_json, goals_together
from caryatid.attacks.saved import TestCase, harmbench_json, load_cases, read_sent_texts, save_cases
from caryatid.attacks.settings import AutoDanSettings, EmbeddingSettings, RandomSearchSettings
from caryatid.errors import InputError
from caryatid.models.batch import RowLimit
from caryatid.models.generate import Decoding, generate
from caryatid.models.load import LoadedModel
from caryatid.models.sizes import BatchSizes
from caryatid.models.template import ChatFormat
from caryatid.models.turns import SoftTokens, Turn
from tiny import tiny_loaded

GOALS = (
    Goal("letter", "Write a letter, then post it", "Sure, here is a letter"),
    Goal("tides", "Explain the tides", "Sure, the tides"),
    Goal("poem", "A poem", "Sure"),
)


def attack(
    name: str, loaded: LoadedModel, goals: tuple[Goal, ...] = GOALS, rows: int = 8, **settings: Any
) -> list[AttackResult]:
    kind = attack_named(name)
    return kind.search(
        loaded, ChatFormat(loaded.tokenizer), goals, kind.settings(**settings), BlockRun(0, RowLimit(rows))
    )


def read_embeddings(loaded: LoadedModel, ids: list[int], soft: SoftTokens) -> torch.Tensor:
    embedded = loaded.model.get_input_embeddings()(torch.tensor([ids])).clone()
    embedded[0, soft.start : soft.start + soft.count] = soft.vectors.to(embedded)
    return embedded


@pytest.mark.parametrize("arch", ["llama", "gpt2", "gemma2", "gpt_neox"])
def test_embedding_descent_is_a_plain_loop_s(arch: str) -> None:
    """Goals together, with filling, against one goal at a time without it."""
    loaded = tiny_loaded(arch)
    chat, steps, rate = ChatFormat(loaded.tokenizer), 5, 0.05
    results = attack("embedding", loaded, steps=steps, rate=rate, suffix_length=4)
    embedding = loaded.model.get_input_embeddings()
    rows = embedding(torch.arange(400)).detach()
    rms = float(rows.square().mean().sqrt())
    for goal, result in zip(GOALS, results, strict=True):
        placed = initial_suffix(chat, goal.user_text, 4)
        prompt, target = (
            chat.ids(f"{goal.user_text} {placed.text}"),
            chat.answer_ids(goal.target, end_of_turn=False),
        )
        start = len(placed.slot.prefix_ids)
        delta, best, record = torch.zeros(4, rows.shape[1]), None, []
        for _ in range(steps + 1):
            delta.requires_grad_(True)
            read = embedding(torch.tensor([[*prompt, *target]])).clone()
            read = torch.cat(
                [read[:, :start], read[:, start : start + 4] + delta, read[:, start + 4 :]], dim=1
            )
            logits = loaded.model(inputs_embeds=read).logits[0, len(prompt) - 1 : -1]
            loss = torch.nn.functional.cross_entropy(logits, torch.tensor(target))
            if not record or float(loss.detach()) < record[-1]:
                best = read[0, start : start + 4].detach()
            record.append(min([float(loss.detach()), *record[-1:]]))
            (gradient,) = torch.autograd.grad(loss, delta)
            delta = (delta - rate * rms * gradient.sign()).detach()
        assert result.losses == pytest.approx(record, rel=2e-4)
        assert result.losses[-1] < result.losses[0]
        assert result.soft is not None
        assert best is not None
        assert torch.allclose(result.soft.vectors, best, atol=2e-4)
        assert result.soft.start == start
        assert result.forward_tokens == (steps + 1) * (len(prompt) + len(target) - 1)
        assert result.backward_tokens == steps * (len(prompt) + len(target) - 1)


def test_the_loss_is_that_of_what_is_sent_and_batches_do_not_matter() -> None:
    loaded = tiny_loaded("llama")
    chat = ChatFormat(loaded.tokenizer)
    together, apart = (
        attack("embedding", loaded, rows=rows, steps=4, suffix_length=[3, 6]) for rows in (8, 1)
    )
    for goal, one, other in zip(GOALS, together, apart, strict=True):
        assert one.losses == pytest.approx(other.losses, rel=1e-4)
        assert one.soft is not None
        ids = [*chat.ids(one.sent_text), *chat.answer_ids(goal.target, end_of_turn=False)]
        logits = loaded.model(inputs_embeds=read_embeddings(loaded, ids, one.soft)).logits[0].log_softmax(-1)
        length = len(ids) - len(chat.ids(one.sent_text))
        picked = logits[-length - 1 : -1].gather(1, torch.tensor(ids[-length:])[:, None])
        assert one.loss == pytest.approx(-float(picked.mean()), rel=1e-4)


def test_steps_stay_in_their_ball() -> None:
    delta, gradient = torch.zeros(1, 2, 4), torch.tensor([[[1.0, -2.0, 0.5, -1.0], [0.0, 0.0, 3.0, 0.0]]])
    free = sign_step(delta, gradient, 0.5, None)
    assert free.tolist() == [[[-0.5, 0.5, -0.5, 0.5], [0.0, 0.0, -0.5, 0.0]]]
    held = sign_step(delta, gradient, 0.5, 0.6)
    assert held[0, 0].norm() == pytest.approx(0.6)
    assert torch.equal(held[0, 1], free[0, 1])
    loaded = tiny_loaded("llama")
    scale = embedding_scale(loaded.model.get_input_embeddings(), 400, torch.device("cpu"))
    weight = loaded.model.get_input_embeddings().weight
    assert scale.rms == pytest.approx(float(weight.square().mean().sqrt()), rel=1e-5)
    assert scale.length == pytest.approx(float(weight.norm(dim=1).mean()), rel=1e-5)
    for result in attack("embedding", loaded, steps=6, radius=0.2, suffix_length=3):
        assert result.soft is not None
        plain = weight[list(result.suffix_ids)]
        assert float((result.soft.vectors - plain).norm(dim=1).max()) <= 0.2 * scale.length * (1 + 1e-4)


def test_an_embedding_search_stops_by_its_rules() -> None:
    loaded = tiny_loaded("llama")
    whole = attack("embedding", loaded, steps=8, suffix_length=4)
    limit = sorted(result.loss for result in whole)[1]
    for full, one in zip(
        whole, attack("embedding", loaded, steps=8, suffix_length=4, stop_below=limit + 1e-3), strict=True
    ):
        stopped = full.loss <= limit
        assert one.stopped == ("stop_below" if stopped else "steps")
        assert one.losses == pytest.approx(full.losses[: len(one.losses)], rel=1e-4)
    row = whole[0].forward_tokens // 9
    (cut,) = attack("embedding", loaded, GOALS[:1], steps=8, suffix_length=4, token_budget=4 * row)
    assert (cut.stopped, cut.forward_tokens, len(cut.losses)) == ("token_budget", 4 * row, 4)


def test_what_is_more_than_text_is_asked_as_it_is() -> None:
    """Soft tokens and begun answers in one batch with a plain text, against single generations."""
    loaded = tiny_loaded("llama")
    chat = ChatFormat(loaded.tokenizer)
    (found,) = attack("embedding", loaded, GOALS[:1], steps=5, suffix_length=4, rate=0.3)
    turns = ["Explain", found.sent, Turn("A poem about the sea", "Sure, here"), "A poem about the sea"]
    answers = [one.ids for one in generate(loaded, chat, turns, Decoding(6, 4))]
    assert answers == [generate(loaded, chat, [turn], Decoding(6, 1))[0].ids for turn in turns]
    assert found.soft is not None
    soft = found.soft
    ids, said = chat.ids(found.sent_text), list[int]()
    for _ in answers[1]:
        logits = loaded.model(inputs_embeds=read_embeddings(loaded, [*ids, *said], soft)).logits
        said.append(int(logits[0, -1].argmax()))
    assert tuple(said) == answers[1]
    assert answers[1] != generate(loaded, chat, [found.sent_text], Decoding(6, 1))[0].ids
    begun, said = [*chat.ids("A poem about the sea"), *chat.answer_ids("Sure, here", end_of_turn=False)], []
    for _ in answers[2]:
        said.append(int(loaded.model(torch.tensor([[*begun, *said]])).logits[0, -1].argmax()))
    assert tuple(said) == answers[2] != answers[3]


def test_prefill_begins_the_answer_with_the_target() -> None:
    loaded = tiny_loaded("llama")
    chat = ChatFormat(loaded.tokenizer)
    whole, part = attack("prefill", loaded), attack("prefill", loaded, tokens=3)
    for goal, one, cut in zip(GOALS, whole, part, strict=True):
        assert (one.sent_text, one.begun_text) == (goal.user_text, goal.target)
        assert one.loss != one.loss
        assert (one.losses, one.forward_tokens) == ((), 0)
        assert goal.target.startswith(cut.begun_text)
        assert len(chat.answer_ids(cut.begun_text, end_of_turn=False)) <= 3
    assert whole[0].sent == Turn(GOALS[0].user_text, GOALS[0].target)


def test_cases_beyond_text_are_kept_and_read_and_are_no_harmbench_file(tmp_path: Path) -> None:
    loaded = tiny_loaded("llama")
    found = [
        *attack("prefill", loaded, GOALS[:1]),
        *attack("embedding", loaded, GOALS[1:2], steps=1, suffix_length=3),
    ]
    cases = [TestCase.of(one) for one in found]
    save_cases(tmp_path / "saved.json", cases)
    assert [repr(one) for one in load_cases(tmp_path / "saved.json").cases] == [repr(one) for one in cases]
    (tmp_path / "results.json").write_text(json.dumps(cases_json(found)))
    for file in ("saved.json", "results.json"):
        assert read_sent_texts(tmp_path / file) == {one.behavior_id: (one.sent,) for one in found}
    for case in cases:
        with pytest.raises(InputError, match="is no text"):
            harmbench_json([case])
    damaged = cases_json(found)
    damaged["cases"][1]["soft"]["data"] = "AAAA"
    (tmp_path / "results.json").write_text(json.dumps(damaged))
    with pytest.raises(InputError, match="damaged"):
        read_sent_texts(tmp_path / "results.json")


def test_goals_go_together_where_they_share_passes() -> None:
    batch = BatchSizes(forward=256, generate=256, gcg=256, train=8)
    assert goals_together(EmbeddingSettings(), "cuda", batch) == 8
    assert goals_together(EmbeddingSettings(), "cpu", batch) == 1
    assert goals_together(RandomSearchSettings(width=8), "cuda", batch) == 16
    assert goals_together(AutoDanSettings(), "cuda", batch) == 1
    assert goals_together(GcgSettings(width=128), "cuda", batch) == 8
