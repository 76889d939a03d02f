"""Runs the tutorial's cells in order and checks what its text says. Run as a script, in an empty folder.

In a process of its own, because the shape checks of a test's process take as long as the models do.
"""

import ast
import contextlib
import io
import json
from pathlib import Path
from typing import Any

import caryatid
from caryatid.study.page import write_figures

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


def check() -> None:
    """Run all cells here, then look at what they left and said."""
    shown: list[Any] = []
    names: dict[str, Any] = {"display": shown.append}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        values = [value for code in cells() if (value := run_cell(code, names)) is not None]
    said = printed.getvalue()
    run = names["run"]
    assert isinstance(run, caryatid.Run)
    assert names["verdict"] == run.verdict("r2d2", 0, 3)
    assert all(reason in said for reason in names["verdict"].reasons)
    lines = dict(line.split(": ", 1) for line in said.splitlines() if ": " in line)
    assert lines["as it is"] != lines["carrier added"]
    (verdicts,) = (value for value in values if isinstance(value, dict) and "carrier ablated" in value)
    refused = {name: sum("refusal" in one for one in found) for name, found in verdicts.items()}
    assert refused["as it is"] > refused["carrier ablated"], refused
    # Every figure is shown, and no answer to a harmful request is.
    answers = names["model"].generate(names["requests"], max_new_tokens=24)
    for answer, verdict in zip(answers, verdicts["as it is"], strict=True):
        assert verdict == "full_refusal" or answer.text not in f"{said}{values}"
    assert shown == list(run.figures().values())
    assert write_figures(run) == len(shown)
    assert {file.stem for file in Path("runs/tutorial/figures").iterdir()} == set(names["figures"])
    assert (names["found"].carrier is None) == (names["found"].facts["reason"] is not None)


if __name__ == "__main__":
    check()
