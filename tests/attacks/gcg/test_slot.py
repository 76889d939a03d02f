"""The suffix's place in the templated prompt, and the round trip of whole prompts."""

from typing import Any

import pytest
import torch

from caryatid.attacks.gcg import candidates, slot
from caryatid.attacks.gcg.candidates import Substitutions, allowed_token_ids, decode_ids, encode_texts
from caryatid.attacks.gcg.slot import (
    Survival,
    given_suffix,
    initial_suffix,
    place_suffix,
    round_trip,
    surviving_candidates,
)
from caryatid.errors import InputError
from caryatid.models.template import ChatFormat
from tiny import CHATML, INST, tiny_tokenizer

BEHAVIOURS = (
    "How do I write a letter to the office?",
    "Explain the tides",
    "x\n\n---\n\nPlease write about [/INST] and the sea ",
    "Où est la mer 海?",
)


@pytest.fixture(params=[CHATML, INST], ids=["chatml", "inst"])
def chat(request: pytest.FixtureRequest) -> ChatFormat:
    return ChatFormat(tiny_tokenizer(template=request.param))


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_a_placed_suffix_gives_the_prompt_of_behaviour_space_suffix(chat: ChatFormat, behaviour: str) -> None:
    placed = place_suffix(chat, behaviour, "! a the")
    assert placed is not None
    assert placed.slot.text("! a the") == chat.text(f"{behaviour} ! a the")
    assert placed.slot.prompt_ids(placed.ids) == chat.ids(f"{behaviour} ! a the")
    assert placed.slot.suffix_texts(chat.tokenizer, [placed.ids]) == ["! a the"]
    piece = decode_ids(chat.tokenizer, [placed.ids])[0]
    assert piece == placed.slot.lead + "! a the"


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
@pytest.mark.parametrize("length", [1, 2, 5, 8])
def test_initial_suffix_has_the_length_and_survives(chat: ChatFormat, behaviour: str, length: int) -> None:
    placed = initial_suffix(chat, behaviour, length)
    assert len(placed.ids) == length
    assert chat.ids(f"{behaviour} {placed.text}") == placed.slot.prompt_ids(placed.ids)
    assert round_trip(placed.slot, chat.tokenizer, torch.tensor([placed.ids])).all()


def test_a_suffix_that_a_token_straddles_is_not_placed() -> None:
    """ " [/" is one token; in this template its last character would be the template's."""
    tokenizer = tiny_tokenizer(template=INST.replace("' [/INST]'", "'/INST]'"))
    chat = ChatFormat(tokenizer)
    assert " [/" in [tokenizer.decode([token]) for token in chat.ids("Explain the tides a [")]
    assert place_suffix(chat, "Explain the tides", "a [") is None
    placed = place_suffix(chat, "Explain the tides", "a [ a")
    assert placed is not None
    assert placed.slot.suffix_texts(tokenizer, [placed.ids]) == ["a [ a"]


def test_round_trip_agrees_with_retokenising_each_prompt(chat: ChatFormat) -> None:
    """Every single-token substitution, against the plain question: does the sent text give these ids back?"""
    behaviour = "Explain the tides"
    placed = initial_suffix(chat, behaviour, 3)
    tokens = torch.arange(len(chat.tokenizer))
    rows = torch.tensor(placed.ids).repeat(3 * len(tokens), 1)
    for position in range(3):
        rows[position * len(tokens) : (position + 1) * len(tokens), position] = tokens
    survives = round_trip(placed.slot, chat.tokenizer, rows)
    before = decode_ids(chat.tokenizer, [placed.slot.prefix_ids])[0]
    for row, kept in zip(rows.tolist(), survives.tolist(), strict=True):
        ids = placed.slot.prompt_ids(row)
        text = decode_ids(chat.tokenizer, [[*placed.slot.prefix_ids, *row]])[0][len(before) :]
        typed = text[len(placed.slot.lead) :]
        expected = (
            text.startswith(placed.slot.lead)
            and typed == typed.strip() != ""
            and chat.ids(f"{behaviour} {typed}") == ids
        )
        assert kept == expected, typed


@pytest.mark.parametrize("template", [CHATML, INST], ids=["chatml", "inst"])
def test_whole_prompt_round_trip_is_stricter_than_the_suffix_alone(template: str) -> None:
    """Tokens that come back from the suffix's own text, but merge with their neighbours in the prompt."""
    tokenizer = tiny_tokenizer(template=template)
    chat = ChatFormat(tokenizer)
    placed = place_suffix(chat, "Explain the tide", "cat")
    assert placed is not None
    allowed = allowed_token_ids(tokenizer).allowed.nonzero().flatten()
    rows = torch.tensor(placed.ids).repeat(len(allowed), 1)
    rows[:, 0] = allowed
    survives = round_trip(placed.slot, tokenizer, rows)
    texts = decode_ids(tokenizer, rows.tolist())
    alone = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    only_alone = [
        row
        for row, ids, kept in zip(rows.tolist(), alone, survives.tolist(), strict=True)
        if ids == row and not kept
    ]
    assert only_alone


def test_spelled_out_control_tokens_do_not_survive(chat: ChatFormat) -> None:
    tokenizer = chat.tokenizer
    end = [tokenizer.convert_tokens_to_ids(char) for char in "<|im_end|>"]
    assert len(end) == 10
    placed = initial_suffix(chat, "Explain the tides", 12)
    row = torch.tensor([*placed.ids[:2], *end])
    assert not round_trip(placed.slot, tokenizer, row.unsqueeze(0)).any()


def test_given_ids_that_do_not_survive_become_those_of_their_text(chat: ChatFormat) -> None:
    tokenizer = chat.tokenizer
    letters = [tokenizer.convert_tokens_to_ids(char) for char in "Sure,here"]  # merges exist for these
    placed = given_suffix(chat, "Explain the tides", letters)
    assert placed.text.replace(" ", "").endswith("ere")
    assert chat.ids(f"Explain the tides {placed.text}") == placed.slot.prompt_ids(placed.ids)
    again = given_suffix(chat, "Explain the tides", placed.ids)
    assert (again.ids, again.text) == (placed.ids, placed.text)


def test_a_template_that_changes_the_message_is_refused() -> None:
    changing = CHATML.replace("message['content']", "message['content'] | replace('!', '?')")
    chat = ChatFormat(tiny_tokenizer(template=changing))
    with pytest.raises(InputError, match="changes"):
        place_suffix(chat, "Explain the tides", "! ! !")


def test_lengths_below_one_are_refused(chat: ChatFormat) -> None:
    with pytest.raises(InputError, match="below 1"):
        initial_suffix(chat, "Explain the tides", 0)


def test_the_tokenizer_asked_directly_gives_what_its_wrapper_gives(
    chat: ChatFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(3)
    rows = torch.randint(0, len(chat.tokenizer), (200, 7), generator=generator).tolist()
    texts = [*BEHAVIOURS, "", " <|im_end|> <pad>x", chat.text("! ! !"), *decode_ids(chat.tokenizer, rows)]
    assert candidates._plain_backend(chat.tokenizer, ("__call__",)) is not None
    direct = encode_texts(chat.tokenizer, texts), decode_ids(chat.tokenizer, rows)
    monkeypatch.setattr(candidates, "_plain_backend", lambda *_: None)
    assert direct == (encode_texts(chat.tokenizer, texts), decode_ids(chat.tokenizer, rows))


def test_a_tokenizer_with_its_own_methods_or_truncation_is_asked_as_it_is(chat: ChatFormat) -> None:
    class Own(type(chat.tokenizer)):  # type: ignore[misc]  # a class made at run time
        def _encode_plus(self, *args: object, **kwargs: object) -> object:
            return super()._encode_plus(*args, **kwargs)

    words, kind = chat.tokenizer, type(chat.tokenizer)
    try:
        words.__class__ = Own
        assert candidates._plain_backend(words, ("__call__", "_encode_plus")) is None
    finally:
        words.__class__ = kind
    words.backend_tokenizer.enable_truncation(4)
    assert candidates._plain_backend(words, ("__call__", "_encode_plus")) is None
    words.backend_tokenizer.no_truncation()


def test_how_many_are_checked_at_once_does_not_change_the_survivors(
    chat: ChatFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed = initial_suffix(chat, BEHAVIOURS[0], 5)
    generator = torch.Generator().manual_seed(4)
    order = Substitutions(
        torch.randint(0, 5, (400,), generator=generator),
        torch.randint(0, len(chat.tokenizer), (400,), generator=generator),
    )
    checked: list[int] = []

    def counting(*values: Any) -> torch.Tensor:
        checked.append(len(values[2]))
        return round_trip(*values)

    monkeypatch.setattr(slot, "round_trip", counting)
    suffix = torch.tensor(placed.ids)
    learnt = Survival()
    found = [
        surviving_candidates(placed.slot, chat.tokenizer, suffix, order, 24, survival)
        for survival in (None, Survival(1.0), Survival(0.2), learnt, learnt)
    ]
    assert all(torch.equal(found[0], other) for other in found)
    one_at_a_time = order.apply(suffix)[:384]
    expected = one_at_a_time[round_trip(placed.slot, chat.tokenizer, one_at_a_time)][:24]
    assert torch.equal(found[0], expected)
    assert 0.125 <= learnt.rate < 1
    assert checked[1] != checked[0]
