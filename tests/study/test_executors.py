"""Executors: jobs are what can run together, parts come to the whole, failures come back, and extras are named."""

import importlib.util
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from small import forget, small_config
from test_runners import tables

from caryatid.cli import run as command
from caryatid.errors import NumericalError
from caryatid.progress import NO_PROGRESS
from caryatid.study.executors.base import Outcome, Sending
from caryatid.study.executors.slurm import Begun
from caryatid.study.jobs import Failure, Job, run_job, run_stages
from caryatid.study.runner import opened
from caryatid.study.stages.carrier import ChosenCarrier


class _OneByOne:
    """A place that runs each job when it is sent."""

    workers = 2

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.closed = 0

    def submit(self, jobs: Sequence[Job]) -> list[Failure | None]:
        self.jobs += jobs
        return [run_job(job) for job in jobs]

    def outcome(self, handle: Failure | None) -> Outcome:
        return Outcome(handle)

    def cancel(self, handles: Sequence[Any]) -> None:
        assert not handles

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished study, of which some stages are forgotten."""
    copied = shutil.copytree(finished, tmp_path / "run")
    forget(copied, "cases", "carrier", "uncertainty", "comparison", "verdict")
    return copied


def _sent(place: Path, out: Path) -> tuple[_OneByOne, list[str]]:
    there = _OneByOne()
    with opened(small_config(place), out, NO_PROGRESS, lambda _line: None) as session:
        ran = Sending(session, session.plan, there).run()
    return there, ran


def test_jobs_hold_what_shares_a_model_and_stages_are_split_in_parts(place: Path, out: Path) -> None:
    there, ran = _sent(place, out)
    assert [job for job in there.jobs if job.stages == ("cases/seed0",)] == [
        Job(str(out), ("cases/seed0",), shard) for shard in ((1, 2), (2, 2), None)
    ]
    together = [job.stages for job in there.jobs if job.stages[0].startswith("carrier/sft@1")]
    assert together == [("carrier/sft@1/seed0", "uncertainty/sft@1/seed0")]
    pairs = [job.stages for job in there.jobs if job.stages[0].startswith(("comparison", "verdict"))]
    assert len(pairs) == 2  # one for each worker; a verdict follows the comparison that it needs
    for stages in pairs:
        seen: set[str] = set()
        for name in stages:
            kind, _, where = name.partition("/")
            assert kind == "comparison" or where in seen
            seen.add(where)
    assert len(ran) == len(set(ran)) == 1 + 5 + 5 + 6 + 6
    assert there.closed == 1
    assert not (out / "leases").exists()


def test_parts_of_a_stage_come_to_what_the_whole_comes_to(
    finished: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("1/2", "2/2"):
        assert command(["stage", "run", str(out), "cases/seed0", "--shard", part]) == 0
        assert capsys.readouterr().out == f"cases/seed0: part {part} done\n"
        assert len(list(out.glob("stages/cases/*/work/cases/*.json"))) == int(part[0])
        assert not list(out.glob("stages/cases/*/manifest.json"))
    assert run_stages(out, ["cases/seed0"]) == ["cases/seed0"]
    (mine,), (whole,) = (folder.glob("stages/cases/*/cases.json") for folder in (out, finished))
    assert mine.read_bytes() == whole.read_bytes()
    for wrong, said in {"3/2": "no part 3 of 2", "1/9": "at most 2 parts", "x": "is no part"}.items():
        assert command(["stage", "run", str(out), "cases/seed0", "--shard", wrong]) == 2
        assert said in capsys.readouterr().err
    assert command(["stage", "run", str(out), "carrier/base@0/seed0", "--shard", "1/2"]) == 2
    assert "one part only" in capsys.readouterr().err


@pytest.mark.slow
def test_a_failure_elsewhere_ends_the_study_as_it_would_here(
    place: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_self: ChosenCarrier, _work: object) -> None:
        raise NumericalError("not finite", where="the carrier")

    monkeypatch.setattr(ChosenCarrier, "run", broken)
    with pytest.raises(NumericalError, match="the carrier: not finite") as caught:
        _sent(place, out)
    assert caught.value.exit_code == 4
    monkeypatch.undo()
    _, ran = _sent(place, out)
    assert any(name.startswith("carrier") for name in ran)


def test_bugs_keep_their_traceback_and_a_slurm_job_begins_again_with_the_same(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(*_: object) -> None:
        raise ZeroDivisionError

    job = Job(str(out), ("carrier/base@0/seed0",))
    monkeypatch.setattr(ChosenCarrier, "run", bug)
    with pytest.raises(ZeroDivisionError):
        run_job(job)
    monkeypatch.undo()
    pytest.importorskip("submitit", reason="an optional extra")
    again = Begun().checkpoint(job)
    assert (type(again.function), again.args) == (Begun, (job,))


def test_executors_that_cannot_be_had_say_so_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = ["study", "run", "--preset", "quick", "--out", str(tmp_path / "out")]
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in ("ray", "submitit") else found(name)
    )
    for arguments, code, said in (
        (["--executor", "ray"], 3, "'ray' is not installed. Install it: pip install 'caryatid[ray]'."),
        (["--executor", "slurm"], 3, "pip install 'caryatid[slurm]'."),
        (["--executor", "cloud"], 2, "no executor 'cloud'. Use inline, ray, slurm."),
        (["--workers", "3"], 2, "Start the same command several times"),
        (["--executor-set", "cpus=2"], 2, "no option 'cpus'. There are: none."),
        (["--executor", "ray", "--executor-set", "cpu=2"], 2, "There are: address, cpus, gpus, retries."),
        (["--executor-set", "cpus"], 2, "Write KEY=VALUE."),
    ):
        assert command([*study, *arguments]) == code
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_events_tell_what_happened(place: Path, finished: Path, out: Path) -> None:
    _sent(place, out)
    before = (finished / "events.jsonl").read_text().count("\n")
    lines = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()][before:]
    of_cases = [line["event"] for line in lines if line.get("stage") == "cases/seed0"]
    assert of_cases == ["part_started", "part_done"] * 2 + ["stage_started", "stage_done"]
    done = [line for line in lines if line["event"] == "stage_done"]
    assert len({line["stage"] for line in done}) == len(done) == 23
    assert all(line["memory"]["process"] > 10 * 2**20 and line["seconds"] >= 0 for line in done)
    assert {"time", "host", "pid", "key"} <= set(done[0])


def test_the_costs_of_stages_are_a_table(finished: Path) -> None:
    assert "costs" not in tables(finished)
    from caryatid.report.tables import read_tables

    rows = read_tables(finished)["costs"]
    assert {row["stage"] for row in rows} >= {"train", "answers", "verdict"}
    for row in rows:
        assert row["device_seconds"] == row["seconds"] >= 0
        assert row["memory"] > 10 * 2**20
        assert row["device_memory"] is None


def test_a_stage_of_a_study_whose_prompts_were_chosen_for_it_runs_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("CARYATID_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CARYATID_DATA", raising=False)
    config = small_config(tmp_path, "prompts.source=auto", "warmup.enabled=false")
    with opened(config, tmp_path / "out", NO_PROGRESS, lambda _line: None) as session:
        note = session.study.facts.prompts_note
        assert "cannot be had" in note
    run_stages(tmp_path / "out", ["prompts"])  # as a worker does it: the choice is not made again
    with opened(config, tmp_path / "out", NO_PROGRESS, lambda _line: None) as session:
        assert session.study.facts.prompts_note == note  # nor by a later start
