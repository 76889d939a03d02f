"""A search of a block: kept while it runs, ended early where that is asked for."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import killed
from caryatid.attacks.gcg import search, steps
from caryatid.attacks.gcg.settings import GcgSettings
from caryatid.errors import InputError

EARLY = replace(killed.SETTINGS, steps=12)


class Interrupted(Exception):
    pass


class Stopping:
    """Progress that ends the search after so many steps, over all goals."""

    def __init__(self, after: int) -> None:
        self.after, self.seen, self.total = after, 0, 0

    def start(self, label: str, total: int | None) -> None:
        self.total = total or 0

    def advance(self, n: int = 1) -> None:
        self.seen += n
        if self.seen >= self.after:
            raise Interrupted

    def done(self) -> None:
        pass


@pytest.fixture
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "KEEP_EVERY", 0.0)


@pytest.mark.slow
def test_a_killed_search_goes_on_where_it_was(tmp_path: Path) -> None:
    """Three SIGKILLs at random moments after a state was kept: the results are those of an undisturbed search."""
    draw = random.Random(0)
    script = [sys.executable, killed.__file__, str(tmp_path)]
    taken = []
    for _ in range(3):
        before = _taken(tmp_path)
        process = subprocess.Popen(script, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
        while process.poll() is None and _taken(tmp_path) <= before:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        taken.append(_taken(tmp_path))
    assert 0 < taken[0] < taken[1] < taken[2] < killed.SETTINGS.steps
    resumed = killed.attacked(killed.SETTINGS, out=tmp_path)
    assert resumed == killed.attacked(killed.SETTINGS)
    assert _taken(tmp_path) == 0


def _taken(folder: Path) -> int:
    """Steps in the state that is kept, 0 if none is."""
    states = list(folder.glob("cases/[!.]*.state"))
    return len(json.loads(states[0].read_text())["states"][0]["losses"]) - 1 if states else 0


@pytest.mark.usefixtures("every_step")
def test_steps_that_were_kept_are_not_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, taken = killed.attacked(EARLY), []
    with pytest.raises(Interrupted):
        killed.attacked(EARLY, out=tmp_path, progress=Stopping(3 * 8 - 2))
    assert _taken(tmp_path) == 7  # the eighth step was under way

    def counted(*given: Any) -> Any:
        taken.append(given)
        return steps.gcg_step(*given)

    monkeypatch.setattr(search, "gcg_step", counted)
    progress = Stopping(10**6)
    assert killed.attacked(EARLY, out=tmp_path, progress=progress) == whole
    assert len(taken) == 12 - 7
    assert progress.seen == progress.total == 3 * 12


def test_nothing_is_kept_of_a_short_search(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        killed.attacked(EARLY, out=tmp_path, progress=Stopping(10))
    assert _taken(tmp_path) == 0


@pytest.mark.usefixtures("every_step")
def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        killed.attacked(EARLY, out=tmp_path, progress=Stopping(10))
    (file,) = tmp_path.glob("cases/*.state")
    file.write_text(file.read_text()[:-100])
    with pytest.raises(InputError, match=r"\.state.*Delete this file"):
        killed.attacked(EARLY, out=tmp_path)


def _threshold() -> float:
    """A loss that some goals of the undisturbed search fall below before its end, and others never."""
    ends = sorted((row["loss"], row["behavior_id"]) for row in killed.attacked(EARLY))
    return (ends[0][0] + ends[1][0]) / 2


@pytest.mark.usefixtures("every_step")
def test_a_goal_ends_once_its_loss_is_below(tmp_path: Path) -> None:
    below = _threshold()
    settings = replace(EARLY, stop_below=below)
    whole = {row["behavior_id"]: row for row in killed.attacked(EARLY)}
    progress = Stopping(10**6)
    found = killed.attacked(settings, progress=progress)
    assert sorted(row["stopped"] for row in found) == ["steps", "steps", "stop_below"]
    assert progress.seen == progress.total
    for row in found:
        assert row["steps"] == len(row["losses"]) - 1
        assert row["losses"] == pytest.approx(whole[row["behavior_id"]]["losses"][: row["steps"] + 1])
        if row["stopped"] == "stop_below":
            assert row["loss"] < below <= row["losses"][-2]
            assert row["candidates"] == 6 * row["steps"] < whole[row["behavior_id"]]["candidates"]
        else:
            assert row["steps"] == 12
    (least,) = [row["steps"] for row in found if row["stopped"] == "stop_below"]
    for after in (3 * least - 1, 3 * 12 - 1):  # before and after the goal has left the block
        with pytest.raises(Interrupted):
            killed.attacked(settings, out=tmp_path / str(after), progress=Stopping(after))
        assert killed.attacked(settings, out=tmp_path / str(after)) == found


def test_goals_that_begin_below_take_no_step() -> None:
    found = killed.attacked(replace(EARLY, stop_below=100.0))
    assert [(row["steps"], row["stopped"], len(row["losses"])) for row in found] == [(0, "stop_below", 1)] * 3
    assert GcgSettings().stop_below is None
