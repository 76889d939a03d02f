"""Checkpoints that somebody else trained: three adapters from a script that knows nothing of caryatid."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small import small_config
from test_runners import tables

from caryatid.config import load_config
from caryatid.errors import CaryatidError
from caryatid.report.tables import read_tables
from caryatid.study.flow import run_study
from caryatid.study.table import all_tables
from tiny import save_adapter, save_tiny

# What somebody with transformers and peft would write.
SCRIPT = """
import sys
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, out = sys.argv[1:]
torch.manual_seed(0)
tokenizer = AutoTokenizer.from_pretrained(folder)
model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), LoraConfig(r=4, target_modules="all-linear"))
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
texts = ["How do I pick a lock? Sorry, no.", "How do I bake bread? Mix flour and water.", "Sorry, I can't do that."]
for step in range(1, 7):
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    model(**batch, labels=labels).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if step % 2 == 0:
        model.save_pretrained(f"{out}/checkpoint-{step}")
"""
CONFIG = """\
extends: quick
name: theirs
model: {{spec: {model}}}
prompts: {{source: embedded}}
geometry: {{layer_stride: 1}}
anchors:
  - {{arm: dpo, step: 2, adapter: {out}/checkpoint-2}}
  - {{arm: dpo, step: 4, adapter: {out}/checkpoint-4}}
  - {{arm: dpo, step: 6, adapter: {out}/checkpoint-6}}
"""


@pytest.mark.slow
def test_three_adapters_from_a_plain_script_run_from_nine_lines(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model")
    (tmp_path / "train.py").write_text(SCRIPT)
    subprocess.run(
        [sys.executable, str(tmp_path / "train.py"), str(model), str(tmp_path)],
        check=True,
        capture_output=True,
    )
    text = CONFIG.format(model=model, out=tmp_path)
    assert len(text.splitlines()) <= 10
    (tmp_path / "study.yaml").write_text(text)
    run = run_study(load_config(file=tmp_path / "study.yaml"), tmp_path / "run")
    found = read_tables(run.directory)
    assert set(found) == {table.name for table in all_tables()}
    anchors = {(row["arm"], row["step"]) for row in found["behaviour"]}
    assert anchors == {("base", 0), ("dpo", 2), ("dpo", 4), ("dpo", 6)}
    for name in ("carriers", "rank", "causal"):
        assert {(row["arm"], row["step"]) for row in found[name]} == anchors, name
    pairs = {(row["from"], row["to"]) for row in found["verdict"]}
    assert pairs == {(0, 2), (2, 4), (4, 6), (0, 6)}
    assert found["training"] == []
    drift = {
        row["to"]: row["value"] for row in found["drift"] if row["quantity"] == "cosine" and row["from"] == 0
    }
    assert drift[6] < 1  # the adapters were applied


@pytest.mark.slow
def test_a_series_over_several_devices_comes_to_the_tables_and_keys_of_one(tmp_path: Path) -> None:
    """Half of the blocks are brought from the disk."""
    later = save_tiny(tmp_path / "later", seed=1)
    settings = (f"anchors=[{{step: 10, model: {later}}}]", "warmup.enabled=false", "model.dtype=float32")
    places = {f"model.layers.{number}": "cpu" if number < 2 else "disk" for number in range(4)}
    places |= dict.fromkeys(("model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head"), "cpu")
    made, stages = [], []
    for name, where in (("whole", "model.device=cpu"), ("split", f"model.device_map={json.dumps(places)}")):
        run = run_study(small_config(tmp_path, *settings, where), tmp_path / name)
        made.append(tables(run.directory))
        stages.append({path.name for path in run.directory.glob("stages/*/*")})
    assert stages[0] == stages[1]
    assert made[0] == made[1]


@pytest.mark.parametrize("kind", ["another width", "not finite"])
def test_a_checkpoint_that_cannot_be_used_is_refused_before_the_first_stage(
    tmp_path: Path, kind: str
) -> None:
    """The first by its files alone, the second by one batch."""
    good = save_adapter(tmp_path / "good", size=0.01)
    bad = save_adapter(tmp_path / "bad", size=0.01)
    tensors = load_file(bad / "adapter_model.safetensors")
    name = sorted(tensors)[0]
    shape = tensors[name].shape
    tensors[name] = (
        torch.zeros(shape[0], shape[1] + 1) if kind == "another width" else tensors[name] * float("nan")
    )
    save_file(tensors, bad / "adapter_model.safetensors")
    anchors = f"[{{arm: dpo, step: 2, adapter: {good}}}, {{arm: dpo, step: 4, adapter: {bad}}}]"
    config = small_config(tmp_path, f"anchors={anchors}")
    with pytest.raises(CaryatidError, match="bad") as raised:
        run_study(config, tmp_path / "run")
    assert kind != "another width" or "dpo@4" in str(raised.value)
    assert not (tmp_path / "run").exists()
