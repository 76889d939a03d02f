"""Several runners in one run directory: no stage twice, the tables of one runner, and a dead runner's work goes on."""

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from small import forget, small_config

from caryatid.anchors import Anchor, open_anchor
from caryatid.artifacts import RunDirectory, write_json
from caryatid.cli import run as command
from caryatid.config import dump_config
from caryatid.errors import UsageError
from caryatid.progress import NO_PROGRESS
from caryatid.study import leases
from caryatid.study.calibration import kept_rates
from caryatid.study.flow import run_study
from caryatid.study.leases import GONE_AFTER, Leases, live_leases
from caryatid.study.run import open_run
from caryatid.study.runner import _check_alone, opened
from caryatid.study.status import study_status

HERE = Path(__file__).parent


def started(folder: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    """A runner in a process of its own."""
    path = os.pathsep.join([str(HERE), str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "sharing.py"), str(folder), str(out), *more]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def ran(output: str) -> list[str]:
    """Ids of the stages that a runner announced."""
    return [line.split("] ")[1].split(":")[0] for line in output.splitlines() if line.startswith("[")]


def tables(out: Path) -> dict[str, list[dict[str, str]]]:
    """The tables' rows, without what is a time, and without what stages cost."""
    found = {}
    for path in sorted(set((out / "tables").glob("*.csv")) - {out / "tables" / "costs.csv"}):
        with path.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        found[path.name] = [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in rows]
    assert found
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study done by one runner."""
    folder = tmp_path_factory.mktemp("alone")
    process = started(folder, folder / "run")
    output, _ = process.communicate(timeout=500)
    assert process.returncode == 0
    assert len(ran(output)) == len(set(ran(output)))
    return folder


@pytest.mark.slow
def test_two_runners_share_a_study_and_come_to_the_tables_of_one(alone: Path) -> None:
    out = alone / "shared"
    runners = [started(alone, out) for _ in range(2)]
    outputs = [runner.communicate(timeout=500)[0] for runner in runners]
    assert [runner.returncode for runner in runners] == [0, 0]
    first, second = map(ran, outputs)
    assert first
    assert second
    assert not set(first) & set(second)
    assert tables(out) == tables(alone / "run")
    assert not (out / "leases").exists()
    assert {row.state for row in study_status(out)} == {"done"}


@pytest.mark.slow
def test_what_a_dead_runner_held_is_done_by_another(alone: Path) -> None:
    out = alone / "one-died"
    dying, living = started(alone, out, "die"), started(alone, out)
    dying.communicate(timeout=500)
    output, _ = living.communicate(timeout=500)
    assert (dying.returncode, living.returncode) == (9, 0)
    assert len([name for name in ran(output) if name.startswith("train/")]) == 4
    assert tables(out) == tables(alone / "run")
    assert not (out / "leases").exists()


def test_a_lease_is_alive_while_its_process_is_and_while_it_is_touched(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run")
    one, other = Leases(run), Leases(run)
    with one.kept_alive():
        one.take("stage")
        assert set(other.others()) == {"stage", f"runner-{one.owner.token}"} == live_leases(run)
        assert one.others() == {}
        old = time.time() - GONE_AFTER - 60
        os.utime(one.folder / "stage.json", (old, old))
        assert "stage" in other.others()  # its process lives
        other.take("stage")
        one.drop("stage")
        assert set(one.others()) == {"stage"}  # what was taken over is not given up by the first
        later = {**vars(one.owner), "began": "9"}  # another process that has the number of one that is gone
        write_json(one.folder / "later.json", later)
        assert "later" not in live_leases(run)
        assert "later" not in one.others()
        dead = {"host": one.owner.host, "pid": 2**22 + 1, "token": "x", "began": "9"}
        write_json(one.folder / "dead.json", dead)
        assert "dead" not in live_leases(run)
        assert "dead" not in one.others()
        gone = subprocess.Popen([sys.executable, "-c", ""])  # ended, and not waited for before the assertion
        while psutil.Process(gone.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        write_json(one.folder / "zombie.json", dead | {"pid": gone.pid})
        assert "zombie" not in live_leases(run)
        assert "zombie" not in one.others()
        gone.wait()
        write_json(one.folder / "far.json", dead | {"host": "far away"})
        assert "far" in one.others()
        assert "far" in live_leases(run)
        os.utime(one.folder / "far.json", (old, old))
        assert "far" not in live_leases(run)
        os.utime(one.folder / "far.json")
        (one.folder / "damaged.json").write_text("{")
        assert "damaged" not in one.others()
    assert set(other.others()) == {"far"}


def test_leases_are_touched_while_their_runner_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "TOUCH_EVERY", 0.02)
    mine = Leases(RunDirectory.create(tmp_path / "run"))
    with mine.kept_alive():
        mine.take("stage")
        os.utime(mine.folder / "stage.json", (1.0, 1.0))
        for _ in range(500):
            if (mine.folder / "stage.json").stat().st_mtime > 1.0:
                break
            time.sleep(0.01)
        assert (mine.folder / "stage.json").stat().st_mtime > 1.0
    assert not mine.folder.exists()


def test_a_runner_with_another_configuration_is_refused(tmp_path: Path) -> None:
    config = small_config(tmp_path)
    run = RunDirectory.create(tmp_path / "run")
    run.write_manifest({})
    run.config_path.write_text("name: other\n")
    with Leases(run).kept_alive(), pytest.raises(UsageError, match="with another configuration"):
        run_study(config, tmp_path / "run")


def test_a_configuration_written_with_fewer_settings_is_the_same(tmp_path: Path) -> None:
    config = small_config(tmp_path)
    run = RunDirectory.create(tmp_path / "run")
    text = dump_config(config)
    run.config_path.write_text("".join(line for line in text.splitlines(True) if "max_grad_norm" not in line))
    assert run.config_text() != text
    with Leases(run).kept_alive():
        _check_alone(run, config)
        with pytest.raises(UsageError, match="with another configuration"):
            _check_alone(run, config.model_copy(update={"seeds": (7,)}))


def test_one_stage_is_run_where_its_needs_are_done(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    forget(out, "carrier", "verdict")
    for ran in (True, False):
        assert command(["stage", "run", str(out), "carrier/base@0/seed0", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {"stage": "carrier/base@0/seed0", "ran": ran}
    states = {row.id: row.state for row in study_status(out)}
    assert states["carrier/base@0/seed0"] == "done"
    assert states["carrier/sft@1/seed0"] == "missing"
    for name, said in {
        "verdict/base@0-sft@2/seed0": "which is not done",
        "carrier/none": "no stage 'carrier/none'",
    }.items():
        assert command(["stage", "run", str(out), name]) == 2
        assert said in capsys.readouterr().err
    assert not (out / "leases").exists()


def test_a_run_from_a_gpu_is_not_timed_where_there_is_none(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stages that open no model run there; nothing asks for the device's name."""
    monkeypatch.setattr("caryatid.models.load._devices", lambda kind: int(kind == "cpu"))
    study = open_run(finished).study
    elsewhere = replace(study, facts=replace(study.facts, device="cuda"))
    assert kept_rates(elsewhere) is None
    with pytest.raises(UsageError, match="there is no device 'cuda' here"):
        open_anchor(Anchor("base", 0, study.config.model.spec), dtype="float32", device="cuda")


def test_a_runner_says_that_it_waits_for_the_folder(place: Path, finished: Path, tmp_path: Path) -> None:
    out, said = tmp_path / "run", list[str]()
    shutil.copytree(finished, out)
    held = RunDirectory(out).locked()
    held.__enter__()

    def announce(line: str) -> None:
        said.append(line)
        if line.startswith("waiting for another process"):
            held.__exit__(None, None, None)

    with opened(small_config(place), out, NO_PROGRESS, announce):
        pass
    assert said[0].startswith("waiting for another process")
