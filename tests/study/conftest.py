"""The small study, run once for all tests that only read it or bring it back as it was."""

from pathlib import Path

import pytest
from shared_study import copied_study, study_place


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where its model and configuration are."""
    return study_place(tmp_path_factory)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its run directory."""
    return copied_study(tmp_path_factory)
