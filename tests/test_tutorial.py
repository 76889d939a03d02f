"""The tutorial notebook: its cells run in order, and show what its text says."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest

import caryatid

NOTEBOOK = Path(__file__).parents[1] / "examples" / "tutorial.ipynb"


def cells() -> list[str]:
    """The code cells, in order."""
    read = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in read if cell["cell_type"] == "code"]


def run_cell(code: str, names: dict[str, Any]) -> Any:
    """Execute a cell as a notebook does; the value of its last line, if that is an expression."""
    body = ast.parse(code, str(NOTEBOOK)).body
    last = body.pop() if isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), str(NOTEBOOK), "exec"), names)
    return eval(compile(ast.Expression(last.value), str(NOTEBOOK), "eval"), names) if last else None


def test_the_notebook_is_stored_without_outputs() -> None:
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        assert not cell.get("outputs")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_cells_of_the_tutorial_run_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shown: list[Any] = []
    names: dict[str, Any] = {"display": shown.append}
    values = [value for code in cells() if (value := run_cell(code, names)) is not None]
    said = capsys.readouterr().out
    run = names["run"]
    assert isinstance(run, caryatid.Run)
    assert names["verdict"] == run.verdict("r2d2", 0, 3)
    assert all(reason in said for reason in names["verdict"].reasons)
    lines = dict(line.split(": ", 1) for line in said.splitlines() if ": " in line)
    assert lines["as it is"] != lines["carrier added"]
    (verdicts,) = (value for value in values if isinstance(value, dict) and "carrier ablated" in value)
    refused = {name: sum("refusal" in one for one in found) for name, found in verdicts.items()}
    assert refused["as it is"] > refused["carrier ablated"]
    # Every figure is shown, and no answer to a harmful request is.
    answers = names["model"].generate(names["requests"], max_new_tokens=24)
    for answer, verdict in zip(answers, verdicts["as it is"], strict=True):
        assert verdict == "full_refusal" or answer.text not in f"{said}{values}"
    assert shown == list(run.figures().values())
    assert {file.stem for file in (tmp_path / "runs" / "tutorial" / "figures").iterdir()} == set(
        names["figures"]
    )
    assert (names["found"].carrier is None) == (names["found"].facts["reason"] is not None)
