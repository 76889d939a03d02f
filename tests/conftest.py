"""Shared fixtures. Tiny random models live in `tiny.py`."""

from pathlib import Path

import pytest

import shape_checks

shape_checks.install()  # before anything of caryatid is imported

WHOLE_RUNS = ("study", "report", "docs", "cli")  # folders whose files take longest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Long files first, so that no process is left with one at the end."""
    tests = Path(__file__).parent

    def place(item: pytest.Item) -> int:
        folder = item.path.relative_to(tests).parts[0] if item.path.is_relative_to(tests) else ""
        return WHOLE_RUNS.index(folder) if folder in WHOLE_RUNS else len(WHOLE_RUNS)

    items.sort(key=place)
