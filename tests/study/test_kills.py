"""A study that is killed at random moments, again and again (`benchmarks/kill_study.py` does it 25 times)."""

import random
from pathlib import Path

import pytest

from kill_study import kill_inline, undisturbed

KILLS = 5


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_study_that_is_killed_comes_to_the_tables_of_one_that_is_not(tmp_path: Path) -> None:
    undisturbed(tmp_path / "alone")
    (tmp_path / "killed").mkdir()
    killed = kill_inline(tmp_path / "killed", KILLS, tmp_path / "alone", random.Random(0))
    assert len(killed.kills) >= 3
    assert killed.faults(tmp_path / "alone") == []
