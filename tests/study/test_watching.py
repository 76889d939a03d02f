"""A run seen from outside while it is under way."""

import shutil
from pathlib import Path

import pytest
from small import forget

from caryatid.artifacts import RunDirectory
from caryatid.cli import run as command
from caryatid.errors import UsageError
from caryatid.study.run import open_run
from caryatid.study.watching import Watch


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def test_a_finished_run(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    look = Watch(finished).look()
    assert look.finished
    count = len(open_run(finished).plan)
    assert command(["study", "status", str(finished), "--watch"]) == 0  # ends by itself
    assert capsys.readouterr().out.strip() == f"{count} of {count} stages: finished"


def test_what_is_left_is_told_by_kinds_and_by_the_timing_of_the_device(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CARYATID_CACHE", str(tmp_path / "cache"))
    run = open_run(copy)
    for entry in [one for one in run.plan if one.stage.kind == "selection"][1:]:
        shutil.rmtree(entry.folder(run.directory).path)
    look = Watch(copy).look()
    assert not look.finished
    assert (look.kinds["selection"].done, look.kinds["selection"].total) == (1, 5)
    assert "nothing is running" in look.line
    assert look.left.startswith("about ")
    forget(copy, "transfer")
    assert Watch(copy).look().left.startswith("at least ")  # none of that kind has finished


def test_the_stage_in_hand_is_that_of_a_run_that_is_held(copy: Path) -> None:
    run = open_run(copy)
    entry = run.plan["verdict/base@0-sft@1/seed0"]
    folder = entry.folder(run.directory)
    shutil.rmtree(folder.path)
    folder.begin()
    watch = Watch(copy)
    assert watch.look().running == ""
    with RunDirectory(copy).locked():
        assert watch.look().running == entry.id
    folder.fail(ValueError("it broke"))
    assert "failed: verdict/base@0-sft@1/seed0: it broke" in watch.look().line


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a run directory"):
        Watch(tmp_path)
