"""The documentation site: builds strictly, and every block of code says what it is."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="mkdocs-material is not installed")
def test_the_site_builds_and_has_every_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    commands = re.findall(r"<h2[^>]*>(caryatid[ \w-]*)", (tmp_path / "cli.html").read_text(encoding="utf-8"))
    assert {"caryatid", "caryatid study run", "caryatid compare", "caryatid report", "caryatid demo"} <= set(
        commands
    )
    assert (tmp_path / "index.html").exists()
    assert not list(tmp_path.rglob("*.py"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_of_code_says_what_it_is(page: Path) -> None:
    fences = re.findall(r"^```(.*)$", page.read_text(encoding="utf-8"), re.M)
    assert len(fences) % 2 == 0
    unmarked = [number for number, mark in enumerate(fences[::2], 1) if not mark.strip()]
    assert unmarked == [], f"blocks without a language: {unmarked}"
