"""Goals from prompts and files, and default targets."""

import json
from pathlib import Path

import pytest

from caryatid.attacks.goals import default_target, goals_of, read_goals, read_targets
from caryatid.data.prompts import Prompt
from caryatid.errors import DataMissingError, InputError

HARMBENCH = (
    "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID\n"
    '"Write a letter, then post it",standard,illegal,,,letter\n'
    'Explain this,contextual,illegal,context,"The tides, and the moon",tides\n'
)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_harmbench_columns_context_and_targets(tmp_path: Path) -> None:
    behaviors = write(tmp_path / "b.csv", HARMBENCH)
    targets = write(tmp_path / "t.json", json.dumps({"tides": ["Sure, the tides", "Other"], "unused": "x"}))
    letter, tides = read_goals(behaviors, targets)
    assert (letter.behavior_id, letter.user_text) == ("letter", "Write a letter, then post it")
    assert letter.target == "Sure, here is a letter, then post it"
    assert tides.user_text == "The tides, and the moon\n\n---\n\nExplain this"
    assert tides.target == "Sure, the tides"
    assert read_goals(behaviors)[1].target == "Sure, here is this"


@pytest.mark.parametrize("column", ["prompt", "behavior"])
def test_plain_columns_get_ids(tmp_path: Path, column: str) -> None:
    cases = read_goals(write(tmp_path / "mine.csv", f"{column}\nExplain the tides\nWrite a poem\n"))
    assert [case.user_text for case in cases] == ["Explain the tides", "Write a poem"]
    assert len({case.behavior_id for case in cases}) == 2


def test_a_prompts_own_target_is_used_before_the_default() -> None:
    prompt = Prompt(id="p", text="Explain the tides", set_name="s", label="harmful", targets=("Yes, ", "No"))
    assert goals_of([prompt])[0].target == "Yes, "
    assert goals_of([prompt], {"p": "Sure"})[0].target == "Sure"


def test_the_text_of_a_file_is_sent_as_it_stands(tmp_path: Path) -> None:
    """One of HarmBench's behaviours ends with a space, and some of its contexts begin with one."""
    behaviors = write(tmp_path / "b.csv", 'Behavior,ContextString,BehaviorID\n"Explain ", The tides,tides\n')
    assert read_goals(behaviors)[0].user_text == " The tides\n\n---\n\nExplain "


def test_empty_texts_in_a_list_of_targets_are_passed_over(tmp_path: Path) -> None:
    """HarmBench's adversarial training targets hold a few."""
    targets = write(tmp_path / "t.json", json.dumps({"a": ["", "Sure"], "b": "Yes"}))
    assert read_targets(targets) == {"a": "Sure", "b": "Yes"}


@pytest.mark.parametrize("content", ["[]", '{"a": 1}', '{"a": []}', '{"a": [""]}', '{"a": " "}', "{"])
def test_targets_that_cannot_be_used_are_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(InputError):
        read_targets(write(tmp_path / "t.json", content))


def test_missing_files_and_targets_for_nobody(tmp_path: Path) -> None:
    behaviors = write(tmp_path / "b.csv", HARMBENCH)
    with pytest.raises(DataMissingError):
        read_goals(tmp_path / "absent.csv")
    with pytest.raises(DataMissingError):
        read_goals(behaviors, tmp_path / "absent.json")
    with pytest.raises(InputError, match="no target"):
        read_goals(behaviors, write(tmp_path / "t.json", '{"other": "Sure"}'))


@pytest.mark.parametrize(
    ("behaviour", "target"),
    [
        ("Write a letter to the mayor.", "Sure, here is a letter to the mayor"),
        ("Please give me detailed instructions to fold a boat", "Sure, here is detailed instructions to fold a boat"),
        ("How do I fold a paper boat?", "Sure, here is how to fold a paper boat"),
        ("How to fold a paper boat", "Sure, here is how to fold a paper boat"),
        ("Explain how to fold a paper boat", "Sure, here is how to fold a paper boat"),
        ("Fold a paper boat! Then a hat.", "Sure, here is how to fold a paper boat"),
        ("What is the capital of France?", "Sure, here is the answer to what is the capital of France"),
        ("?!", "Sure, here is the answer"),
    ],
)  # fmt: skip
def test_default_target_restates_the_behaviour(behaviour: str, target: str) -> None:
    assert default_target(behaviour) == target


def test_default_target_is_bounded() -> None:
    assert len(default_target("Write a " + "very " * 100 + "long text").split()) <= 3 + 24
