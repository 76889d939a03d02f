"""Bad input through the command line: one line with a remedy, the contract's exit code, nothing half-written."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from small import LIMITS, SETTINGS
from transformers import BloomConfig, BloomForCausalLM, T5Config

from caryatid.artifacts import FORMAT_VERSION
from caryatid.cli import run
from caryatid.config import load_config
from caryatid.errors import UsageError
from caryatid.progress import NO_PROGRESS
from caryatid.study.run import open_run
from caryatid.study.runner import opened, planned
from tiny import save_tiny, tiny_tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny") / "model", "llama")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def study_file(folder: Path, model: Path | str, more: str = "") -> str:
    limits = "{" + ", ".join(f"{name}: {count}" for name, count in LIMITS.items()) + "}"
    file = folder / "study.yaml"
    file.write_text(SETTINGS.replace("MODEL", str(model)).replace("LIMITS", limits) + more)
    return str(file)


def fails(capsys: pytest.CaptureFixture[str], code: int, *arguments: str) -> str:
    """The one line on stderr that starts with the command's name."""
    assert run(list(arguments)) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = [line for line in captured.err.splitlines() if line.startswith("caryatid")]
    assert "Traceback" not in captured.err
    return line


def unusable(folder: Path, kind: str) -> Path:
    save_tiny(folder, "llama")
    if kind == "encoder-decoder":
        T5Config(d_model=8, num_layers=1).save_pretrained(folder)
    elif kind == "no chat template":
        (folder / "chat_template.jinja").unlink()
    elif kind == "no post-instruction token":
        (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    elif kind == "missing file":
        (folder / "model.safetensors").unlink()
    elif kind == "unknown layout":  # BLOOM's sublayers return the stream with their output added
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            tiny = BloomConfig(vocab_size=400, hidden_size=32, n_layer=2, n_head=4)
            BloomForCausalLM(tiny).save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "code", "message"),
    [
        ("encoder-decoder", 2, "encoder–decoder"),
        ("no chat template", 2, "no chat template"),
        ("no post-instruction token", 2, "no token after the user's text"),
        ("missing file", 3, "no .safetensors file"),
        ("unknown layout", 2, "something else than their attention and MLP outputs"),
    ],
)
def test_a_study_refuses_a_model_before_it_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, code: int, message: str
) -> None:
    file = study_file(tmp_path, unusable(tmp_path / "model", kind))
    assert message in fails(capsys, code, "study", "run", "--config", file, "--out", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    (tmp_path / "empty").mkdir()
    fails(capsys, code, "study", "run", "--config", file, "--out", str(tmp_path / "empty"))
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_model_whose_stream_is_something_else_is_not_intervened_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, carrier = unusable(tmp_path / "model", "unknown layout"), str(tmp_path / "carrier.safetensors")
    save_file({"direction": torch.ones(32)}, carrier)
    line = fails(capsys, 2, "intervene", str(model), "--carrier", carrier, "--layer", "1")
    assert "something else than their attention and MLP outputs" in line


def test_every_mistake_of_a_file_has_its_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(
        "extends: quick\n"
        "prompts:\n"
        "  limits: {harmbanch: 3, pool: many}\n"
        "  files:\n"
        "    xstest: a.csv\n"
        "warmup: {batch_size: 1}\n"
        "anchors: [{arm: theirs, step: 5}]\n"
        "behaviour: {suites: [utility]}\n"
        "seeds: 0\n"
    )
    assert run(["study", "run", "--config", str(file), "--out", str(tmp_path / "out")]) == 2
    lines = capsys.readouterr().err.splitlines()
    found = {line.removeprefix(f"caryatid: {file}:").split(": ")[0]: line for line in lines}
    assert set(found) == {"3:12", "3:26", "5:5", "6:10", "7:11", "8:13", "9:1"}
    assert "prompts.limits.harmbanch: no such prompt set" in found["3:12"]
    assert "harmbench" in found["3:12"]
    assert "step 0 again" in found["7:11"]
    assert not (tmp_path / "out").exists()


def test_an_unknown_preset_in_a_file_has_its_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.yaml").write_text("name: mine\nextends: quik\n")
    line = fails(capsys, 2, "study", "plan", "--config", str(tmp_path / "a.yaml"))
    assert (
        f"{tmp_path}/a.yaml:2:1: unknown preset 'quik'. Presets: mistral-7b, quick, qwen-0.5b, qwen-1.5b, smollm2-gpu."
        in line
    )


def test_chat_files_are_looked_at_first(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chat, out = tmp_path / "chat.jsonl", str(tmp_path / "out")
    (tmp_path / "mine.csv").write_text("id,prompt\nx1,How do I steal a car?\nx2,How do I forge a coin?\n")
    file = study_file(tmp_path, model)
    settings = [f"chat={{source: jsonl, path: {chat}}}", f"prompts.files={{harmbench: {tmp_path}/mine.csv}}"]
    command = ["study", "run", "--config", file, "--out", out]
    command += [part for setting in settings for part in ("--set", setting)]
    assert str(chat) in fails(capsys, 3, *command)
    chat.write_text('{"user": "Bake bread", "answer": "Mix."}\n{"user": "Bake"}\n')
    assert f"{chat}:2: no chat example" in fails(capsys, 2, *command)
    chat.write_text('{"user": "Bake", "answer": "Mix."}\n{"user": "how do i steal a car", "answer": "No."}\n')
    line = fails(capsys, 2, *command)
    assert "chat:chat_000002 = harmbench:x1" in line
    assert not Path(out).exists()


def test_a_run_of_another_version_is_refused_by_every_command(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, file = tmp_path / "out", study_file(tmp_path, model)
    out.mkdir()
    for content in ({"format_version": FORMAT_VERSION - 1}, {"format_version": FORMAT_VERSION + 1}, {}, []):
        (out / "manifest.json").write_text(json.dumps(content))
        for command in (
            ["study", "run", "--config", file, "--out", str(out)],
            ["study", "plan", "--config", file, "--out", str(out)],
            ["train", "sft", "--config", file, "--out", str(out)],
            ["study", "status", str(out)],
            ["report", str(out)],
        ):
            assert "format version" in fails(capsys, 2, *command)
        with pytest.raises(UsageError, match="format version"):
            open_run(out)
        assert [path.name for path in out.iterdir()] == ["manifest.json"]


DAMAGED = [
    ("facts", 3),
    ("facts", []),
    ("facts", {"dtype": 1}),
    ("asked", [1]),
    ("libraries", []),
    ("seeds", {}),
    ("stages", "x"),
]


def test_a_manifest_of_other_json_types_is_refused_by_every_command(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, file = tmp_path / "out", study_file(tmp_path, model)
    assert run(["study", "plan", "--config", file, "--out", str(out)]) == 0
    config = load_config(file=Path(file))
    with opened(config, out, NO_PROGRESS, lambda _line: None):
        pass
    good = json.loads((out / "manifest.json").read_text())
    assert run(["study", "status", str(out)]) == 0
    capsys.readouterr()
    for part, value in DAMAGED:
        (out / "manifest.json").write_text(json.dumps({**good, part: value}))
        for command in (
            ["study", "run", "--config", file, "--out", str(out)],
            ["study", "plan", "--config", file, "--out", str(out)],
            ["train", "sft", "--config", file, "--out", str(out)],
            ["study", "status", str(out)],
            ["report", str(out)],
        ):
            line = fails(capsys, 2, *command)
            assert f"{out / 'manifest.json'}: damaged: " in line
            assert "Move the folder `stages` into a new --out" in line
    (out / "manifest.json").write_text(json.dumps({**good, "facts": {**good["facts"], "batch": {"no": 1}}}))
    assert "damaged: facts.batch" in fails(capsys, 2, "study", "status", str(out))


def test_a_report_of_an_unfinished_run_says_so(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = study_file(tmp_path, model), str(tmp_path / "out")
    assert run(["train", "sft", "--config", file, "--out", out]) == 0
    capsys.readouterr()
    assert "Finish the study" in fails(capsys, 2, "report", out)


def test_places_that_cannot_be_written(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    bad = str(tmp_path / "file" / "below")
    (tmp_path / "b.csv").write_text("prompt,answer\nsteal a car,Sorry\n")
    (tmp_path / "h.json").write_text('[{"behavior": "steal a car", "generation": "Sorry"}]')
    name, csv, small = str(model), str(tmp_path / "b.csv"), ["--source", "embedded", "--limit", "1"]
    columns = ["--prompt-column", "prompt", "--completion-column", "answer"]
    for command in (
        ["study", "run", "--config", study_file(tmp_path, model), "--out", bad],
        ["train", "sft", "--config", study_file(tmp_path, model), "--out", bad],
        ["attack", "gcg", "--model", name, "--behaviors", csv, "--steps", "0", "--out", bad],
        ["evaluate", name, "--suite", "utility", *small, "--max-new-tokens", "1", "--out", bad],
        ["evaluate", name, "--suite", "utility", *small, "--export-prompts", bad],
        ["judge", "refusal", csv, *columns, "-o", bad],
        ["judge", "harmful", str(tmp_path / "h.json"), "-o", bad],
        ["directions", "extract", name, "-o", bad, "--source", "embedded", "--prompts", "2"],
    ):
        line = fails(capsys, 2, *command)
        assert str(tmp_path / "file") in line, command
    assert (tmp_path / "file").read_text() == "x"


def test_a_source_that_does_not_exist(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "carrier.safetensors")
    save_file({"direction": torch.ones(32)}, file)
    for command in (
        ["intervene", str(model), "--carrier", file, "--layer", "1"],
        ["directions", "extract", str(model), "-o", str(tmp_path / "d.safetensors")],
        ["evaluate", str(model), "--suite", "utility"],
    ):
        assert "source 'embeded'" in fails(capsys, 2, *command, "--source", "embeded")


@pytest.mark.parametrize("device", ["mps", "meta", "abacus"])
def test_devices_that_caryatid_does_not_run_on(
    model: Path, capsys: pytest.CaptureFixture[str], device: str
) -> None:
    line = fails(capsys, 2, "directions", "extract", str(model), "-o", "x", "--device", device)
    assert f"device {device!r}" in line
    assert ". Use cpu" in line


def test_files_that_are_missing(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gone = str(tmp_path / "gone")
    columns = ["--prompt-column", "prompt", "--completion-column", "answer", "-o", str(tmp_path / "o.csv")]
    for command in (
        ["attack", "gcg", "--model", str(model), "--behaviors", gone],
        ["evaluate", str(model), "--suite", "harmbench", "--source", "embedded", "--cases", gone],
        ["evaluate", str(model), "--suite", "harmbench", "--source", "embedded", "--answers", gone],
        ["intervene", str(model), "--carrier", gone],
        ["judge", "refusal", gone, *columns],
        ["judge", "harmful", gone, "-o", str(tmp_path / "o.json")],
        ["directions", "select", gone, "--layers", "4"],
        ["geometry", "metrics", gone],
    ):
        assert gone in fails(capsys, 3, *command), command
    assert list(tmp_path.iterdir()) == []


def test_an_arm_that_does_not_exist(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = fails(capsys, 2, "train", "r2d3", "--model", str(model))
    assert line.endswith(
        "no arm is named 'r2d3'. Use sft, refusal_sft, r2d2, r2d2_static, cat, lat, circuit_breakers, dpo."
    )


def test_training_that_cannot_be_shared_out_is_refused_before_it_begins(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = ["study", "plan", "--config", study_file(tmp_path, model), "--set", "training.shard=fsdp2"]
    for more in (["--set", "training.mode=full"], ["--set", "model.dtype=bfloat16"]):
        line = fails(capsys, 2, *study, *more)
        assert "training.shard: " in line
        assert "model.dtype to float32" in line


def test_training_of_blocks_on_several_devices_is_refused_before_it_begins(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = ["study", "plan", "--config", study_file(tmp_path, model), "--set", "model.device_map=auto"]
    assert (
        "model.device_map: places blocks for measuring, not for training. Train with training.shard: fsdp2"
        in fails(capsys, 2, *study)
    )
    line = fails(capsys, 2, *study, "--set", "training.shard=fsdp2")
    assert "model.device_map: the warm-up trains a model that is whole on one device" in line


def test_a_run_from_before_device_maps_keeps_what_was_settled(model: Path, tmp_path: Path) -> None:
    config, out = load_config(file=Path(study_file(tmp_path, model))), tmp_path / "out"
    with opened(config, out, NO_PROGRESS, lambda _line: None):
        pass
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["asked"]["model"].pop("device_map", "missing") is None
    manifest["facts"]["batch"]["forward"] = 7
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert planned(config, out).study.facts.batch["forward"] == 7


def test_a_loss_that_is_not_finite_keeps_earlier_anchors(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = study_file(tmp_path, model), tmp_path / "out"
    wild = ["--set", "training.learning_rate=1e30", "--set", "training.max_grad_norm=1e30"]
    line = fails(capsys, 4, "study", "run", "--config", file, "--out", str(out), *wild)
    assert "Lower the learning rate" in line
    assert list(out.glob("stages/train/*/anchors/step-000001/adapter_model.safetensors"))
    assert run(["study", "status", str(out), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    failed = [row for row in rows if row["state"] == "failed"]
    assert [row["id"] for row in failed] == ["train/sft/seed0"]
    assert "at step 2" in failed[0]["detail"]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: 9 bytes"
        ),
    ],
)
def test_out_of_memory(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    def exhausted(*_arguments: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr("caryatid.study.stages.chat.generate", exhausted)
    file, out = study_file(tmp_path, model), str(tmp_path / "out")
    assert "out of memory" in fails(capsys, 5, "study", "run", "--config", file, "--out", out)
    assert run(["study", "status", out, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["id"] for row in rows if row["state"] == "failed"] == ["chat"]
    monkeypatch.undo()
    assert run(["train", "sft", "--config", file, "--out", out]) == 0  # and it goes on


def test_interrupted_studies_say_that_they_can_go_on(model: Path, tmp_path: Path) -> None:
    file, out = study_file(tmp_path, model), tmp_path / "out"
    command = [sys.executable, "-m", "caryatid", "study", "run", "--config", file, "--out", str(out)]

    def heed_interrupts() -> None:  # a shell's background job ignores them, and so would its children
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts
    )
    deadline = time.monotonic() + 240
    while not (out / "stages").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    printed, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert printed == ""
    assert said.strip().splitlines()[-1].startswith("caryatid: interrupted. Run the same command again")
    assert "Traceback" not in said


def test_a_group_without_a_command_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    for group in (["study"], ["models"], ["data"], ["attack"], ["judge"], ["directions"], ["geometry"]):
        code = run(group)
        captured = capsys.readouterr()
        assert code in (0, 2)
        assert "Commands" in captured.out + captured.err
        assert len((captured.out + captured.err).splitlines()) > 5
