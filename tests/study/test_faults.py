"""What goes wrong around a run: damaged files, a full disk, a read-only folder, signals, memory, clocks."""

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from small import forget, small_config
from test_runners import tables

from caryatid import keeping
from caryatid.artifacts import RunDirectory, write_json
from caryatid.cli import run as command
from caryatid.config import dump_config
from caryatid.errors import CaryatidError, DataMissingError
from caryatid.models.generate import Decoding, generate
from caryatid.models.template import ChatFormat
from caryatid.study import leases
from caryatid.study.flow import run_study
from caryatid.study.leases import GONE_AFTER, Leases
from caryatid.study.run import open_run
from caryatid.study.status import study_status
from tiny import tiny_loaded


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished study."""
    return shutil.copytree(finished, tmp_path / "run")


def _one(out: Path, pattern: str) -> Path:
    return min(out.glob(f"stages/{pattern}"))


def _damage(file: Path, how: str) -> None:
    content = bytearray(file.read_bytes())
    if how == "flipped":
        content[len(content) // 2] ^= 4
        file.write_bytes(bytes(content))
    elif how == "cut":
        file.write_bytes(bytes(content[: len(content) // 2]))
    else:
        file.unlink()


@pytest.mark.parametrize(
    ("pattern", "how"),
    [
        ("carrier/*/result.json", "flipped"),
        ("candidates/*/scores.safetensors", "cut"),
        ("verdict/*/result.json", "gone"),
    ],
)
def test_a_damaged_result_is_named_and_made_anew_only_where_that_is_asked_for(
    place: Path, finished: Path, out: Path, pattern: str, how: str
) -> None:
    file = _one(out, pattern)
    _damage(file, how)
    config = small_config(place)
    before = file.parent.joinpath("manifest.json").read_bytes()
    with pytest.raises(DataMissingError, match="--repair") as caught:
        run_study(config, out)
    assert caught.value.exit_code == 3
    assert Path(str(caught.value.where)) == file
    assert file.parent.joinpath("manifest.json").read_bytes() == before
    (row,) = [row for row in study_status(out, verify=True) if row.state == "damaged"]
    assert str(file) in row.detail
    assert run_study(config, out, repair=True).executed == 1
    assert {row.state for row in study_status(out, verify=True)} == {"done"}
    assert tables(out) == tables(finished)


def test_damaged_weights_are_found_where_the_model_is_opened(place: Path, out: Path) -> None:
    file = _one(out, "train/*/anchors/step-000001/adapter_model.safetensors")
    _damage(file, "flipped")
    forget(out, "answers")
    with pytest.raises(DataMissingError, match="damaged") as caught:
        run_study(small_config(place), out)
    assert Path(str(caught.value.where)) == file


def test_a_stages_manifest_of_another_kind_is_named(out: Path, place: Path) -> None:
    manifest = _one(out, "verdict/*/manifest.json")
    for content in ("[]", "null", "3", '"x"', '{"files": 3}', '{"files": {"a": []}}', "{"):
        manifest.write_text(content)
        (row,) = [row for row in study_status(out) if row.state == "damaged"]
        assert str(manifest.parent) in row.detail
        folder = open_run(out).plan[row.id].folder(RunDirectory(out))
        with pytest.raises(DataMissingError, match="--repair"):
            folder.check()
    with pytest.raises(DataMissingError) as caught:
        run_study(small_config(place), out)
    assert (caught.value.exit_code, caught.value.where) == (3, str(manifest))


def _edited(value: Any) -> Iterator[Any]:
    """A JSON value with one of its parts replaced by each of the other JSON types."""
    for other in (None, True, 7, -0.5, "text", [], [1], {}, {"a": 1}):
        if type(other) is not type(value):
            yield other
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in list(inside)[:6]:
        for changed in _edited(part) if key != "asked" else ():
            whole = copy.copy(value)
            whole[key] = changed
            yield whole


def test_a_manifest_that_was_edited_never_ends_in_a_traceback(out: Path, place: Path) -> None:
    run = RunDirectory(out)
    good = json.loads(run.manifest_path.read_text())
    refused: list[CaryatidError] = []
    versions = list(_edited(good))
    assert len(versions) > 100
    for number, version in enumerate(versions):
        run.manifest_path.write_text(json.dumps(version))
        try:
            study_status(out)
            if number % 20 == 0:
                open_run(out)
        except CaryatidError as error:
            refused.append(error)
    assert len(refused) > 40
    assert {error.exit_code for error in refused} == {2}
    assert not any("\n" in str(error) for error in refused)


@contextmanager
def _small_disk(folder: Path, size: str, *, read_only: bool = False) -> Iterator[None]:
    """A file system of its own at `folder`; skips where this user may not make one."""
    folder.mkdir(exist_ok=True)
    asked = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if read_only:
        asked = ["mount", "--bind", "-o", "ro", str(folder), str(folder)]
    if shutil.which("mount") is None or subprocess.run(asked, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system takes a superuser")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["300k", "1500k"])
def test_a_full_disk_is_named_and_what_was_finished_stays(
    place: Path, finished: Path, tmp_path: Path, size: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file, disk, out = tmp_path / "study.yaml", tmp_path / "disk", tmp_path / "moved"
    file.write_text(dump_config(small_config(place)))
    with _small_disk(disk, size):
        assert command(["study", "run", "--config", str(file), "--out", str(disk / "run")]) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("caryatid")]
        assert "No space left on device" in line
        assert "Free space there" in line
        shutil.copytree(disk / "run", out)
    assert not [path for path in out.rglob("*.tmp") if "slurm" not in path.parts]
    done = [path.parent for path in out.glob("stages/*/*/manifest.json")]
    result = run_study(small_config(place), out)
    assert len({row.id for row in study_status(out)}) - result.executed == len(done)
    assert tables(out) == tables(finished)


def test_a_read_only_folder_is_named(
    place: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(dump_config(small_config(place)))
    forget(out, "verdict")
    with _small_disk(out, "", read_only=True):
        assert command(["study", "run", "--config", str(file), "--out", str(out)]) == 2
        assert f"{out}: output folder cannot be written (Read-only file system)" in capsys.readouterr().err
        assert command(["stage", "run", str(out), "verdict/base@0-sft@1/seed0"]) == 2
        assert "Read-only file system" in capsys.readouterr().err
        assert command(["study", "status", str(out), "--json"]) == 0
    states = [row["state"] for row in json.loads(capsys.readouterr().out)]
    assert set(states) == {"done", "missing"}


def _heeding_permissions() -> list[str]:
    """What begins a command that permissions hold for: a superuser gives up what lifts them."""
    if os.geteuid() != 0:
        return []
    asked = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    if shutil.which("setpriv") is None or subprocess.run([*asked, "true"], check=False).returncode:
        pytest.skip("a superuser cannot give up its privileges here")
    return asked


@pytest.mark.slow
@pytest.mark.parametrize("closed", [".", "stages", "tables"])
def test_a_folder_without_permission_is_named_and_the_rest_stays(
    place: Path, finished: Path, out: Path, tmp_path: Path, closed: str
) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(dump_config(small_config(place)))
    forget(out, "verdict")
    before = {path: path.read_bytes() for path in (out / "stages").rglob("*") if path.is_file()}
    study = [sys.executable, "-m", "caryatid", "study", "run", "--config", str(file), "--out", str(out)]
    (out / closed).chmod(0o555)
    try:
        ended = subprocess.run(
            [*_heeding_permissions(), *study], capture_output=True, text=True, timeout=300, check=False
        )
    finally:
        (out / closed).chmod(0o755)
    assert ended.returncode == 2, ended.stderr[-2000:]
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("caryatid: ")]
    assert str(out / closed) in line
    assert "Permission denied" in line
    assert "Traceback" not in ended.stderr
    assert not list(out.rglob("*.tmp"))
    assert not (out / "leases").exists()
    for path, content in before.items():
        assert path.read_bytes() == content
    done = {path.parent.parent.name for path in out.glob("stages/*/*/manifest.json")}
    assert ("verdict" in done) == (closed == "tables")
    run_study(small_config(place), out)
    assert tables(out) == tables(finished)


@pytest.mark.slow
def test_sigterm_ends_a_study_that_then_goes_on(place: Path, finished: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "study.yaml", tmp_path / "run"
    config = small_config(place)
    file.write_text(dump_config(config))
    study = [sys.executable, "-m", "caryatid", "study", "run", "--config", str(file), "--out", str(out)]
    process = subprocess.Popen(study, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while not list(out.glob("stages/train/*/work/step-*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted. Run the same command again" in said.splitlines()[-1]
    assert not (out / "leases").exists()
    assert not list(out.rglob("*.tmp"))
    run_study(config, out)
    assert tables(out) == tables(finished)


KEPT = ("candidates", "interventions", "transfer", "reextraction", "selection")


def test_stages_that_are_broken_off_do_not_run_their_batches_again(
    place: Path, finished: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every fortieth batch breaks the study off when it would be made for the first time."""
    config, piece = small_config(place), keeping._Pieces.piece
    made, seen = list[str](), set[str]()

    def breaking(self: Any, label: str, make: Any) -> Any:
        unit = f"{self.folder} {len(self.kept) + len(self.made)}"

        def once() -> Any:
            if len(seen) % 40 == 39 and unit not in seen:
                seen.add(unit)
                raise KeyboardInterrupt
            seen.add(unit)
            made.append(unit)
            return make()

        return piece(self, label, once)

    forget(out, *KEPT)
    monkeypatch.setattr(keeping._Pieces, "piece", breaking)
    attempts = 0
    while True:
        attempts += 1
        try:
            run_study(config, out)
            break
        except KeyboardInterrupt:
            pass
    assert attempts > 2
    assert len(made) == len(set(made)) > 100
    kinds = {unit.split("/stages/")[1].split("/")[0] for unit in made}
    assert kinds >= set(KEPT) - {"transfer"}  # a random model refuses nothing that could be transferred
    assert tables(out) == tables(finished)


@pytest.mark.parametrize("fits", [3, 1])
def test_answers_are_made_in_smaller_batches_where_memory_runs_out(
    fits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = tiny_loaded("llama")
    chat = ChatFormat(loaded.tokenizer)
    texts = [f"Tell me about {number} " + "x" * number for number in range(7)]
    whole = generate(loaded, chat, texts, Decoding(5, 7))
    plain, sizes = type(loaded.model).generate, []

    def limited(self: Any, input_ids: torch.Tensor, **more: Any) -> Any:
        sizes.append(len(input_ids))
        if len(input_ids) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(self, input_ids=input_ids, **more)

    monkeypatch.setattr(type(loaded.model), "generate", limited)
    assert [one.text for one in generate(loaded, chat, texts, Decoding(5, 7))] == [one.text for one in whole]
    assert max(size for size in sizes if size <= fits) == fits
    assert sizes.count(7) == 1


def test_a_clock_that_jumps_takes_no_lease_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDirectory.create(tmp_path / "run")
    one, other = Leases(run), Leases(run)
    with one.kept_alive():
        one.take("here")
        far = {**vars(other.owner), "host": "far away"}
        write_json(one.folder / "far.json", far)
        for jump in (3600.0, -3600.0):  # the file system's clock, by which the leases were touched
            now = time.time() + jump
            monkeypatch.setattr(leases, "_now", lambda _folder, now=now: now)
            assert {"here", "far"} <= set(other.others())
        os.utime(one.folder / "far.json")  # its owner lives, and touches it by the new clock
        monkeypatch.undo()
        assert "far" in other.others()
        old = time.time() - GONE_AFTER - 60
        os.utime(one.folder / "far.json", (old, old))
        monkeypatch.setattr(leases, "WATCHED", 0.05)
        other.others()
        time.sleep(0.1)
        assert "far" not in other.others()
