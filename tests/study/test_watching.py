"""A run seen from outside while it is under way."""

import json
import shutil
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text
from small import forget

from caryatid.artifacts import RunDirectory
from caryatid.cli import run as command
from caryatid.errors import UsageError
from caryatid.progress import NO_PROGRESS
from caryatid.study.calibration import measured_rates
from caryatid.study.events import Events, begun
from caryatid.study.forecast import best_forecast, spoken
from caryatid.study.jobs import joined
from caryatid.study.leases import RUNNER, Leases
from caryatid.study.plan import Plan, Planned
from caryatid.study.remaining import Remaining
from caryatid.study.run import open_run
from caryatid.study.todo import Todo
from caryatid.study.watching import Watch


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No device was timed."""
    monkeypatch.setenv("CARYATID_CACHE", str(tmp_path / "cache"))


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


def test_what_is_left_is_told_by_kinds_and_by_the_timing_of_the_device(copy: Path) -> None:
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
    measured_rates(run.study)
    assert Watch(copy).look().left.startswith("about ")


def test_the_stage_in_hand_is_that_of_a_run_that_is_held(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = open_run(copy)
    entry = run.plan["verdict/base@0-sft@1/seed0"]
    folder = entry.folder(run.directory)
    shutil.rmtree(folder.path)
    folder.begin()
    watch = Watch(copy)
    assert watch.look().running == ""
    leases = Leases(RunDirectory(copy))
    with leases.kept_alive():
        assert watch.look().running == ""
        leases.take(entry.key)
        before = watch.look()
        assert before.running == entry.id
        Events(copy).write("stage_started", stage=entry.id, key=entry.key)
        now = begun(copy)[entry.id] + 600
        monkeypatch.setattr("caryatid.study.watching.time.time", lambda: now)
        after = watch.look()
        assert after.seconds == pytest.approx(600)
        assert after.left == "about 3 min left"  # three tenths of what it has run for, long overdue
    folder.fail(ValueError("it broke"))
    assert "failed: verdict/base@0-sft@1/seed0: it broke" in watch.look().line


def left_said(lines: list[str], todo: Todo, entry: Planned) -> str:
    """What a runner says is left when a stage begins, with 100 s for each stage."""
    todo.remaining = Remaining(todo.plan, {one.id: 100.0 for one in todo.plan})
    for one in todo.plan:
        if one.key not in todo.left:
            todo.remaining.finished(one, 100.0)
    todo.announce(entry)
    return lines[-1].rpartition("; ")[2]


def begun_before(run: Path, seconds: float, entry: Planned) -> None:
    """Write that a stage was begun so long ago."""
    time = datetime.now(UTC) - timedelta(seconds=seconds)
    with (run / "events.jsonl").open("a", encoding="utf-8") as stream:
        line = {"time": time.isoformat(), "event": "stage_started", "stage": entry.id, "key": entry.key}
        stream.write(json.dumps(line) + "\n")


def test_a_runner_shares_what_is_left_with_those_beside_it(copy: Path) -> None:
    forget(copy, "transfer")
    lines = list[str]()
    with joined(copy, NO_PROGRESS, lines.append) as session:
        todo = Todo(session, session.plan)
        waiting = list(todo.left.values())
        count, first, held = len(waiting), waiting[0], waiting[1]
        assert not any(need.key in todo.left for one in waiting[:4] for need in one.needs)
        assert left_said(lines, todo, first) == f"about {spoken(100 * count)} left"
        beside = Leases(session.run)  # of this process, which is alive
        with session.run.locked(wait=True):
            beside.take(RUNNER + "another")
            beside.take(held.key)
            todo.taken()
        begun_before(copy, 60, held)
        half = (100 * count - 60) / 2
        assert left_said(lines, todo, first) in {f"about {spoken(half - late)} left" for late in (0, 1)}
        alone = Todo(session, Plan(session.plan.study, tuple(waiting[2:5])), workers=1)
        assert left_said(lines, alone, waiting[2]) == "about 5 min left"
        many = Todo(session, session.plan, workers=4)
        assert left_said(lines, many, first).startswith(f"about {spoken((100 * count - 60) / 4)[:5]}")


def test_what_was_run_in_parts_or_elsewhere_tells_no_time(copy: Path) -> None:
    forget(copy, "transfer")
    with joined(copy, NO_PROGRESS, lambda _line: None) as session:
        (cases,) = (entry for entry in session.plan if entry.stage.kind == "cases")
        assert cases.stage.parts() > 1
        answers = next(entry for entry in session.plan if entry.stage.kind == "answers")
        todo = Todo(session, session.plan)
        assert todo._took(cases) is not None
        assert todo._took(cases, earlier=True) is None
        assert Todo(session, session.plan, workers=2)._took(cases) is None
        assert todo._took(answers, earlier=True) == answers.folder(session.run).seconds()
        manifest = answers.folder(session.run).manifest_path
        manifest.write_text(manifest.read_text().replace('"device": "cpu"', '"device": "cuda"'))
        assert todo._took(answers, earlier=True) is None


def test_half_a_line_of_events_is_passed_over(copy: Path) -> None:
    before = begun(copy)
    with (copy / "events.jsonl").open("ab") as stream:
        stream.write('{"event": "stage_started", "stage": "é'.encode()[:-1])
    assert begun(copy) == before != {}


def test_a_runner_guesses_where_no_device_was_timed_and_learns_from_what_is_done(copy: Path) -> None:
    forget(copy, "transfer")
    with joined(copy, NO_PROGRESS, lambda _line: None) as session:
        todo = Todo(session, session.plan)
        assert todo.remaining.guessed
        assert {entry.key for entry in todo.remaining.entries} == set(todo.left)
        found = best_forecast(session.plan, session.settled_prompts)
        assert found is not None
        fresh = Remaining(session.plan, found.seconds, guessed=True)
        assert todo.remaining._overall() != fresh._overall() == 1.0
        measured_rates(session.study)
        assert not Todo(session, session.plan).remaining.guessed


def test_it_is_shown_live_and_ctrl_c_ends_it(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forget(copy, "verdict")

    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("caryatid.cli.watching.time.sleep", interrupt)
    assert command(["study", "status", str(copy), "--watch"]) == 0
    line = capsys.readouterr().out.strip()
    assert line.endswith("; nothing is running")  # and nothing to go by: no verdict has finished
    shown = StringIO()
    screen = Console(file=shown, force_terminal=True, width=200)
    monkeypatch.setattr("caryatid.cli.watching.out", screen)
    assert command(["study", "status", str(copy), "--watch"]) == 0
    written = Text.from_ansi(shown.getvalue()).plain
    assert line in written
    assert "0/6" in next(row for row in written.splitlines() if row.startswith("verdict"))


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a run directory"):
        Watch(tmp_path)
