"""The small study, run once for all tests that only read it or bring it back as it was."""

from pathlib import Path

import pytest
from small import small_config

from caryatid.study.flow import run_study


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where its model and configuration are."""
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="session")
def finished(place: Path) -> Path:
    """Its run directory."""
    return run_study(small_config(place), place / "run").directory
