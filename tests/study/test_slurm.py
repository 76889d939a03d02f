"""How the Slurm executor sees that a job has ended, with submitit's jobs on this machine and a queue from a file."""

import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from caryatid.study.executors import slurm
from caryatid.study.executors.base import Outcome
from caryatid.study.executors.slurm import OnSlurm
from caryatid.study.jobs import Job

submitit = pytest.importorskip("submitit", reason="an optional extra")
NOWHERE = Job("/nowhere", ("carrier/base@0/seed0",))


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the queue says, which is asked for at every look; a machine without Slurm has neither program."""
    said = tmp_path / "queue"
    said.write_text("")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, does in {"sbatch": "exit 1", "squeue": f"cat {said}"}.items():
        (programs / name).write_text(f"#!/bin/sh\n{does}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    monkeypatch.setattr(slurm, "ASK_EVERY", 0.0)
    return said


@pytest.fixture
def place(tmp_path: Path, queue: Path) -> OnSlurm:
    """The executor, its jobs on this machine."""
    place = OnSlurm(1, {})
    place.executor = submitit.AutoExecutor(folder=tmp_path / "logs", cluster="local")
    place.executor.update_parameters(timeout_min=5)
    return place


def _killed(handle: Any) -> None:
    """Kill a job with all its processes before it can leave a result: it imports torch first."""
    process = psutil.Process(handle._process.pid)
    while not any("submitit.core._submit" in one.cmdline() for one in process.children(recursive=True)):
        time.sleep(0.01)
    for one in [process, *process.children(recursive=True)]:
        one.kill()
    handle._process.wait()
    assert not handle.paths.result_pickle.exists()


def _seen(place: OnSlurm, handle: Any) -> Outcome | None:
    deadline = time.monotonic() + 120
    while (found := place.outcome(handle)) is None and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def test_a_job_that_dies_is_noticed_when_the_queue_has_forgotten_it(place: OnSlurm) -> None:
    (handle,) = place.submit([NOWHERE])
    assert place.outcome(handle) is None  # the queue does not know it yet, the job runs
    _killed(handle)
    found = _seen(place, handle)
    assert found is not None
    assert found.where == str(handle.paths.stderr)
    assert found.failure is not None
    error = found.failure.error()
    assert type(error).__name__ == "JobError"
    assert error.exit_code == 2
    assert str(error) == f"Slurm ended job {handle.job_id} (interrupted); see {found.where}"


@pytest.mark.parametrize(
    ("state", "kind", "code"),
    [
        ("FAILED", "JobError", 2),
        ("OUT_OF_MEMORY", "MemoryExhaustedError", 5),
        ("TIMEOUT", "JobError", 2),
        ("NODE_FAIL", None, 0),  # Slurm begins it again
        ("PENDING", None, 0),
    ],
)
def test_a_state_in_the_queue_ends_a_job_or_does_not(
    place: OnSlurm, queue: Path, state: str, kind: str | None, code: int
) -> None:
    (handle,) = place.submit([NOWHERE])
    queue.write_text(f"{handle.job_id} {state}\n1_0 COMPLETED\n")
    _killed(handle)
    found = place.outcome(handle)
    if kind is None:
        assert found is None
        return
    assert found is not None
    assert found.failure is not None
    assert (found.failure.kind, found.failure.error().exit_code) == (kind, code)
    assert state.lower().replace("_", " ") in found.failure.message


def test_what_a_job_returns_counts_whatever_the_queue_says(place: OnSlurm, queue: Path) -> None:
    (handle,) = place.submit([NOWHERE])
    queue.write_text(f"{handle.job_id} RUNNING\n")
    found = _seen(place, handle)
    assert found is not None
    assert found.failure is not None
    assert found.failure.kind == "UsageError"
    assert "/nowhere" in found.failure.message
    queue.write_text(f"{handle.job_id} FAILED\n")
    assert place.outcome(handle) == found


def test_a_queue_that_does_not_answer_ends_no_job(
    place: OnSlurm, queue: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "ASK_EVERY", 15.0)
    (handle,) = place.submit([NOWHERE])
    queue.unlink()
    _killed(handle)
    assert place.outcome(handle) is None
