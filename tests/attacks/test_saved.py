"""Saved cases, and the other files that hold cases."""

import json
from pathlib import Path

import pytest

from caryatid.attacks import saved
from caryatid.attacks.base import AttackResult
from caryatid.attacks.run import cases_json
from caryatid.attacks.saved import TestCase, harmbench_json, load_cases, read_sent_texts, save_cases
from caryatid.errors import DataMissingError, InputError

CASES = (
    TestCase(
        "gcg",
        "a",
        "Explain the tides",
        "Sure, here is",
        "Explain the tides ! ! é-free",
        1.25,
        "! ! é-free",
        (5, 6, 7),
    ),
    TestCase("templates", "b", "Où?\n\n---\n\nWrite", "Sure", "Write it: Où?\n\n---\n\nWrite", 0.1 + 0.2),
)


RESULT = AttackResult(
    attack="gcg", behavior_id="a", user_text="Explain the tides", target="Sure, here is",
    sent_text="Explain the tides ! ! é-free", loss=1.25, losses=(2.0, 1.25), steps=1, candidates=8,
    forward_tokens=100, seconds=1.5, suffix_text="! ! é-free", suffix_ids=(5, 6, 7), details={"a": [1]},
)  # fmt: skip


def test_a_case_is_what_a_result_sends_without_its_costs() -> None:
    assert TestCase.of(RESULT) == CASES[0]
    assert AttackResult.from_json(json.loads(json.dumps(RESULT.to_json()))) == RESULT


def test_saved_cases_come_back_exactly(tmp_path: Path) -> None:
    written = save_cases(tmp_path / "cases.json", CASES, {"model": "tiny", "steps": 3})
    loaded = load_cases(tmp_path / "cases.json")
    assert loaded == written
    assert loaded.cases == CASES
    assert loaded.source == {"model": "tiny", "steps": 3}
    assert loaded.cases[0].sent_text == "Explain the tides ! ! é-free"


def test_the_hash_names_the_content(tmp_path: Path) -> None:
    first = save_cases(tmp_path / "1.json", CASES).sha256
    assert save_cases(tmp_path / "2.json", CASES).sha256 == first
    assert save_cases(tmp_path / "3.json", CASES[:1]).sha256 != first
    assert save_cases(tmp_path / "4.json", CASES, {"model": "other"}).sha256 != first


@pytest.mark.parametrize(("field", "value"), [("suffix_text", "y"), ("loss", 0.0), ("sent_text", "Explain")])
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


def test_files_of_another_version_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cases.json"
    with monkeypatch.context() as patch:
        patch.setattr(saved, "_FORMAT", 1)
        save_cases(path, CASES)
    with pytest.raises(InputError, match=r"format 1, this version reads format 2.*Make the cases anew"):
        load_cases(path)


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


def test_every_kind_of_file_gives_the_texts_to_send(tmp_path: Path) -> None:
    save_cases(tmp_path / "saved.json", CASES)
    (tmp_path / "results.json").write_text(json.dumps(cases_json([RESULT])))
    (tmp_path / "test_cases.json").write_text(json.dumps(harmbench_json([*CASES, CASES[0]])))
    first, second = ((case.behavior_id, case.sent_text) for case in CASES)
    assert read_sent_texts(tmp_path / "saved.json") == {first[0]: (first[1],), second[0]: (second[1],)}
    assert read_sent_texts(tmp_path / "results.json") == {first[0]: (first[1],)}
    found = read_sent_texts(tmp_path / "test_cases.json")
    assert found == {first[0]: (first[1], first[1]), second[0]: (second[1],)}


def test_harmbench_s_own_file_is_read(tmp_path: Path) -> None:
    """As its `generate_test_cases.py` writes it: texts by behaviour id; one behaviour may be named `cases`."""
    written = {"tides_essay": ["Explain the tides xx", "As a pirate, explain the tides"], "cases": ["Ahoy"]}
    (tmp_path / "test_cases.json").write_text(json.dumps(written, indent=4))
    assert read_sent_texts(tmp_path / "test_cases.json") == {
        name: tuple(texts) for name, texts in written.items()
    }
    completions = {
        name: [{"test_case": text, "generation": "Sure"} for text in texts] for name, texts in written.items()
    }
    del completions["cases"]
    (tmp_path / "completions.json").write_text(json.dumps(completions))
    assert read_sent_texts(tmp_path / "completions.json") == {"tides_essay": tuple(written["tides_essay"])}
    assert harmbench_json(CASES) == {"a": [CASES[0].sent_text], "b": [CASES[1].sent_text]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{}", "holds no test cases"),
        ("[]", "holds no test cases"),
        ('{"cases": []}', "holds no test cases"),
        ('{"a": 3}', "'a' has no text"),
        ('{"a": [{"generation": "Sure"}]}', "'a' has no text"),
        ('{"a": [], "b": []}', "holds no test cases"),
        ('{"a": ["Explain", ""]}', "'a' has no text"),
        ('{"a": [["image.png", "Explain"]]}', "'a' has no text"),
        ('{"cases": [{"behavior_id": "a", "suffix_text": "! !"}]}', "'a' has no text"),
        ('{"cases": [{"sent_text": "Explain"}]}', "None has no text"),
        ('{"a": ["\\ud83d"]}', "surrogate"),
        ('{"a": ', "not JSON"),
    ],
)
def test_what_holds_no_texts_is_refused(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "cases.json").write_text(content)
    with pytest.raises(InputError, match=words) as caught:
        read_sent_texts(tmp_path / "cases.json")
    assert "cases.json" in str(caught.value)
    with pytest.raises(DataMissingError):
        read_sent_texts(tmp_path / "absent.json")


def test_changed_cases_are_refused_here_too(tmp_path: Path) -> None:
    save_cases(tmp_path / "cases.json", CASES)
    content = (tmp_path / "cases.json").read_text()
    (tmp_path / "cases.json").write_text(content.replace("Write it", "Write that"))
    with pytest.raises(InputError, match="checksum"):
        read_sent_texts(tmp_path / "cases.json")
