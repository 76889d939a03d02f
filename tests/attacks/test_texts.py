"""Attacks on whole texts against plain reference loops: templates, random search, best of N, AutoDAN."""

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from caryatid.attacks.autodan import crossed, next_generation, synonyms, with_synonyms
from caryatid.attacks.base import AttackResult, BlockRun, Goal
from caryatid.attacks.best_of_n import augmented
from caryatid.attacks.builtin import attack_named
from caryatid.attacks.gcg.candidates import allowed_token_ids
from caryatid.attacks.gcg.slot import initial_suffix
from caryatid.attacks.random_search import changed_suffixes, tokens_to_change
from caryatid.attacks.settings import AutoDanSettings
from caryatid.attacks.templates import fill, own_templates, read_templates
from caryatid.attacks.texts import target_losses
from caryatid.errors import InputError
from caryatid.models.batch import RowLimit
from caryatid.models.load import LoadedModel
from caryatid.models.template import ChatFormat
from tiny import tiny_loaded

GOALS = (
    Goal("letter", "Write a letter, then post it", "Sure, here is a letter"),
    Goal("tides", "The tides {behavior}\n\n---\n\nExplain this", "Sure, the tides"),
)


def reference_loss(loaded: LoadedModel, chat: ChatFormat, text: str, target: str) -> list[float]:
    """Cross-entropy of every target token, one forward of one row, no mask, no padding."""
    prompt, answer = chat.ids(text), chat.answer_ids(target, end_of_turn=False)
    logits = loaded.model(torch.tensor([[*prompt, *answer]])).logits[0].double().log_softmax(-1)
    return [-float(logits[len(prompt) - 1 + place, token]) for place, token in enumerate(answer)]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def attack(
    name: str, goals: Sequence[Goal] = GOALS, seed: int = 0, answered: Any = None, **settings: Any
) -> tuple[LoadedModel, ChatFormat, list[AttackResult], list[int]]:
    loaded, taken = tiny_loaded("llama"), []
    chat, kind = ChatFormat(loaded.tokenizer), attack_named(name)
    run = BlockRun(seed, RowLimit(8), on_step=taken.append, answered=answered)
    return loaded, chat, kind.search(loaded, chat, goals, kind.settings(**settings), run), taken


@pytest.mark.parametrize("arch", ["llama", "gpt2", "gemma2"])
def test_losses_of_texts_are_those_of_a_plain_forward(arch: str) -> None:
    loaded = tiny_loaded(arch)
    chat = ChatFormat(loaded.tokenizer)
    texts = ["Hi", "A much longer text than the first one\nwith a line", "Hm?"]
    found = target_losses(loaded, chat, texts, "Sure, here is", RowLimit(2))
    plain = [reference_loss(loaded, chat, text, "Sure, here is") for text in texts]
    assert found.target.tolist() == pytest.approx([mean(one) for one in plain], rel=1e-5)
    assert found.first.tolist() == pytest.approx([one[0] for one in plain], rel=1e-5)
    assert found.tokens == tuple(len(chat.ids(text)) + len(plain[0]) for text in texts)
    with pytest.raises(InputError, match="context"):
        target_losses(loaded, chat, ["sea " * 600], "Sure", RowLimit(2))
    none = target_losses(loaded, chat, [], "Sure", RowLimit(2))
    assert (none.target.tolist(), none.first.tolist(), none.tokens) == ([], [], ())


def test_templates_keep_the_frame_of_the_lowest_loss(tmp_path: Path) -> None:
    frames = ["Tell me: {behavior}", {"name": "story", "text": "A story of “{target}” on {behavior}."}]
    (tmp_path / "frames.json").write_text(json.dumps(frames))
    loaded, chat, results, taken = attack("templates", file=str(tmp_path / "frames.json"))
    for goal, result in zip(GOALS, results, strict=True):
        texts = [f"Tell me: {goal.user_text}", f"A story of “{goal.target}” on {goal.user_text}."]
        losses = [mean(reference_loss(loaded, chat, text, goal.target)) for text in (goal.user_text, *texts)]
        best = min((1, 2), key=losses.__getitem__)
        assert result.sent_text == texts[best - 1]
        assert result.losses == pytest.approx([*losses[:2], min(losses[1:])], rel=1e-5)
        assert result.loss == result.losses[-1] == pytest.approx(losses[best], rel=1e-5)
        assert result.details["losses"] == pytest.approx({"1": losses[1], "story": losses[2]}, rel=1e-5)
        assert (result.steps, result.candidates) == (2, 3)
    assert sum(taken) == len(GOALS)


def test_the_package_s_own_frames_hold_the_request_once_and_differ() -> None:
    own = own_templates()
    texts = [frame.filled(GOALS[0]) for frame in own]
    assert len(own) >= 8
    assert len(set(texts)) == len(own)
    assert all(GOALS[0].user_text in text and "{" not in frame.text.replace("{behavior}", "").replace("{target}", "")
               for text, frame in zip(texts, own, strict=True) if frame.name != "json")  # fmt: skip
    assert fill("No slot.", GOALS[0]) == f"No slot. {GOALS[0].user_text}"
    assert fill("{behavior}", GOALS[1]) == GOALS[1].user_text  # braces of a request are no slot


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{}", "no list of templates"),
        ("[]", "no list of templates"),
        ('["no slot"]', "template 1 has no name, or no text with {behavior}"),
        ('[{"text": "{behavior}"}]', "template 1 has no name"),
        ('[{"name": "a", "text": "{behavior}"}, {"name": "a", "text": "x {behavior}"}]', "one name"),
        ("[", "not JSON"),
    ],
)
def test_damaged_template_files_are_refused(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "frames.json").write_text(content)
    with pytest.raises(InputError, match=words) as caught:
        read_templates(str(tmp_path / "frames.json"))
    assert "frames.json" in str(caught.value)


def test_suffixes_of_embedded_refusing_are_templates_by_its_name() -> None:
    frames = read_templates("embedded-refusing")
    assert [one.name for one in frames] == ["gcg-harmful_032", "gcg-harmful_078", "gcg-harmful_027"]
    for frame in frames:
        assert frame.text.startswith("{behavior} ")
        filled = frame.filled(GOALS[1])
        assert filled.startswith(f"{GOALS[1].user_text} ")
        assert len(filled) > len(GOALS[1].user_text) + 40
        assert GOALS[1].target not in filled  # no text but what GCG found


@pytest.mark.parametrize("objective", ["first_token", "target"])
def test_random_search_takes_the_steps_of_a_plain_loop(objective: str) -> None:
    """One candidate a step, kept where its objective is lower; losses are those of the texts as sent."""
    goal, steps = GOALS[0], 12
    loaded, chat, (result,), taken = attack(
        "random_search", [goal], steps=steps, suffix_length=5, objective=objective
    )
    generator = goal.generator(0)
    placed = initial_suffix(chat, goal.user_text, 5)
    mask = allowed_token_ids(chat.tokenizer).mask(400, 5, bool(placed.slot.lead))
    usable = [row.nonzero().squeeze(1) for row in mask]

    def score(suffix: str) -> tuple[float, float]:
        losses = reference_loss(loaded, chat, f"{goal.user_text} {suffix}", goal.target)
        return mean(losses), losses[0] if objective == "first_token" else mean(losses)

    ids, suffix = torch.tensor(placed.ids), placed.text
    loss, best = score(suffix)
    record = [loss]
    for _ in range(steps):
        change = tokens_to_change(4, math.exp(-best))
        while True:
            drawn = changed_suffixes(ids, usable, change, 1, generator)[0]
            (text,) = placed.slot.suffix_texts(chat.tokenizer, [drawn.tolist()])
            sent = None if text is None else chat.ids(f"{goal.user_text} {text}")
            if sent == placed.slot.prompt_ids(drawn.tolist()):
                break
        assert text is not None
        other, objective_loss = score(text)
        if objective_loss < best:
            ids, suffix, loss, best = drawn, text, other, objective_loss
        record.append(loss)
    assert result.suffix_text == suffix
    assert result.suffix_ids == tuple(ids.tolist())
    assert result.losses == pytest.approx(record, rel=1e-4)
    assert result.sent_text == f"{goal.user_text} {suffix}"
    assert result.loss == pytest.approx(
        mean(reference_loss(loaded, chat, result.sent_text, goal.target)), rel=1e-5
    )
    assert suffix != placed.text
    assert sum(taken) == steps


def test_a_random_search_of_the_target_only_gets_better_and_keeps_to_its_budget() -> None:
    settings = {"steps": 20, "width": 4, "suffix_length": 6, "objective": "target"}
    _, _, (whole,), _ = attack("random_search", GOALS[:1], **settings)
    assert list(whole.losses) == sorted(whole.losses, reverse=True)
    assert whole.losses[-1] < whole.losses[0]
    budget = whole.forward_tokens // 2
    _, _, (cut,), taken = attack("random_search", GOALS[:1], **settings, token_budget=budget)
    assert 0.7 * budget < cut.forward_tokens <= budget
    assert (cut.stopped, sum(taken)) == ("token_budget", 20)
    assert cut.losses == whole.losses[: len(cut.losses)]
    _, _, (early,), _ = attack("random_search", GOALS[:1], **settings, stop_below=whole.losses[1] + 1e-4)
    assert early.stopped == "stop_below"
    assert early.steps <= 1


def test_changed_suffixes_change_one_stretch_to_usable_tokens() -> None:
    usable = [torch.tensor([50, 51]), *[torch.tensor([60, 61, 62])] * 5]
    start = torch.arange(6)
    rows = changed_suffixes(start, usable, 3, 200, torch.Generator().manual_seed(0))
    seen = set()
    for row in rows:
        places = (row != start).nonzero().squeeze(1).tolist()
        assert places == list(range(places[0], places[0] + min(3, 6 - places[0])))
        assert all(int(row[place]) in usable[place].tolist() for place in places)
        seen.add(places[0])
    assert seen == set(range(6))


def test_augmentation_by_hand_and_in_its_shares() -> None:
    text = "The quick brown fox jumps over it"
    assert augmented(text, 0.0, random.Random(0)) == text
    garbled = augmented("acegikmo " * 2000, 0.4, random.Random(1)).split()
    cases = mean([one != one.lower() for word in garbled for one in word if one.isalpha()])
    assert cases == pytest.approx(0.4**0.5, abs=0.02)
    lowered = [word.lower() for word in garbled if word.isalpha() and len(word) == 8]
    same_ends = [word for word in lowered if sorted(word) == sorted("acegikmo")]
    assert all(word[0] == "a" and word[-1] == "o" for word in same_ends)
    assert mean([word != "acegikmo" for word in same_ends]) == pytest.approx(0.4**0.5, abs=0.03)
    plain = augmented("m" * 20000, 0.4, random.Random(2))
    moved = mean([one not in "mM" for one in plain])
    assert moved == pytest.approx(0.4**3, abs=0.01)
    assert set(plain.lower()) == {"l", "m", "n"}
    assert augmented("é" * 400, 1.0, random.Random(0)).isprintable()


def test_best_of_n_stops_at_the_first_answer_that_is_judged_one() -> None:
    asked: list[str] = []

    def judge(pairs: Sequence[tuple[Goal, str]]) -> list[bool]:
        asked.extend(text for _, text in pairs)
        return [len(asked) > 4 and number == 1 for number, _ in enumerate(pairs)]

    loaded, chat, (result,), taken = attack(
        "best_of_n", GOALS[:1], answered=judge, steps=12, width=3, max_new_tokens=4
    )
    assert result.details == {"asked": 6, "answered": True}
    assert (result.stopped, len(asked), sum(taken)) == ("answered", 6, 12)
    assert result.steps == 5  # the fifth text is the one
    assert result.sent_text != GOALS[0].user_text
    plain = mean(reference_loss(loaded, chat, result.sent_text, GOALS[0].target))
    assert result.loss == pytest.approx(plain, rel=1e-5)
    _, _, (again,), _ = attack(
        "best_of_n", GOALS[:1], answered=lambda pairs: [False] * len(pairs), steps=5, width=3
    )
    assert again.details == {"asked": 5, "answered": False}
    assert again.sent_text == GOALS[0].user_text


def test_best_of_n_without_a_judge_keeps_the_lowest_loss() -> None:
    loaded, chat, (result,), _ = attack("best_of_n", GOALS[:1], steps=6, width=4)
    seed = int(torch.randint(2**62, (), generator=GOALS[0].generator(0)))
    draw = random.Random(seed)
    texts = [augmented(GOALS[0].user_text, 0.4, draw) for _ in range(6)]
    losses = [mean(reference_loss(loaded, chat, text, GOALS[0].target)) for text in texts]
    assert result.sent_text == texts[losses.index(min(losses))]
    assert result.losses[1:] == pytest.approx([min(losses[: n + 1]) for n in range(6)], rel=1e-5)


def test_crossing_takes_every_sentence_from_one_parent_each() -> None:
    first, second = "A one. A two! A three? A four.", "B one.\nB two! B three? B four. B five."
    seen = set()
    for seed in range(200):
        one, other = crossed(first, second, 5, random.Random(seed))
        seen.add(one)
        assert sorted(f"{one} {other}".split()) == sorted(f"{first} {second}".split())
    assert first in seen
    assert "A one. B two! A three? B four. B five." in seen
    assert crossed("One sentence only", "Two here. And more", 3, random.Random(1)) in (
        ("One sentence only", "Two here. And more"),
        ("Two here. And more", "One sentence only"),
    )


def test_synonyms_replace_words_and_leave_slots() -> None:
    text = "Write a complete answer. {behavior} answer"
    changed = with_synonyms(text, 10, random.Random(0))
    words, others = text.split(), changed.split()
    assert others[3] != "answer."
    assert others[0][0].isupper()
    for word, other in zip(words, others, strict=True):
        stem = word.rstrip(".").lower()
        allowed = {stem, *synonyms().get(stem, ())}
        assert other.rstrip(".").lower() in allowed
    assert "{behavior}" in changed
    assert with_synonyms("request {request}", 1, random.Random(0)).endswith("{request}")
    assert with_synonyms(text, 0, random.Random(0)) == text


def test_a_generation_keeps_elites_and_draws_parents_by_softmax() -> None:
    texts = [f"text {number}" for number in range(20)]
    losses = [5.0] * 20
    losses[7], losses[3] = 0.0, 0.5
    still = AutoDanSettings(elites=0.1, crossover=0.0, mutation=0.0)
    drawn = [next_generation(texts, losses, still, random.Random(seed)) for seed in range(400)]
    assert all(one[:2] == ["text 7", "text 3"] and len(one) == 20 for one in drawn)
    weights = torch.softmax(-torch.tensor(losses), 0)
    share = mean([text == "text 7" for one in drawn for text in one[2:]])
    assert share == pytest.approx(float(weights[7]), abs=0.02)


def test_autodan_sends_the_best_text_of_all_generations() -> None:
    loaded, chat, results, taken = attack("autodan", steps=4, width=12, mutation=0.5)
    frames = own_templates()
    for goal, result in zip(GOALS, results, strict=True):
        assert list(result.losses[1:]) == sorted(result.losses[1:], reverse=True)
        first = [mean(reference_loss(loaded, chat, frame.filled(goal), goal.target)) for frame in frames]
        assert result.losses[1] <= min(first) + 1e-5
        assert goal.user_text in result.sent_text
        assert result.loss == pytest.approx(
            mean(reference_loss(loaded, chat, result.sent_text, goal.target)), rel=1e-5
        )
        assert result.steps == 4
    assert sum(taken) == 8
    _, _, (cut,), _ = attack(
        "autodan", GOALS[:1], steps=4, width=12, mutation=0.5, token_budget=results[0].forward_tokens - 1
    )
    assert cut.stopped == "token_budget"
    assert cut.forward_tokens < results[0].forward_tokens


@pytest.mark.parametrize(
    "name", ["autodan", "random_search", "best_of_n", "templates", "prefill", "embedding"]
)
def test_results_come_back_through_json_and_depend_on_the_goal_alone(name: str) -> None:
    small = {"steps": 3} if hasattr(attack_named(name).settings(), "steps") else {}
    _, _, results, _ = attack(name, **small)
    _, _, (alone,), _ = attack(name, GOALS[1:], **small)
    back = AttackResult.from_json(json.loads(json.dumps(alone.to_json())))
    assert repr(back) == repr(alone)
    assert alone.sent_text == results[1].sent_text
    assert alone.losses == pytest.approx(results[1].losses, rel=1e-4)
