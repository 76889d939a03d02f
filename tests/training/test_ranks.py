"""Several processes training one arm agree with one: sharing, gathering, and whole arms under torchrun (gloo)."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from caryatid.errors import InputError
from caryatid.training.ranks import ALONE, Ranks
from caryatid.training.shards import check_shards
from tiny import save_tiny

ROOT = Path(__file__).parents[2]
# One of torch's threads outlived its process group: a rank aborts when its work is done, once in dozens of launches.
TORN_DOWN = "terminate called without an active exception"
SCRIPT = """
import json, sys
from pathlib import Path
sys.path[:0] = [r"{tests}", r"{tests}/training"]
import test_loop
from dataclasses import asdict, replace
from caryatid.models.layout import decoder_layers
from caryatid.models.load import load_model
from caryatid.models.template import ChatFormat
from caryatid.training.arms import arm_named
from caryatid.training.loop import ArmJob, train_arm
from caryatid.training.ranks import Ranks
from caryatid.training.settings import LoraSettings, TrainingSettings
ranks = Ranks.start()
out = Path(r"{out}")
loaded = load_model(r"{folder}")
settings = TrainingSettings(
    mode="{mode}", lora=LoraSettings(r=2, alpha=4), learning_rate=1e-2, chat_batch_size=3, accumulation=2,
    max_length=64, r2d2=replace(test_loop.ADVERSARIAL, cases=3), shard="{shard}",
)
examples = test_loop.EXAMPLES
job = ArmJob(arm_named("{arm}"), settings, examples, examples[:2], test_loop.BEHAVIOURS, (1, 3), seed=0)
def after(step, _numbers):
    if step == {stop}:
        sys.exit()
arm = train_arm(
    loaded, ChatFormat(loaded.tokenizer), job, out / "anchors", out / "work", ranks=ranks, after_update=after
)
values = list(decoder_layers(loaded.model).parameters())
held = sum(getattr(value, "_local_tensor", value).numel() for value in values)
(out / f"share-{{ranks.rank}}.json").write_text(json.dumps(held / sum(value.numel() for value in values)))
if ranks.main:
    (out / "rows.json").write_text(json.dumps([asdict(row) for row in arm.rows]))
"""


def _launch(arguments: list[str], ranks: int, cwd: Path) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]),
    }
    for _ in range(2):
        found = subprocess.run(
            [sys.executable, *(launcher if ranks > 1 else []), *arguments],
            cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        if found.returncode == 0 or TORN_DOWN not in found.stderr:
            break
    assert found.returncode == 0, found.stderr[-3000:]
    return found


def _trained(
    tmp_path: Path, folder: Path, ranks: int, arm: str, mode: str = "lora", shard: str = "none", stop: int = 0
) -> tuple[list[Any], dict[str, Any]]:
    out = tmp_path / f"{arm}-{ranks}-{shard}"
    out.mkdir(exist_ok=True)
    script = out / "train.py"
    settings = {"folder": folder, "arm": arm, "mode": mode, "shard": shard, "stop": stop}
    script.write_text(SCRIPT.format(tests=ROOT / "tests", out=out, **settings))
    _launch([str(script)], ranks, tmp_path)
    if stop:
        return [], {}
    weights: dict[str, Any] = {}
    for step in (1, 3):
        (file,) = (out / "anchors" / f"step-{step:06d}").glob("*.safetensors")
        weights |= {f"{step}.{name}": value for name, value in load_file(file).items()}
    return json.loads((out / "rows.json").read_text()), weights


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arm", "mode", "ranks"),
    [("r2d2", "lora", 2), ("r2d2_static", "full", 4)],
)
def test_ranks_agree_with_one(tmp_path: Path, arm: str, mode: str, ranks: int) -> None:
    """Three cases and three chat rows on two ranks, and on four, one of which has nothing to do."""
    folder = save_tiny(tmp_path / "llama", "llama")
    one = _trained(tmp_path, folder, 1, arm, mode)
    _check_equal(one, _trained(tmp_path, folder, ranks, arm, mode))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arm", "ranks"),
    [("r2d2", 4), ("r2d2", 2), ("r2d2_static", 2), ("dpo", 2)],
)
def test_weights_in_parts_train_as_whole_ones_do(tmp_path: Path, arm: str, ranks: int) -> None:
    """Also when they are broken off and begun again; of four ranks one has no rows of its own, but runs as well."""
    folder = save_tiny(tmp_path / "llama", "llama")
    one = _trained(tmp_path, folder, 1, arm)
    _trained(tmp_path, folder, ranks, arm, shard="fsdp2", stop=2)
    _check_equal(one, _trained(tmp_path, folder, ranks, arm, shard="fsdp2"))
    files = (tmp_path / f"{arm}-{ranks}-fsdp2").glob("share-*.json")
    shares = [json.loads(file.read_text()) for file in files]
    assert len(shares) == ranks
    assert sum(shares) == pytest.approx(1.0)
    assert max(shares) < 1.3 / ranks  # rank 2 of the adapters cannot be shared out evenly


def test_what_cannot_be_shared_out_is_refused() -> None:
    for mode, dtype in (("full", torch.float32), ("lora", torch.bfloat16)):
        with pytest.raises(InputError, match=r"training\.shard"):
            check_shards(mode, dtype)
    check_shards("lora", torch.float32)


def _check_equal(alone: tuple[list[Any], dict[str, Any]], together: tuple[list[Any], dict[str, Any]]) -> None:
    """Rows and weights of one process and of several, up to rounding."""
    (one_rows, one), (rows, several) = alone, together
    assert several.keys() == one.keys()
    for name, value in one.items():
        torch.testing.assert_close(several[name], value, rtol=1e-3, atol=1e-5)
    for a, b in zip(one_rows, rows, strict=True):
        for key in ("step", "gcg_steps", "tokens", "gcg_tokens", "pool_age"):
            assert a[key] == b[key], key
        for key in (
            "loss_sft",
            "loss_away",
            "loss_toward",
            "loss_dpo",
            "gcg_loss",
            "delta_weight",
            "benign_kl",
        ):
            assert b[key] == pytest.approx(a[key], rel=1e-4, nan_ok=True), key


@pytest.mark.slow
def test_train_under_torchrun_writes_the_anchors_once(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "llama", "llama")
    settings = [
        "anchors=[0,1,2]",
        "training.max_length=64",
        "chat.max_new_tokens=4",
        "prompts.source=embedded",
    ]
    settings += ["warmup.enabled=false", "training.r2d2.cases=3"]
    sets = [word for one in settings for word in ("--set", one)]
    found = {}
    for ranks in (1, 2):
        command = [
            "-m",
            "caryatid",
            "train",
            "r2d2",
            "--model",
            str(folder),
            "--out",
            f"run{ranks}",
            "--json",
            *sets,
        ]
        printed = json.loads(_launch(command, ranks, tmp_path).stdout)
        assert [row["step"] for row in printed["anchors"]] == [1, 2]
        found[ranks] = [
            load_file(next(Path(tmp_path, row["folder"]).glob("*.safetensors"))) for row in printed["anchors"]
        ]
    for one, two in zip(found[1], found[2], strict=True):
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-5)


def test_rows_are_shared_whatever_their_number() -> None:
    for size in (1, 2, 3, 5):
        for count in (0, 1, 4, 7):
            shares = [Ranks(rank, size).mine(count) for rank in range(size)]
            assert sorted(row for share in shares for row in share) == list(range(count))
    assert ALONE.gathered([3, 1], 2) == [3, 1]
    assert ALONE.summed(2.5) == 2.5
    assert ALONE.shared("x") == "x"
    assert ALONE.main
