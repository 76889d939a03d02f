"""Shared fixtures. Tiny random models live in `tiny.py`."""

import gc
from collections.abc import Generator
from pathlib import Path

import pytest

import shape_checks

shape_checks.install()  # before anything of caryatid is imported

# Folders whose files take longest.
LONG = ("study", "report", "docs", "cli", "training", "causal", "data")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported stays: the garbage collector need not go through it, neither now nor after every stage."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Long files first, so that no process is left with one at the end."""
    tests = Path(__file__).parent

    def place(item: pytest.Item) -> int:
        folder = item.path.relative_to(tests).parts[0] if item.path.is_relative_to(tests) else ""
        return LONG.index(folder) if folder in LONG else len(LONG)

    items.sort(key=place)
