"""Token filters of these tests are computed, never read from the user's cache."""

from pathlib import Path

import pytest

from caryatid.attacks.gcg import candidates


@pytest.fixture(autouse=True)
def filter_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("filters")
    monkeypatch.setattr(candidates, "cache_dir", lambda: folder)
    return folder
