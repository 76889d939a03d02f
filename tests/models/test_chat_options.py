"""What changes prompts and answers beside the weights: thinking, template variables, the date."""

import datetime as dt
from pathlib import Path

import pytest
import torch

from caryatid.errors import DataMissingError, InputError, UsageError
from caryatid.models.chat_options import ChatOptions
from caryatid.models.generate import Decoding, generate, stop_ids
from caryatid.models.load import load_model
from caryatid.models.template import ChatFormat
from caryatid.models.thoughts import part_text
from tiny import CHATML, save_tiny, tiny_loaded, tiny_tokenizer

pytestmark = pytest.mark.usefixtures("own_cache")
OPEN, CLOSE, EMPTY = "<think>", "</think>", "<think>\n\n</think>\n\n"
TAIL = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
# Qwen3's way: thinks by default, an empty thought is written when it is told not to.
_SWITCH = (
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '"
    + EMPTY
    + "' }}{% endif %}{% endif %}"
)
HYBRID = CHATML.replace(TAIL, TAIL.removesuffix("{% endif %}") + _SWITCH)
HYBRID = HYBRID.replace("message['content']", "message['content'].split('</think>')[-1]")
ALWAYS = CHATML.replace(TAIL, TAIL.replace("assistant\n", "assistant\n<think>\n"))  # R1's, QwQ's
LATER = CHATML.replace(
    "message['content'] +", "message['content'].split('</think>')[-1] +"
)  # no switch at all
CHANNELS = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{{ '<|im_start|>assistant<|channel|>final<|message|>' + m['content'] + '<|im_end|>' }}"
    "{% else %}{{ '<|im_start|>' + m['role'] + '<|message|>' + m['content'] + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}{# <|channel|>analysis<|message|> #}"
)


def chat(template: str, thinking: str = "off", **rest: object) -> ChatFormat:
    tokenizer = tiny_tokenizer(template=template)
    tokenizer.add_tokens(["<|channel|>", "<|message|>", "<|end|>"], special_tokens=True)
    return ChatFormat(tokenizer, options=ChatOptions(thinking=thinking, **rest))


@pytest.mark.parametrize("template", [HYBRID, ALWAYS, LATER], ids=["hybrid", "always", "later"])
def test_where_positions_and_answers_stand(template: str) -> None:
    start = "<|im_start|>assistant\n"
    off, strip, keep = (chat(template, way) for way in ("off", "strip", "keep"))
    assert off.text("Hi").endswith(f"Hi<|im_end|>\n{start}{EMPTY}")
    assert strip.text("Hi") == off.text("Hi") == off.asked("Hi")
    opened = "<think>\n" if template == ALWAYS else ""
    assert strip.asked("Hi") == keep.asked("Hi") == keep.text("Hi")
    assert keep.text("Hi").endswith(start + opened)
    assert "".join(off.post_tokens).endswith(EMPTY)
    assert off.n_post > keep.n_post
    # What a refusal begins with, and targets, are no tokens of a thought.
    for one in (off, strip):
        assert one.tokenizer.decode(one.answer_ids("Sorry, no.")) == "Sorry, no.<|im_end|>"
        assert one.answer_ids("Sorry")[0] == one.tokenizer.encode("Sorry", add_special_tokens=False)[0]


def test_a_template_that_says_whether_to_think_is_taken_at_its_word() -> None:
    """Granite 3.3's way: without its instruction the model writes no thought, so that an empty one would be foreign."""
    template = "{% if thinking %}{{ 'First write <think></think>. ' }}{% endif %}" + CHATML
    assert chat(template).text("Hi") == ChatFormat(tiny_tokenizer()).text("Hi")
    own = chat(template, "strip", arguments=(("thinking", True),))
    assert own.asked("Hi").startswith("First write")
    assert own.text("Hi").endswith(EMPTY)


@pytest.mark.parametrize(
    ("opening", "close"),
    [
        ("<thought>", "</thought>"),
        ("<longcat_think>", "</longcat_think>"),
        ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ],
)
def test_tags_of_other_families(opening: str, close: str, monkeypatch: pytest.MonkeyPatch) -> None:
    template = CHATML.replace("message['content'] +", f"message['content'].split('{close}')[-1] +")
    assert chat(template).text("Hi").endswith(f"assistant\n{opening}\n\n{close}\n\n")
    assert chat(template, "strip").asked("Hi").endswith("assistant\n")
    texts = [f"{opening}\nMay I?\n{close}\n\nYes.<|im_end|>", f"{opening}\nI'm sorry"]
    found = scripted(chat(template, "strip"), texts, monkeypatch)
    assert [(one.text, one.unfinished) for one in found] == [("Yes.", False), ("<think>\nI'm sorry", True)]


def test_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    """gpt-oss: the analysis channel is the thought, `<|end|>` ends it and not the answer."""
    off, strip = chat(CHANNELS), chat(CHANNELS, "strip")
    assert off.text("Hi").endswith("<|im_start|>assistant<|channel|>final<|message|>")
    assert strip.asked("Hi").endswith("<|im_start|>assistant")
    end = off.tokenizer.convert_tokens_to_ids("<|end|>")
    assert end not in strip.stop_ids
    ending = strip.tokenizer.encode("<|end|>", add_special_tokens=False)
    assert ending == [end]
    thought = "<|channel|>analysis<|message|>I'm sorry?<|end|><|im_start|>assistant"
    answers = scripted(strip, [f"{thought}<|channel|>final<|message|>Yes.<|im_end|>", thought], monkeypatch)
    assert [(a.text, a.unfinished) for a in answers] == [("Yes.", False), ("<think>\nI'm sorry?", True)]


def scripted(asking: ChatFormat, texts: list[str], monkeypatch: pytest.MonkeyPatch) -> list:
    """What `generate` makes of these tokens, whatever the model."""
    loaded = tiny_loaded()
    ids = [asking.tokenizer.encode(text, add_special_tokens=False) for text in texts]
    monkeypatch.setattr("caryatid.models.generate.generate_ids", lambda *_args, **_kwargs: ids)
    object.__setattr__(loaded, "tokenizer", asking.tokenizer)
    return generate(loaded, asking, ["Q"] * len(ids), Decoding(9, 9))


ANSWERS = [
    "<think>\nI can't help with that?\n</think>\n\nTie it like this.<|im_end|>",
    "<think>\nI'm sorry, I cannot",
    "Tie it like this.<|im_end|>",
    "<think>\n\n</think>\n\nI cannot.<|im_end|>",
]


def test_what_follows_the_thought_is_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    found = scripted(chat(HYBRID, "strip"), ANSWERS, monkeypatch)
    assert [one.text for one in found] == [
        "Tie it like this.",
        "<think>\nI'm sorry, I cannot",  # left marked: there is nothing to judge
        "Tie it like this.",
        "I cannot.",
    ]
    assert [one.unfinished for one in found] == [False, True, False, False]
    assert found[0].thought == "I can't help with that?"
    assert [part_text(one.text).unfinished for one in found] == [False, True, False, False]
    kept = scripted(chat(HYBRID, "keep"), ANSWERS, monkeypatch)
    assert kept[0].text == "<think>\nI can't help with that?\n</think>\n\nTie it like this."
    assert part_text(kept[0].text).answer == "Tie it like this."


def test_a_prompt_that_opens_the_thought(monkeypatch: pytest.MonkeyPatch) -> None:
    found = scripted(
        chat(ALWAYS, "strip"), ["I refuse?</think>Yes.<|im_end|>", "I'm sorry<|im_end|>"], monkeypatch
    )
    assert [(one.text, one.unfinished) for one in found] == [("Yes.", False), ("<think>\nI'm sorry", True)]
    # After an empty thought the same tokens are an answer.
    assert not scripted(chat(ALWAYS), ["I'm sorry<|im_end|>"], monkeypatch)[0].unfinished


@pytest.mark.parametrize(
    ("text", "thought", "answer", "unfinished"),
    [
        ("<think>May I? No.</think> Yes.", "May I? No.", "Yes.", False),
        ("May I? No.</think> Yes.", "May I? No.", "Yes.", False),
        ("  <think>\nMay I", "May I", "", True),
        ("<thought>\nMay I?</thought>\nYes.", "May I?", "Yes.", False),
        ("[THINK]May I?[/THINK]Yes.", "May I?", "Yes.", False),
        ("[THINK]May I", "May I", "", True),
        (
            "<|channel|>analysis<|message|>May I?<|end|><|start|>assistant<|channel|>final<|message|>Yes.",
            "May I?",
            "Yes.",
            False,
        ),
        ("Use </thought> to end <thought>.", "", "Use </thought> to end <thought>.", False),
        ("Yes. A <think> tag is a marker.", "", "Yes. A <think> tag is a marker.", False),
        ("", "", "", False),
    ],
)
def test_stored_answers(text: str, thought: str, answer: str, unfinished: bool) -> None:
    assert tuple(part_text(text)) == (thought, answer, unfinished)


def test_templates_without_thoughts_stay_as_they_are() -> None:
    texts = {chat(CHATML, way).text("Hi") for way in ("off", "strip", "keep")}
    assert texts == {ChatFormat(tiny_tokenizer()).text("Hi")}


DAY = (
    "{% set now = strftime_now('%Y-%m-%d') %}{{ 'On ' + now + strftime_now(' (%d %b %Y)') + '. ' }}" + CHATML
)


@pytest.mark.parametrize("template", [DAY, "{{ date_string if date_string is defined else 'x' }} " + CHATML])
def test_today_is_a_setting(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Later(dt.datetime):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> "Later":
            return cls(2031, 1, 2)

    before = chat(template).text("Hi")
    assert "26 Jul 2024" in before
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Later)
    assert chat(template).text("Hi") == before
    assert "05 Feb 2026" in chat(template, date="2026-02-05").text("Hi")
    assert "2031" not in before
    if template == DAY:
        assert (
            chat(template, date="2026-02-05")
            .text("Hi")
            .startswith("On 2026-02-05 (05 Feb 2026). <|im_start|>")
        )


def test_variables_of_the_template() -> None:
    template = "{{ 'Effort: ' + (effort | default('low')) + '. ' }}" + CHATML
    assert chat(template).text("Hi").startswith("Effort: low. ")
    high = ChatOptions.of(arguments=["effort=high"])
    assert ChatFormat(tiny_tokenizer(template=template), options=high).text("Hi").startswith("Effort: high. ")
    # A variable wins over what thinking sets.
    own = ChatOptions.of(arguments={"enable_thinking": True})
    assert own == ChatOptions.of(arguments=["enable_thinking=true"])
    assert not ChatFormat(tiny_tokenizer(template=HYBRID), options=own).text("Hi").endswith("assistant\n")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"thinking": "maybe"}, "thinking: unknown way of thinking 'maybe'. Use off, strip or keep"),
        ({"date": "5.2.2026"}, "date: '5.2.2026' is not a date. Use YYYY-MM-DD"),
        ({"arguments": ["effort"]}, "'effort' is not KEY=VALUE"),
        ({"arguments": ["tokenize=true"]}, "'tokenize' is not a variable of a chat template"),
    ],
)
def test_options_that_cannot_be(given: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ChatOptions.of(**given)
    with pytest.raises(DataMissingError, match=r"nowhere\.jinja: this chat template cannot be read"):
        ChatOptions(template="nowhere.jinja").identity  # noqa: B018
    with pytest.raises(InputError, match="no chat template 'rag'"):
        ChatFormat(tiny_tokenizer(), options=ChatOptions(template="rag"))


def test_every_option_is_part_of_the_identity(tmp_path: Path) -> None:
    folder = str(save_tiny(tmp_path / "model"))
    (tmp_path / "own.jinja").write_text(CHATML.replace("tiny", "own"))
    plain = load_model(folder, device="cpu").identity
    assert load_model(folder, device="cpu", options=ChatOptions()).identity == plain
    ways = [
        {"thinking": "strip"},
        {"thinking": "keep"},
        {"date": "2026-02-05"},
        {"arguments": ["effort=high"]},
        {"arguments": ["effort=low"]},
        {"template": str(tmp_path / "own.jinja")},
    ]
    found = {load_model(folder, device="cpu", options=ChatOptions.of(**way)).identity for way in ways}
    assert len(found | {plain}) == len(ways) + 1


def test_the_token_that_ended_an_answer_is_cut_by_its_id() -> None:
    """An added end token that is not marked as a control token would stay in the text."""
    loaded = tiny_loaded()
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<end>"])
    tokenizer.chat_template = CHATML.replace("<|im_end|>", "<end>")
    object.__setattr__(loaded, "tokenizer", tokenizer)
    end = tokenizer.convert_tokens_to_ids("<end>")
    torch.manual_seed(0)  # of the new embedding rows
    loaded.model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        loaded.model.get_output_embeddings().weight[:] = 0
        loaded.model.get_output_embeddings().weight[end] = loaded.model.get_input_embeddings().weight[5]
    asking = ChatFormat(tokenizer)
    assert end in stop_ids(loaded, asking)
    found = generate(loaded, asking, ["Hi", "Go on"], Decoding(3, 2))
    assert any(one.ended for one in found)
    assert all("<end>" not in one.text for one in found)
    assert {one.text for one in found if one.ids[0] == end} == {""}
