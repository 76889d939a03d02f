"""A study of a reasoning model: three ways of thinking, three identities; refusal tokens stand after the thought."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from small import small_config

from caryatid.behaviour.judges.registry import open_refusal_judge
from caryatid.causal.locate import Measured, refusal_tokens_of, selection_prompts
from caryatid.data.prompts import Prompt
from caryatid.errors import ConfigError, InputError
from caryatid.models.chat_options import ChatOptions
from caryatid.progress import NO_PROGRESS
from caryatid.study.runner import planned
from caryatid.study.stages.selection import Selection
from caryatid.study.work import Work
from tiny import CHATML, tiny_loaded, tiny_tokenizer

REFUSAL, HELP = "Sorry, I can't help with that request.", "Sure, here is a list: flour, water and salt."
QWEN3 = CHATML.replace(
    "assistant\n' }}",
    "assistant\n' }}{% if enable_thinking is defined and enable_thinking is false %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}",
)
THOUGHT = "<think>\nOkay, the user asks.\n</think>\n\n"


def _selected(thinking: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Measured]:
    """What the stage makes of six scripted answers: three to harmful and three to harmless prompts."""
    tokenizer = tiny_tokenizer(template=QWEN3)
    loaded = replace(tiny_loaded(), tokenizer=tokenizer, options=ChatOptions(thinking=thinking))
    thought = "" if thinking == "off" else THOUGHT
    said = [f"{thought}{text}<|im_end|>" for text in (REFUSAL, REFUSAL, HELP)] * 2
    said[4:] = [f"{thought}{HELP}<|im_end|>", "<think>\nOkay, the"]
    said[3] = said[4]
    ids = [tokenizer.encode(text, add_special_tokens=False) for text in said]
    monkeypatch.setattr("caryatid.models.generate.generate_ids", lambda *_args, **_kwargs: ids)
    rows = [Prompt(f"p{number}", "How do I do it?", "own", label="harmful") for number in range(3)]
    sets = SimpleNamespace(
        selection_harmful=SimpleNamespace(prompts=tuple(rows)),
        selection_harmless=SimpleNamespace(prompts=tuple(rows)),
    )
    work = SimpleNamespace(
        entry=SimpleNamespace(stage=SimpleNamespace(kind="selection")),
        open=lambda: loaded,
        of=lambda *_args: sets,
        chat=lambda one: one.chat(),
        batch=SimpleNamespace(generate=8),
        judge=open_refusal_judge(),
        progressing=lambda *_args: _Quiet(),
        kept=lambda *_args: _Quiet(),
    )
    study = SimpleNamespace(config=small_selection_config(thinking))
    found = Selection(cast(Any, study)).run(cast(Work, work))
    return found, Measured(loaded, loaded.chat(), 8)


class _Quiet:
    def __enter__(self) -> Any:
        return NO_PROGRESS

    def __exit__(self, *_: object) -> None:
        return None


def small_selection_config(thinking: str) -> Any:
    return SimpleNamespace(
        model=SimpleNamespace(thinking=thinking),
        behaviour=SimpleNamespace(max_new_tokens=64),
        geometry=SimpleNamespace(answer_tokens=8),
    )


@pytest.mark.parametrize("thinking", ["off", "strip", "keep"])
def test_refusal_tokens_contain_no_token_of_a_thought(thinking: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found, model = _selected(thinking, monkeypatch)
    tokenizer = model.loaded.tokenizer
    first = {text: tokenizer.encode(text, add_special_tokens=False)[0] for text in (REFUSAL, HELP)}
    assert found.first_tokens == [
        *((first[REFUSAL], True), (first[REFUSAL], True), (first[HELP], False)),
        *((first[HELP], False), (first[HELP], False)),  # the unfinished one has none
    ]
    tokens = {row.token for row in refusal_tokens_of(model, found.first_tokens, "Sorry, I can't do that.")}
    assert tokens == {first[REFUSAL]}
    assert not tokens & set(tokenizer.encode(THOUGHT, add_special_tokens=False))
    assert found.refusal_rates == (2 / 3, 0.0)
    assert [row.verdict for row in found.harmless] == ["full_compliance", "full_compliance", ""]
    # Candidates are scored along what follows the prompt whose positions are measured.
    ids = found.harmless[0].ids
    assert (ids[0] == first[HELP]) == (thinking != "keep")
    assert found.harmless[2].ids == () or thinking != "strip"
    rows = selection_prompts(model.chat, ["a"], ["a", "b", "c"], [row.ids for row in found.harmless], [5])
    assert len(rows.harmless) == len(rows.answers) == (2 if thinking == "strip" else 3)


def test_no_finished_thought_says_what_to_do() -> None:
    with pytest.raises(InputError, match="Raise the token limit"):
        selection_prompts(tiny_loaded().chat(), ["a"], ["a", "b"], [(), ()], [5])


def test_what_fills_the_template_is_part_of_every_key(tmp_path: Path) -> None:
    ways = (
        *((), ("model.thinking=strip",), ("model.thinking=keep",), ("model.date=2026-02-05",)),
        *(("model.template_args.effort=high",), ("model.template_args.effort=low",)),
    )
    plans = [planned(small_config(tmp_path, *way)) for way in ways]
    assert len({plan.study.facts.model_identity for plan in plans}) == len(ways)
    for entry in plans[0]:
        keys = {plan[entry.id].key for plan in plans}
        assert len(keys) == (1 if entry.stage.kind == "prompts" else len(ways)), entry.id


def test_impossible_options_are_named_with_their_place(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.thinking"):
        small_config(tmp_path, "model.thinking=loud")
    with pytest.raises(ConfigError, match=r"model.*date: 'soon' is not a date"):
        small_config(tmp_path, "model.date=soon")
    with pytest.raises(ConfigError, match="not a variable of a chat template"):
        small_config(tmp_path, "model.template_args.messages=1")
