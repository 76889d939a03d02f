"""The tutorial notebook: its cells run in order, and show what its text says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def test_the_notebook_is_stored_without_outputs() -> None:
    notebook = HERE.parent / "examples" / "tutorial.ipynb"
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        assert not cell.get("outputs")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_cells_of_the_tutorial_run_in_order(tmp_path: Path) -> None:
    path = os.pathsep.join(filter(None, [str(HERE.parent / "src"), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, str(HERE / "tutorial_cells.py")],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
