"""Experiment trackers get the numbers of training and a run's events, through accelerate, and change nothing else."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from accelerate import tracking as accelerates
from small import forget, small_config

from caryatid.cli import run as command
from caryatid.config import dump_config
from caryatid.errors import UsageError
from caryatid.progress import NO_PROGRESS
from caryatid.study.executors.base import Sending
from caryatid.study.jobs import Job, run_stages
from caryatid.study.run import open_run
from caryatid.study.runner import opened
from caryatid.study.series import ArmRef
from caryatid.study.stages.train import Train

ARM = "train/r2d2/seed0"


class _Lines(accelerates.GeneralTracker):
    """A tracker of one's own: a file of JSON lines for each of its runs."""

    name, requires_logging_directory = "lines", True

    def __init__(self, run_name: str, logging_dir: str) -> None:
        super().__init__()
        self.file = Path(logging_dir) / f"{run_name}.jsonl"

    @property
    def tracker(self) -> Path:
        return self.file

    def start(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)

    def log(self, values: dict[str, Any], step: int | None = None, **_more: Any) -> None:
        with self.file.open("a") as stream:
            stream.write(json.dumps({"step": step, **values}) + "\n")


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate knows the tracker `lines`."""
    monkeypatch.setitem(accelerates.LOGGER_TYPE_TO_CLASS, _Lines.name, _Lines)


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished study whose arms are to be trained anew."""
    copied = shutil.copytree(finished, tmp_path / "run")
    forget(copied, "train")
    return copied


def _read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.usefixtures("lines")
def test_trackers_get_every_update_and_the_stages_events(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(["stage", "run", str(out), ARM, "train/sft/seed0", "--track", "lines"]) == 0
    assert "done" in capsys.readouterr().out
    r2d2, sft = (_read(out / f"tracking/small/train/{arm}/seed0.jsonl") for arm in ("r2d2", "sft"))
    assert [row["step"] for row in r2d2] == [row["step"] for row in sft] == [1, 2]
    run = open_run(out)
    stages = [run.of(Train, ArmRef(0, arm)) for arm in ("r2d2", "sft")]
    for sent, trained in zip((r2d2, sft), stages, strict=True):
        for row, kept in zip(sent, trained.rows, strict=True):  # every update of the small study is an anchor
            for name in ("loss_sft", "tokens", "delta_weight", "benign_kl", "flops"):
                assert row[name] == pytest.approx(kept[name]), name
            assert row["learning_rate"] == pytest.approx(0.01)
    for row, kept in zip(r2d2, stages[0].rows, strict=True):
        assert row["loss_away"] == pytest.approx(kept["loss_away"])
        assert row["closing"] == pytest.approx(row["pool_loss"] - row["loss_toward"])
    assert r2d2[0]["pool_loss"] == pytest.approx(stages[0].rows[0]["gcg_loss"])  # the mean begins with it
    assert not {"pool_loss", "closing", "loss_away"} & sft[0].keys()
    (events,) = (out / "tracking/small").glob("events *.jsonl")
    told = [(key, value) for row in _read(events) for key, value in row.items() if isinstance(value, str)]
    assert told == [
        (event, stage) for stage in (ARM, "train/sft/seed0") for event in ("stage_started", "stage_done")
    ]
    (done,) = [row for row in _read(events) if row.get("stage_done") == ARM]
    assert done["stage_done/seconds"] > 0
    assert done["stage_done/memory/process"] > 10 * 2**20


@pytest.mark.usefixtures("lines")
def test_where_numbers_go_is_no_content(place: Path, finished: Path, out: Path) -> None:
    keys = [(entry.id, entry.key) for entry in open_run(finished, recorded=False).plan]
    with opened(small_config(place), out, NO_PROGRESS, lambda _line: None, track=["lines"]) as session:
        assert [(entry.id, entry.key) for entry in session.plan] == keys
        jobs = Sending(session, session.plan, _Nowhere())._jobs()
        assert {job.track for job in jobs} == {("lines",)}
    assert run_stages(out, [ARM], track=["lines"]) == [ARM]
    (trained,) = [entry for entry in open_run(finished, recorded=False).plan if entry.id == ARM]
    for weights in (finished / "stages/train" / trained.key).rglob("*.safetensors"):
        assert (out / weights.relative_to(finished)).read_bytes() == weights.read_bytes()


class _Nowhere:
    """A place that takes no job."""

    workers = 1

    def submit(self, jobs: list[Job]) -> list[Any]:
        return []

    def outcome(self, handle: Any) -> None:
        return None

    def cancel(self, handles: list[Any]) -> None: ...

    def close(self) -> None: ...


def test_trackers_that_cannot_be_had_say_so_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accelerates, "_available_trackers", [])
    study = ["study", "run", "--preset", "quick", "--out", str(tmp_path / "out")]
    for name, code, said in (
        (
            "tensorboard",
            3,
            "--track tensorboard: the package 'tensorboard' is not installed. Install it: pip install",
        ),
        ("comet_ml", 3, "pip install comet-ml."),
        ("paper", 2, "no tracker 'paper'. There are: aim, comet_ml,"),
    ):
        assert command([*study, "--track", name]) == code
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line
    assert command(["train", "sft", "--out", str(tmp_path / "out"), "--track", "wandb"]) == 3
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("lines")
def test_a_tracker_that_does_not_start_is_named(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_self: _Lines) -> None:
        raise RuntimeError("no account\nlog in first")

    monkeypatch.setattr(_Lines, "start", refuse)
    file = tmp_path / "study.yaml"
    file.write_text(dump_config(small_config(place)))
    run = ["study", "run", "--config", str(file), "--out", str(tmp_path / "out"), "--track", "lines"]
    assert command(run) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "--track lines: the tracker cannot be started: log in first." in said
    with pytest.raises(UsageError, match="log in first"):
        run_stages(tmp_path / "out", ["prompts"], track=["lines"])


def test_tensorboard_reads_what_training_sent(out: Path) -> None:
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="a tracker of the user's choice"
    )
    assert run_stages(out, [ARM], track=["tensorboard"]) == [ARM]
    sent = reader.EventAccumulator(str(out / "tracking/small" / ARM)).Reload()
    assert {"loss_sft", "loss_away", "loss_toward", "pool_loss", "closing"} <= set(sent.Tags()["scalars"])
    trained = open_run(out).of(Train, ArmRef(0, "r2d2"))
    steps = {one.step: one.value for one in sent.Scalars("benign_kl")}
    assert steps == {row["step"]: pytest.approx(row["benign_kl"], rel=1e-6) for row in trained.rows}
    (events,) = (out / "tracking/small").glob("events *")
    told = reader.EventAccumulator(str(events)).Reload()
    assert "stage_done/seconds" in told.Tags()["scalars"]
    assert any(tag.startswith("stage_started") for tag in told.Tags()["tensors"])
