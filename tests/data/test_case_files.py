"""Attack cases of several sources give the suffixes that are sent."""

import json
from pathlib import Path

import pytest
from caryatid.attacks.cases import TestCase, save_cases

from caryatid.data.case_files import read_case_suffixes
from caryatid.errors import InputError

TEXTS = {"tides": "Explain the tides", "poem": "A story\n\n---\n\nWrite a poem", "other": "Else"}
SUFFIXES = {"tides": "! ! é", "poem": "x y"}


def written(path: Path, kind: str) -> Path:
    if kind == "saved":
        save_cases(
            path, [TestCase(name, TEXTS[name], "Sure", text, (1,), 0.5) for name, text in SUFFIXES.items()]
        )
    elif kind == "printed":
        rows = [{"behavior_id": name, "suffix_text": text, "loss": 1.0} for name, text in SUFFIXES.items()]
        path.write_text(json.dumps({"cases": rows}))
    else:
        whole = {name: f"{TEXTS[name]} {text}" for name, text in SUFFIXES.items()}
        forms = {
            "texts": lambda t: [t],
            "objects": lambda t: [{"test_case": t, "generation": "…"}],
            "bare": lambda t: t,
        }
        path.write_text(json.dumps({name: forms[kind](text) for name, text in whole.items()}))
    return path


@pytest.mark.parametrize("kind", ["saved", "printed", "texts", "objects", "bare"])
def test_suffixes_of_every_source(kind: str, tmp_path: Path) -> None:
    path = written(tmp_path / "cases.json", kind)
    assert read_case_suffixes(path, TEXTS) == SUFFIXES
    assert read_case_suffixes(path, {"tides": TEXTS["tides"]}) == {"tides": "! ! é"}
    with pytest.raises(InputError, match=r"none of its 2 behaviours \(tides, poem, …\) is asked"):
        read_case_suffixes(path, {"other": "Else"})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "not a file of attack cases"),
        ("{", "not JSON"),
        ('{"cases": []}', "no attack cases"),
        ('{"cases": [{"behavior_id": "tides"}]}', "case 1: no `behavior_id` and `suffix_text`"),
        ('{"tides": []}', "tides: no list of test cases"),
        ('{"tides": ["Explain the tides a", "Explain the tides b"]}', "2 test cases for one behaviour"),
        ('{"tides": ["Once upon a time"]}', "does not begin with the behaviour"),
        ('{"tides": [3]}', "no text"),
        ('{"cases": [{"behavior_id": "tides", "suffix_text": "a"}, {"behavior_id": "tides", "suffix_text": "b"}]}',
         "case 2: a second case for tides"),
        ('{"sha256": "0", "cases": [{"behavior_id": "tides", "suffix_text": "a"}]}', "checksum differs"),
        ('{"tides": ["Explain the tides \\ud83d"]}', "half a surrogate"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_used(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "cases.json"
    path.write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        read_case_suffixes(path, TEXTS)
    assert "\n" not in str(caught.value)
