"""Checkpoints as people bring them: used as they are meant, or refused in one line that names cause and remedy."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from caryatid.errors import CaryatidError
from caryatid.models import weights
from caryatid.models.chat_options import ChatOptions
from caryatid.models.check import check_loaded
from caryatid.models.load import load_model
from caryatid.models.quiet import LoadWarning, quiet_transformers
from tiny import save_tiny, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.usefixtures("own_cache")
IDS = torch.randint(4, 400, (4, 12), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(IDS).logits


def edited(folder: Path, tensors=None, **config: object) -> Path:
    """A model folder with further settings and other tensors."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    if tensors is not None:
        stored = {name: value.clone() for name, value in load_file(folder / "model.safetensors").items()}
        save_file(tensors(stored), folder / "model.safetensors", {"format": "pt"})
    return folder


def with_scales(stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """FP8 weights with a scale for each, as a quantised checkpoint stores them."""
    found = {}
    for name, value in stored.items():
        if "proj" not in name:
            found[name] = value
            continue
        scale = value.abs().max() / 448
        found[name] = (value / scale).to(torch.float8_e4m3fn)
        found[name.replace("weight", "weight_scale_inv")] = scale.reshape(1, 1)
    return found


def one_more_block(stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    more = {k.replace("layers.3.", "layers.4."): v.clone() for k, v in stored.items() if "layers.3." in k}
    return {**stored, **more}


def not_finite(name: str, value: float):
    def change(stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        stored[name].view(-1)[3] = value
        return stored

    return change


BNB = {"quant_method": "bitsandbytes"}
MLP = "model.layers.2.mlp.down_proj.weight"


@pytest.mark.parametrize(
    ("tensors", "config", "code", "message"),
    [
        (with_scales, {}, 3, r"28 stored tensors are not used.*weight_scale_inv.*quantization_config"),
        (one_more_block, {}, 3, r"9 stored tensors are not used.*layers\.4.*smaller model"),
        (lambda s: {**s, "model.layers.0.mlp.up_proj.bias": torch.ones(64)}, {}, 3, "1 stored tensors.*up_proj.bias"),
        (not_finite(MLP, float("nan")), {}, 2, f"1 of its weights are not finite.*{MLP}"),
        (not_finite("model.norm.weight", float("-inf")), {}, 2, "1 of its weights are not finite.*model.norm"),
        (None, {"rope_parameters": {"rope_type": "su", "factor": 2.0}}, 2, "rope_type 'su'.*unknown.*longrope"),
        (None, {"quantization_config": {"quant_method": "gptq", "bits": 4}}, 2, "package.*optimum.*with gptq"),
        (None, {"quantization_config": {**BNB, "load_in_4bit": True}}, 2, "package.*bitsandbytes"),
        (None, {"quantization_config": {**BNB, "load_in_8bit": True}}, 2, "package.*bitsandbytes"),
        (None, {"quantization_config": {"quant_method": "quip9"}}, 2, "with quip9, which transformers does not know"),
        (None, {"num_attention_heads": 5}, 2, "cannot be loaded|mismatched|config.json"),
        (None, {"hidden_act": "newact"}, 2, "cannot be loaded: .*newact"),
    ],
    ids=["scales", "block", "bias", "nan", "inf", "rope", "package", "bnb4", "bnb8", "method", "heads", "activation"],
)  # fmt: skip
def test_refused_in_one_line(tensors, config: dict, code: int, message: str, tmp_path: Path) -> None:
    folder = edited(save_tiny(tmp_path / "model"), tensors, **config)
    with pytest.raises(CaryatidError, match=message) as caught:
        check_loaded(load_model(str(folder), device="cpu"))
    assert (caught.value.exit_code, "\n" in str(caught.value)) == (code, False)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("tensors", "config", "note"),
    [
        (None, {"pad_token_id": 400}, "pad_token_id 400 is beyond its 400 tokens"),
        (None, {"pad_token_id": -1}, "pad_token_id -1 is beyond"),
        (None, {"_attn_implementation": "flash_attention_2"}, r"flash_attention_2, which is not installed"),
        (
            lambda s: {**s, "model.vision_tower.patch.weight": torch.ones(3)},
            {},
            "not needed .parts for images",
        ),
        (
            lambda s: {**s, "mtp.layers.0.weight": torch.ones(3)},
            {},
            "not needed .layers that predict further tokens",
        ),
    ],
    ids=["pad", "negative pad", "flash", "images", "further tokens"],
)
def test_made_to_work_and_said(tensors, config: dict, note: str, tmp_path: Path) -> None:
    folder = edited(save_tiny(tmp_path / "model"), tensors, **config)
    with pytest.warns(LoadWarning, match=note):
        loaded = load_model(str(folder), device="cpu")
    assert torch.equal(logits(loaded.model), logits(tiny_model()))
    assert len(loaded.notes) == len(check_loaded(load_model(str(folder), device="cpu")).notes) == 1


@pytest.mark.parametrize("silent", ["self_attn.o_proj", "mlp.down_proj"])
def test_a_sublayer_that_puts_out_nothing_is_no_other_layout(silent: str, tmp_path: Path) -> None:
    """As in pruned models, and in blocks that were added as identities."""
    name = f"model.layers.2.{silent}.weight"
    folder = edited(save_tiny(tmp_path / "model"), lambda s: {**s, name: torch.zeros_like(s[name])})
    assert check_loaded(load_model(str(folder), device="cpu")).stream_error < 1e-5


def test_fp8_weights_with_their_scales(tmp_path: Path) -> None:
    """Dequantised by hand is the independent answer."""
    settings = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    folder = edited(save_tiny(tmp_path / "fp8"), with_scales, quantization_config=settings)
    stored = load_file(folder / "model.safetensors")
    plain = tiny_model()
    plain.load_state_dict({
        name: value.float() * stored.get(name.replace("weight", "weight_scale_inv"), torch.ones(1, 1)).squeeze()
        for name, value in stored.items() if not name.endswith("scale_inv")
    })  # fmt: skip
    found, expected = logits(load_model(str(folder), device="cpu").model), logits(plain)
    assert (found - expected).norm() < 1e-5 * expected.norm()


def test_a_bug_of_ours_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_check_keys", lambda *_: {}["ours"])
    with pytest.raises(KeyError, match="ours"):
        load_model(str(save_tiny(tmp_path / "model")), device="cpu")


def test_memory_that_runs_out_is_not_blamed_on_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: object, **_kwargs: object) -> None:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", full)
    with pytest.raises(torch.OutOfMemoryError):
        load_model(str(save_tiny(tmp_path / "model")), device="cpu")


def test_several_templates(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    tokenizer = tiny_tokenizer()
    plain = tokenizer.chat_template
    named = {"rag": plain.replace("tiny", "quoting"), "tool_use": plain.replace("tiny", "handy")}
    (folder / "chat_template.jinja").unlink()
    tokenizer.chat_template = named
    tokenizer.save_pretrained(folder)
    with pytest.raises(CaryatidError, match=r"several chat templates \(rag, tool_use\).*--template NAME"):
        check_loaded(load_model(str(folder), device="cpu"))
    with pytest.raises(CaryatidError, match=r"no chat template 'rga' \(it has rag, tool_use\)"):
        load_model(str(folder), device="cpu", options=ChatOptions(template="rga"))
    (tmp_path / "mine.jinja").write_text(plain.replace("tiny", "own"))
    identities = set()
    for template, word in (("rag", "quoting"), ("tool_use", "handy"), (str(tmp_path / "mine.jinja"), "own")):
        loaded = load_model(str(folder), device="cpu", options=ChatOptions(template=template))
        assert f"You are a {word} model" in loaded.chat().text("Hi")
        identities.add(loaded.identity)
    (tmp_path / "mine.jinja").write_text(plain.replace("tiny", "other"))
    identities.add(load_model(str(folder), device="cpu", options=ChatOptions(template=template)).identity)
    assert len(identities) == 4


@pytest.mark.parametrize(
    "name",
    [
        *(
            "generation_config.json",
            "additional_chat_templates/rag.jinja",
            "added_tokens.json",
            "config.json",
        ),
        *("quantize_config.json", "special_tokens_map.json", "tokenizer_config.json", "chat_template.jinja"),
    ],
)
def test_identity_covers_every_file_that_changes_an_answer(name: str, tmp_path: Path) -> None:
    from caryatid.models.identity import folder_identity

    folder = save_tiny(tmp_path / "model")
    before = folder_identity(folder)
    (folder / "README.md").write_text("Words.")
    (folder / "trainer_state.json").write_text("{}")
    assert folder_identity(folder) == before
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text('{"other": 1}')
    assert folder_identity(folder) != before


def test_transformers_warnings_are_ours_to_say(tmp_path: Path) -> None:
    """Notes are issued outside the silence that transformers is loaded in."""
    folder = edited(save_tiny(tmp_path / "model"), None, pad_token_id=999)
    with quiet_transformers(), pytest.warns(LoadWarning):
        load_model(str(folder), device="cpu")
