"""What commands say: notes about models, options of the chat template, and output on any console."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import caryatid
from caryatid.cli import run
from tiny import CHATML, save_adapter, save_tiny, tiny_tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny") / "modèle → é", "llama")


def narrow(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    """The command in a process whose console knows Windows' Western characters only."""
    roots = [str(Path(caryatid.__file__).parents[1]), str(Path(__file__).parents[1])]
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252", "PYTHONPATH": os.pathsep.join(roots)}
    command = [sys.executable, "-m", "caryatid", *arguments]
    return subprocess.run(command, capture_output=True, env=environment, check=False)


def test_no_result_is_lost_to_a_consoles_encoding(model: Path) -> None:
    found = narrow("models", "check", str(model), "--json")
    assert found.returncode == 0, found.stderr.decode("cp1252")
    assert json.loads(found.stdout.decode("cp1252"))["spec"] == str(model)
    table = narrow("models", "check", str(model))
    assert (table.returncode, b"\\u2192" in table.stdout) == (0, True)
    missing = narrow("models", "check", str(model / "→"))
    assert (missing.returncode, b"Traceback" in missing.stderr, b"\\u2192" in missing.stderr) == (
        3,
        False,
        True,
    )


def test_notes_are_announced_once_for_a_model(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = save_adapter(tmp_path / "zero", size=0.0)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(
        json.dumps({**config, "base_model_name_or_path": str(model)})
    )
    for _ in range(2):
        assert run(["models", "check", str(adapter), "--json"]) == 0
        captured = capsys.readouterr()
        assert [line for line in captured.err.splitlines() if line] == [
            f"note: {adapter}: it changes nothing: all its B are zero"
        ]
        assert len(json.loads(captured.out)["notes"]) == 1


def test_options_of_the_template(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_tiny(tmp_path / "model")
    thinks = CHATML.replace("assistant\n' }}{% endif %}", "assistant\n<think>\n' }}{% endif %}")
    tokenizer = tiny_tokenizer(template="{{ effort | default('') }}" + thinks)
    tokenizer.save_pretrained(folder)
    (tmp_path / "plain.jinja").write_text(CHATML)

    def check(*options: str) -> dict:
        assert run(["models", "check", str(folder), "--json", *options]) == 0
        return json.loads(capsys.readouterr().out)

    found = {way: check("--thinking", way) for way in ("off", "strip", "keep")}
    assert [one["thinking"] for one in found.values()] == ["off", "strip", "keep"]
    assert "</think>" in "".join(found["off"]["post_tokens"]) == "".join(found["strip"]["post_tokens"])
    assert "</think>" not in "".join(found["keep"]["post_tokens"])
    others = [
        check("--template-arg", "effort=high"),
        check("--date", "2026-02-05"),
        check("--template", str(tmp_path / "plain.jinja")),
    ]
    assert others[-1]["thinking"] is None
    assert len({one["identity"] for one in (*found.values(), *others)}) == 6
    assert run(["models", "check", str(folder), "--thinking", "maybe"]) == 2
    assert "Use off, strip or keep" in capsys.readouterr().err


def test_the_output_of_an_attack_is_sent_by_evaluate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from caryatid.behaviour.evaluate import Wanted

    monkeypatch.delenv("CARYATID_DATA", raising=False)
    model = str(save_tiny(tmp_path / "model"))
    asked = next(iter(Wanted(("harmbench",), "embedded").prompts()["harmbench"]))
    behaviours = tmp_path / "b.jsonl"
    behaviours.write_text(json.dumps({"id": asked.id, "prompt": asked.text, "context": asked.context}) + "\n")
    sizes = ["--steps", "1", "--width", "4", "--top-k", "8", "--suffix-length", "3"]
    assert run(["attack", "gcg", "--model", model, "--behaviors", str(behaviours), *sizes, "--json"]) == 0
    printed = capsys.readouterr().out
    suffix = json.loads(printed)["cases"][0]["suffix_text"]
    (tmp_path / "ours.json").write_text(printed)
    (tmp_path / "theirs.json").write_text(json.dumps({asked.id: [f"{asked.user_text} {suffix}"]}))
    shared = ["--suite", "harmbench", "--source", "embedded", "--export-prompts"]
    for name in ("ours", "theirs"):
        out = tmp_path / f"{name}.jsonl"
        arguments = [*shared, str(out), "--cases", str(tmp_path / f"{name}.json")]
        assert run(["evaluate", model, *arguments]) == 0
        (line,) = out.read_text().splitlines()
        assert any(f"{asked.user_text} {suffix}" in str(value) for value in json.loads(line).values())
