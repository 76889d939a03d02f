"""What a newcomer meets first: `caryatid` alone, help with examples that work, completion, and the doctor."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from caryatid.cli import app, run
from caryatid.single.doctor import Finding


def leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command with its words, groups left out."""
    for name, below in getattr(command, "commands", {}).items():
        yield from leaves(below, (*path, name))
    if not hasattr(command, "commands"):
        yield path, command


ROOT: Any = typer.main.get_command(app)
COMMANDS = dict(leaves(ROOT))
GROUPS = [(), *((name,) for name, below in ROOT.commands.items() if hasattr(below, "commands"))]


def test_all_commands_are_walked() -> None:
    assert {
        ("demo",),
        ("doctor",),
        ("study", "plan"),
        ("judge", "refusal"),
        ("attack", "gcg"),
    } <= COMMANDS.keys()


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_shows_an_example_that_the_command_accepts(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*words, "--help"]) == 0
    start = f"Example: caryatid {' '.join(words)}"
    assert start in " ".join(capsys.readouterr().out.split())
    arguments = shlex.split(COMMANDS[words].epilog.removeprefix(start))
    with COMMANDS[words].make_context(" ".join(words), arguments) as context:  # parses, and runs nothing
        assert context.params


@pytest.mark.parametrize("words", GROUPS, ids=" ".join)
def test_lists_of_commands_say_whole_sentences_at_80_columns(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run([*words, "--help"]) == 0
    listed = capsys.readouterr().out.partition("Commands:")[2]
    assert listed
    assert "..." not in listed


def test_alone_it_says_what_to_do_next(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["demo", "doctor", "study"]
    for line in lines:
        words = tuple(line.split("   ")[0].split()[1:])
        assert words[:1] in COMMANDS or words[:2] in COMMANDS


def command(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "caryatid", *arguments],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_shell_completes_commands(tmp_path: Path) -> None:
    words = {"COMP_WORDS": "caryatid study st", "COMP_CWORD": "2"}
    found = command(_CARYATID_COMPLETE="complete_bash", **words)
    assert found.stdout.split() == ["status"]
    named = {"HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    assert command("--install-completion", "bash", **named).returncode == 0
    written = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert any("_CARYATID_COMPLETE=complete_bash" in text for text in written)


def test_the_doctor_prints_findings_and_returns_the_code_of_what_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [
        Finding("disk", "FAIL", "full", "Free space.", 2),
        Finding("embedded", "FAIL", "not here", "Install it.", 3),
        Finding("data", "note", "not here", "Fetch it."),
    ]
    monkeypatch.setattr("caryatid.single.doctor.examine", lambda *_, **__: iter(found))
    assert run(["doctor", "--json"]) == 3
    printed = json.loads(capsys.readouterr().out)
    assert printed["exit_code"] == 3
    assert [row["remedy"] for row in printed["findings"]] == ["Free space.", "Install it.", "Fetch it."]
    found.pop(1)
    assert run(["doctor"]) == 2
    assert "Free space." in capsys.readouterr().out
    found.pop(0)
    assert run(["doctor"]) == 0
