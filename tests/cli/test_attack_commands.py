"""`caryatid attack NAME`: one interface and one format, and `evaluate --cases` sends what each of them found."""

import json
from pathlib import Path

import pytest

from caryatid.attacks.builtin import attack_named
from caryatid.behaviour.evaluate import evaluation_set
from caryatid.cli import run
from tiny import save_tiny

SMALL = {
    "gcg": ["--steps", "1", "--width", "4", "--top-k", "8", "--suffix-length", "3"],
    "autodan": ["--steps", "2", "--width", "11", "--mutation", "1.0"],
    "prefill": ["--tokens", "2"],
    "templates": [],
    "random_search": ["--steps", "3", "--suffix-length", "3", "--objective", "target"],
    "embedding": ["--steps", "2", "--suffix-length", "3", "--radius", "0.5"],
    "best_of_n": ["--steps", "2", "--width", "2", "--max-new-tokens", "2"],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("tiny") / "model", "llama"))


def test_every_attack_has_a_command_with_its_settings(capsys: pytest.CaptureFixture[str]) -> None:
    from dataclasses import fields

    for name in SMALL:
        assert run(["attack", name, "--help"]) == 0
        shown = " ".join(capsys.readouterr().out.split())
        for one in fields(attack_named(name).settings):  # type: ignore[arg-type]  # every settings class is a dataclass
            assert f"--{one.name.replace('_', '-')}" in shown, (name, one.name)
        assert f"caryatid attack {name} --model" in shown


@pytest.mark.parametrize("name", list(SMALL))
def test_cases_of_every_attack_are_printed_kept_and_sent(
    name: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = evaluation_set("harmbench", "embedded").prompts[:2]
    lines = ["prompt,id", *(f'"{prompt.text}",{prompt.id}' for prompt in chosen)]
    (tmp_path / "b.csv").write_text("\n".join(lines))
    command = ["attack", name, "--model", model, "--behaviors", str(tmp_path / "b.csv"), *SMALL[name]]
    out = str(tmp_path / "out")
    assert run([*command, "--out", out, "--json"]) == 0
    printed = capsys.readouterr().out
    found = json.loads(printed)["cases"]
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == json.loads(printed)
    assert {case["attack"] for case in found} == {name}
    assert [case["behavior_id"] for case in found] == [prompt.id for prompt in chosen]
    assert all(case["steps"] == max(len(case["losses"]) - 1, 0) for case in found)
    evaluate = ["evaluate", model, "--suite", "harmbench", "--source", "embedded", "--max-new-tokens", "4"]
    assert run([*evaluate, "--cases", f"{out}/results.json", "--show-answers", "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)["answers"]
    assert [row["user_text"] for row in answers] == [case["sent_text"] for case in found]
    beyond = name in ("prefill", "embedding")
    code = run([*command, "--out", out, "--test-cases", str(tmp_path / "cases.json")])
    shown = capsys.readouterr()
    assert code == (2 if beyond else 0)
    assert ("is no text" in shown.err) == beyond
    form = {"prefill": "begun answer", "embedding": "embeddings"}.get(name, "text")
    assert form in shown.out
    assert (tmp_path / "cases.json").exists() != beyond


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["random_search", "--objective", "all"], "objective 'all' is not one of first_token, target"),
        (["embedding", "--rate", "0"], "rate 0.0 must be above 0"),
        (["templates", "--file", "absent.json"], "absent.json"),
        (["autodan", "--elites", "2"], "elites 2.0 must be at most 1"),
    ],
)
def test_wrong_settings_are_one_line(
    arguments: list[str], words: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "b.csv").write_text("prompt\nAhoy\n")
    name, *rest = arguments
    assert run(["attack", name, "--model", model, "--behaviors", str(tmp_path / "b.csv"), *rest]) in (2, 3)
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1
    assert words in errors[0]
