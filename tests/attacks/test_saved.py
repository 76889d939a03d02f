"""Saved cases and default targets."""

import json
from pathlib import Path

import pytest

from caryatid.attacks.saved import TestCase, default_target, load_cases, save_cases
from caryatid.errors import DataMissingError, InputError

CASES = (
    TestCase("a", "Explain the tides", "Sure, here is", "! ! é-free", (5, 6, 7), 1.25),
    TestCase("b", "Où?\n\n---\n\nWrite", "Sure", "x", (9,), 0.1 + 0.2),
)


def test_saved_cases_come_back_exactly(tmp_path: Path) -> None:
    saved = save_cases(tmp_path / "cases.json", CASES, {"model": "tiny", "steps": 3})
    loaded = load_cases(tmp_path / "cases.json")
    assert loaded == saved
    assert loaded.cases == CASES
    assert loaded.source == {"model": "tiny", "steps": 3}
    assert loaded.cases[0].sent_text == "Explain the tides ! ! é-free"


def test_the_hash_names_the_content(tmp_path: Path) -> None:
    first = save_cases(tmp_path / "1.json", CASES).sha256
    assert save_cases(tmp_path / "2.json", CASES).sha256 == first
    assert save_cases(tmp_path / "3.json", CASES[:1]).sha256 != first
    assert save_cases(tmp_path / "4.json", CASES, {"model": "other"}).sha256 != first


@pytest.mark.parametrize(("field", "value"), [("suffix_text", "y"), ("loss", 0.0), ("suffix_ids", [1])])
def test_a_changed_case_is_refused(tmp_path: Path, field: str, value: object) -> None:
    path = tmp_path / "cases.json"
    save_cases(path, CASES)
    content = json.loads(path.read_text())
    content["cases"][1][field] = value
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="checksum") as caught:
        load_cases(path)
    assert caught.value.exit_code == 2
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"sha256": "0", "format": 1}', "{", '{"sha256":"0","cases":[{"a":1}]}']
)
def test_other_files_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "cases.json"
    path.write_text(content)
    with pytest.raises(InputError):
        load_cases(path)
    with pytest.raises(DataMissingError, match="no such file"):
        load_cases(tmp_path / "absent.json")


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
