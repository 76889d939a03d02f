"""A small study on a real Ray cluster of two nodes, of which one vanishes, and on a real Slurm, with a job requeued.

Run by `make test-cluster`, which installs what this needs; no other test run collects it.
"""

import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from small import small_config
from test_runners import tables

from caryatid.study.executors import ray as on_ray
from caryatid.study.executors.choice import executor_named
from caryatid.study.flow import run_study

pytestmark = pytest.mark.timeout(1500)
HERE = Path(__file__).parent
OVERRIDES = (
    "arms=[r2d2]",
    "anchors=[0, 160]",  # training takes long enough to be cut off
    "attacks.adaptive={enabled: true, at: last, behaviours: 2, steps: 2}",
    "attacks.fixed_source.steps=3",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clusters")


@pytest.fixture(scope="module")
def alone(place: Path) -> Path:
    """The study in this process."""
    return run_study(small_config(place, *OVERRIDES), place / "alone").directory


def _events(out: Path) -> list[dict[str, Any]]:
    file = out / "events.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def _when(out: Path, kind: str, do: Callable[[dict[str, Any]], bool]) -> threading.Thread:
    """Do something once, as soon as a stage of a kind has started and it succeeds."""

    def watch() -> None:
        deadline = time.monotonic() + 500
        while time.monotonic() < deadline:
            for event in _events(out):
                if event["event"] == "stage_started" and event["stage"].startswith(kind) and do(event):
                    return
            time.sleep(0.1)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def _checked(out: Path, alone: Path, place: Path) -> None:
    """The tables of one process, every stage done once in the end, and nothing left behind."""
    assert tables(out) == tables(alone)
    started = [event["stage"] for event in _events(out) if event["event"] == "stage_started"]
    done = [event["stage"] for event in _events(out) if event["event"] == "stage_done"]
    assert len(done) == len(set(done))
    assert set(started) == set(done)
    assert len(started) > len(done)  # what was cut off was begun again
    parts = {event["part"] for event in _events(out) if event["event"] == "part_done"}
    assert parts == {"1/2", "2/2"}
    assert not (out / "leases").exists()
    assert not list(out.rglob("*.tmp"))
    assert run_study(small_config(place, *OVERRIDES), out).executed == 0


def test_on_gpus_each_job_of_ray_has_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray counts a GPU that it is told of; none has to be there."""
    ray = pytest.importorskip("ray", reason="make test-cluster installs ray")
    monkeypatch.setattr(on_ray, "_run", lambda: os.getpid())  # Ray takes no built-in function
    executor = on_ray.OnRay(None, {})
    ray.init(num_cpus=1, num_gpus=1, log_to_driver=False)
    try:
        processes = {
            gpus: {ray.get(executor.remote(gpus).options(num_gpus=gpus).remote()) for _ in range(4)}
            for gpus in (1, 0)
        }
    finally:
        ray.shutdown()
    assert len(processes[1]) == 4
    assert len(processes[0]) < 4  # without GPUs a process is used again, which saves its start


def test_ray_goes_on_when_a_node_vanishes(place: Path, alone: Path) -> None:
    cluster_utils = pytest.importorskip("ray.cluster_utils", reason="make test-cluster installs ray")
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    out = place / "ray"

    def vanish(event: dict[str, Any]) -> bool:
        """Take away the node that runs this stage."""
        running = [node for node in nodes if event["pid"] in _descendants(node)]
        for node in running:
            cluster.remove_node(node, allow_graceful=False)
        return len(running) == 1

    try:
        thread = _when(out, "train/", vanish)
        executor = executor_named("ray", 2, {"address": cluster.address, "cpus": "1"})
        result = run_study(small_config(place, *OVERRIDES), out, executor=executor)
        thread.join(1)
        assert not thread.is_alive()
        assert result.executed > 20
    finally:
        cluster.shutdown()
    _checked(out, alone, place)


def _descendants(node: Any) -> set[int]:
    """Processes of a node."""
    import psutil

    found = set()
    for process in node.live_processes():
        pid = process[1].pid
        found |= {pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))}
    return found


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Slurm on this machine."""
    if os.geteuid() != 0 or not (shutil.which("slurmctld") or shutil.which("apt-get")):
        pytest.skip("starting Slurm takes a superuser, and Debian's packages")
    folder = tmp_path / "slurm"
    started = subprocess.run(
        [HERE / "slurm.sh", "start", folder], check=False, timeout=300, stderr=subprocess.PIPE, text=True
    )
    if started.returncode:  # no packages to be had, or a machine on which daemons cannot run
        pytest.skip(f"Slurm could not be started here: {started.stderr[-500:]}")
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    try:
        yield
    finally:
        subprocess.run([HERE / "slurm.sh", "stop", folder], check=True)


@pytest.mark.usefixtures("slurm")
def test_slurm_goes_on_with_a_job_that_is_requeued(place: Path, alone: Path) -> None:
    pytest.importorskip("submitit", reason="make test-cluster installs submitit")
    out = place / "slurm"

    def requeue(_event: dict[str, Any]) -> bool:
        """Requeue what runs; Slurm kills it a second later."""
        asked = ["squeue", "--noheader", "--states=RUNNING", "--format=%A"]
        running = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()
        for job in running:
            subprocess.run(["scontrol", "requeue", job], check=True)
        time.sleep(5)
        for job in running:  # else Slurm begins them again after two minutes
            subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], check=False)
        return bool(running)

    thread = _when(out, "train/", requeue)
    executor = executor_named("slurm", 2, {"timeout_min": "30", "mem_gb": "2"})
    result = run_study(small_config(place, *OVERRIDES), out, executor=executor)
    thread.join(1)
    assert not thread.is_alive()
    assert result.executed > 20
    _checked(out, alone, place)
    assert not (out / "slurm").exists()
