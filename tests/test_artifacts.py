"""The run directory: stages are whole or not there, damage is noticed, versions are checked."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from caryatid.artifacts import RunDirectory, content_key, file_sha256, write_bytes
from caryatid.errors import InputError, UsageError


def _run(path: Path) -> RunDirectory:
    run = RunDirectory.create(path)
    run.write_manifest({})
    return run


def test_key_depends_on_content_and_not_on_order() -> None:
    assert content_key({"a": 1, "b": [2, 3]}) == content_key({"b": [2, 3], "a": 1})
    assert content_key({"a": 1}) != content_key({"a": 2})
    assert content_key({"a": 1}) != content_key({"a": "1"})


def test_stage_is_done_only_with_manifest_and_intact_files(tmp_path: Path) -> None:
    stage = _run(tmp_path / "run").stage("answers", {"x": 1})
    assert stage.state() == "missing"
    stage.write_json("rows.json", [1, 2])
    stage.write_tensors("t.safetensors", {"a": torch.arange(3.0)[::1]})
    assert stage.state() == "partial"
    stage.finish({"seconds": 1.0})
    assert stage.done()
    assert stage.manifest()["files"]["rows.json"] == file_sha256(stage.file("rows.json"))
    assert torch.equal(stage.read_tensors("t.safetensors")["a"], torch.arange(3.0))
    stage.file("rows.json").write_text("[1, 3]")
    assert stage.state() == "damaged"
    assert stage.state(verify=False) == "done"


def test_failure_is_recorded_and_cleared(tmp_path: Path) -> None:
    stage = _run(tmp_path / "run").stage("train", {})
    stage.fail(ValueError("loss is nan"))
    assert stage.state() == "failed"
    stage.finish({})
    assert stage.done()
    assert not stage.file("failed.json").exists()


def test_a_stage_that_runs_again_is_not_failed_any_more(tmp_path: Path) -> None:
    stage = _run(tmp_path / "run").stage("train", {})
    stage.chunks("rows").append(0, 1)
    stage.fail(ValueError("loss is nan"))
    stage.begin()
    assert stage.state() == "partial"
    assert stage.chunks("rows").load() == [1]


def test_a_run_that_could_not_begin_leaves_nothing(tmp_path: Path) -> None:
    for name, there in (("new", False), ("old", True)):
        if there:
            (tmp_path / name).mkdir()
        run = RunDirectory.create(tmp_path / name)
        with run.locked():
            run.discard_unused(folder=not there)
        assert (tmp_path / name).exists() == there
        assert not there or list((tmp_path / name).iterdir()) == []
    begun = _run(tmp_path / "begun")
    begun.discard_unused(folder=True)
    assert begun.manifest_path.exists()


def test_a_kill_before_the_manifest_leaves_a_folder_that_can_be_used(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").touch()
    (tmp_path / "run" / ".manifest.json.x7.tmp").touch()
    assert RunDirectory.create(tmp_path / "run").path == tmp_path / "run"


def test_chunks_survive_and_stop_at_the_first_gap(tmp_path: Path) -> None:
    stage = _run(tmp_path / "run").stage("answers", {})
    chunks = stage.chunks("rows")
    assert chunks.load() == []
    chunks.append(0, ["a"])
    chunks.append(2, ["c"])
    assert chunks.load() == [["a"]]
    chunks.append(1, ["b"])
    assert stage.chunks("rows").load() == [["a"], ["b"], ["c"]]
    stage.finish({})
    assert not stage.work_dir.exists()


def test_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "file.json"
    write_bytes(target, b"old")
    script = (
        "import os, sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from caryatid.artifacts import atomic_file\n"
        "with atomic_file(Path(sys.argv[2])) as stream:\n"
        "    stream.write(b'new' * 100000); stream.flush(); os.kill(os.getpid(), 9)\n"
    )
    source = str(Path(__file__).parents[1] / "src")
    done = subprocess.run([sys.executable, "-c", script, source, str(target)], check=False)
    assert done.returncode == -9
    assert target.read_bytes() == b"old"


def test_nan_is_refused_in_json(tmp_path: Path) -> None:
    stage = _run(tmp_path / "run").stage("x", {})
    with pytest.raises(ValueError, match="Out of range"):
        stage.write_json("a.json", {"value": float("nan")})
    assert not stage.file("a.json").exists()


def test_other_version_other_files_and_unwritable_folders_are_refused(tmp_path: Path) -> None:
    run = _run(tmp_path / "run")
    manifest = json.loads(run.manifest_path.read_text())
    run.manifest_path.write_text(json.dumps({**manifest, "format_version": 99}))
    with pytest.raises(UsageError, match="format version 99"):
        RunDirectory.create(run.path)
    with pytest.raises(UsageError, match="format version 99"):
        RunDirectory.existing(run.path)
    with pytest.raises(UsageError, match="not a run directory"):
        RunDirectory.existing(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("x")
    with pytest.raises(UsageError, match="holds other files"):
        RunDirectory.create(tmp_path / "full")
    with pytest.raises(UsageError, match="cannot be written"):
        RunDirectory.create(tmp_path / "full" / "thesis.txt" / "run")


def test_two_processes_do_not_share_a_run(tmp_path: Path) -> None:
    run = _run(tmp_path / "run")
    with run.locked():
        pid = os.fork()
        if pid == 0:
            try:
                with RunDirectory(run.path).locked():
                    os._exit(1)
            except UsageError:
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    with run.locked():
        pass


def test_damaged_json_names_the_file(tmp_path: Path) -> None:
    stage = _run(tmp_path / "run").stage("x", {})
    stage.path.mkdir(parents=True)
    stage.file("rows.json").write_text("{")
    with pytest.raises(InputError, match=r"rows\.json"):
        stage.read_json("rows.json")


@pytest.mark.parametrize("text", ["[]", "3", '"text"', "null", '{"files": 3}', '{"files": ["a"]}', "{}"])
def test_a_stage_whose_manifest_is_another_json_type_is_not_done(tmp_path: Path, text: str) -> None:
    stage = RunDirectory.create(tmp_path / "run").stage("numbers", {"seed": 0})
    stage.begin()
    stage.finish({})
    assert stage.state() == "done"
    stage.manifest_path.write_text(text)
    assert stage.state() == "damaged"


@pytest.mark.parametrize("part", ["facts", "asked", "libraries", "stages", "seeds", "caryatid"])
def test_a_run_manifest_with_parts_of_another_type_is_refused(tmp_path: Path, part: str) -> None:
    run = RunDirectory.create(tmp_path / "run")
    run.write_manifest({part: 3})
    with pytest.raises(InputError, match=f"damaged: '{part}' is 3"):
        run.check_version()
    run.manifest_path.write_text("[1]")
    with pytest.raises(UsageError, match="format version None"):
        RunDirectory.existing(run.path)


def test_names_of_files_are_written_with_slashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = RunDirectory.create(tmp_path / "run").stage("numbers", {})
    stage.begin()
    (stage.path / "below").mkdir()
    (stage.path / "below" / "a.txt").write_text("a")
    stage.finish({})
    assert list(stage.manifest()["files"]) == ["below/a.txt"]


def test_everything_imports_without_the_modules_that_windows_lacks() -> None:
    code = """
import importlib, pkgutil, sys

def import_everything():
    import caryatid
    for module in pkgutil.walk_packages(caryatid.__path__, "caryatid."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)

import_everything()  # other packages, on this system, may import what Windows lacks
for name in [name for name in sys.modules if name.split(".")[0] == "caryatid"]:
    del sys.modules[name]
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None  # importing it fails
import_everything()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
