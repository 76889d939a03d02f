"""Anchors as stored: a run directory can be moved, whatever its path looked like when it was made."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from caryatid.anchors import (
    Anchor,
    anchor_from_json,
    anchor_to_json,
    check_anchors,
    open_anchor,
    open_from,
    try_anchor,
)
from caryatid.errors import CaryatidError, DataMissingError
from caryatid.models.load import load_model
from caryatid.models.quiet import LoadWarning
from tiny import save_adapter, save_tiny, tiny_model, tiny_tokenizer


@pytest.mark.parametrize("absolute", [True, False])
def test_folders_inside_a_run_are_stored_relative_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, absolute: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("run/warm", "run/step", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    at = tmp_path if absolute else Path()
    anchor = Anchor("sft", 2, "org/model", (str(at / "run/warm"), str(at / "run/step")), revision="r1")
    stored = anchor_to_json(anchor, at / "run")
    assert stored["adapters"] == ["warm", "step"]
    assert stored["backbone"] == "org/model"
    (tmp_path / "run").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "elsewhere")
    back = anchor_from_json(stored, tmp_path / "moved")
    assert back.adapters == (str(tmp_path / "moved/warm"), str(tmp_path / "moved/step"))
    assert (back.backbone, back.revision) == ("org/model", "r1")


def test_folders_elsewhere_and_hub_names_stay_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "mine").mkdir()
    anchor = Anchor("theirs", 5, "org/model", (str(tmp_path / "mine"),), weights="org/checkpoint")
    stored = anchor_to_json(anchor, tmp_path / "run")
    assert stored["adapters"] == [str(tmp_path / "mine")]
    assert stored["weights"] == "org/checkpoint"
    assert anchor_from_json(stored, tmp_path / "run") == anchor


def test_a_missing_adapter_is_one_line(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model")
    with pytest.raises(DataMissingError, match="no adapter here"):
        open_anchor(Anchor("sft", 2, str(model), (str(tmp_path / "gone"),)))


def named(adapter: Path, base: str) -> Path:
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": base}))
    return adapter


def test_an_adapter_of_another_base_is_said(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    adapter = save_adapter(tmp_path / "a", size=5e-2)
    anchor = Anchor("dpo", 1, str(base), (str(adapter),))
    named(adapter, "org/another-model")
    with pytest.warns(LoadWarning, match=f"a: it was trained on org/another-model and is added to {base}"):
        opened = open_anchor(anchor, device="cpu")
    assert len(opened.notes) == 1
    loaded = load_model(str(base), device="cpu")
    with pytest.warns(LoadWarning, match="org/another-model"):
        open_from(anchor, Anchor("base", 0, str(base)), loaded)
    same = shutil.copytree(base, tmp_path / "copy")
    for name in (str(base), f"somebody/{base.name}", str(same), "../base"):
        named(adapter, name)
        with warnings.catch_warnings():
            warnings.simplefilter("error", LoadWarning)
            assert open_anchor(anchor, device="cpu").notes == ()
    further = named(save_adapter(tmp_path / "b", size=5e-2, seed=2), str(adapter))
    assert open_anchor(Anchor("dpo", 2, str(base), (str(adapter), str(further))), device="cpu").notes == ()


def test_an_adapters_own_tokenizer_is_used_and_said(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    adapter = named(save_adapter(tmp_path / "a", size=5e-2), str(base))
    anchor = Anchor("dpo", 1, str(base), (str(adapter),))
    plain = open_anchor(anchor, device="cpu")
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(adapter)
    assert open_anchor(anchor, device="cpu").notes == ()
    tokenizer.chat_template = tokenizer.chat_template.replace("tiny", "small")
    tokenizer.save_pretrained(adapter)
    with pytest.warns(LoadWarning, match="chat template of its own, which is used"):
        opened = open_anchor(anchor, device="cpu")
    assert "small model" in opened.chat().text("Hi")
    assert opened.chat().text("Hi") == load_model(str(adapter), device="cpu").chat().text("Hi")
    assert opened.identity != plain.identity


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("prompt", r"PROMPT_TUNING\) cannot be merged"),
        ("gone", "no adapter here"),
        ("wide", "does not fit its base model: size mismatch"),
        ("other", "28 of the adapter's 56 tensors have no place"),
        ("dora", "not plain LoRA.*float32"),
        ("model", "no such model folder"),
    ],
)
def test_a_series_is_checked_before_its_first_stage(
    kind: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = str(save_tiny(tmp_path / "base"))
    good = Anchor("dpo", 1, base, (str(save_adapter(tmp_path / "good", size=5e-2)),))
    bad = tmp_path / "bad"
    backbone = base
    if kind == "prompt":
        settings = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
        get_peft_model(tiny_model(), settings).save_pretrained(bad)
    elif kind == "wide":
        get_peft_model(
            tiny_model(width=64), LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
        ).save_pretrained(bad)
    elif kind == "other":
        model = get_peft_model(tiny_model(layers=8), LoraConfig(r=2, target_modules="all-linear"))
        model.save_pretrained(bad)
        tensors = load_file(bad / "adapter_model.safetensors")
        kept = {k: v for k, v in tensors.items() if int(k.split("layers.")[1].split(".")[0]) in (2, 3, 4, 5)}
        save_file(kept, bad / "adapter_model.safetensors")
    elif kind == "dora":
        save_adapter(bad, size=5e-2, use_dora=True)
    elif kind == "model":
        backbone = str(tmp_path / "nowhere")
    anchors = [good, Anchor("dpo", 2, backbone, () if kind == "model" else (str(bad),))]
    monkeypatch.setattr(PreTrainedModel, "__call__", lambda *_args, **_kwargs: pytest.fail("a forward pass"))
    monkeypatch.setattr("caryatid.anchors.load_model", lambda *_args, **_kwargs: pytest.fail("weights"))
    check_anchors([good], dtype="bfloat16")
    with pytest.raises(CaryatidError, match=f"anchor dpo@2: .*{message}") as caught:
        check_anchors(anchors, dtype="bfloat16")
    assert "\n" not in str(caught.value)


def test_one_batch_of_an_anchor(tmp_path: Path) -> None:
    base = str(save_tiny(tmp_path / "base"))
    adapter = named(save_adapter(tmp_path / "a", size=5e-2), base)
    anchor = Anchor("dpo", 1, base, (str(adapter),))
    report = try_anchor(anchor, device="cpu")
    assert (report.layers, report.identity) == (4, open_anchor(anchor, device="cpu").identity)
    (Path(base) / "chat_template.jinja").unlink()
    with pytest.raises(CaryatidError, match="no chat template"):
        try_anchor(anchor, device="cpu")
