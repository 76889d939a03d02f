"""Adapters of 16-bit models are kept beside the weights; their small changes survive. Float32 models merge."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import nn

from caryatid.anchors import Anchor, open_anchor
from caryatid.errors import InputError
from caryatid.models.adapters import AdaptedLinear, add_adapter
from caryatid.models.check import check_loaded
from caryatid.models.layout import decoder_layers, sublayer_outputs
from caryatid.models.load import load_model
from tiny import ARCHITECTURES, save_adapter, save_tiny, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.usefixtures("own_cache")
IDS = torch.randint(4, 400, (192, 12), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    return model(IDS).logits.double()


def truth(arch: str, *adapters: Path) -> nn.Module:
    """The bfloat16 weights and their adapters in float64."""
    model = tiny_model(arch, dtype=torch.bfloat16).double()
    for adapter in adapters:
        model = PeftModel.from_pretrained(model, str(adapter), autocast_adapter_dtype=False).double()
        model = model.merge_and_unload()
    return model


def rounded_merge(model: nn.Module, adapter: Path) -> nn.Module:
    return PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()


def slope(found: torch.Tensor, true: torch.Tensor) -> float:
    """How much of a change is there: 1 for all of it plus unrelated noise, 0 for none."""
    return float((found * true).sum() / true.square().sum())


def test_a_layers_small_change_survives_its_rounding() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = (0.02 * torch.randn(192, 256, generator=generator)).bfloat16()
    down = torch.randn(8, 256, generator=generator) / 256**0.5 / 3**0.5
    up = 2e-4 * torch.randn(192, 8, generator=generator)
    x = torch.randn(512, 256, generator=generator).bfloat16()
    change = x.double() @ (up.double() @ down.double()).T
    exact = x.double() @ weight.double().T + change
    plain = nn.functional.linear(x, weight).double()
    kept = AdaptedLinear(weight, None, down, up)(x)
    assert kept.dtype == torch.bfloat16
    torch.testing.assert_close(kept.double(), exact, rtol=2**-8, atol=1e-5)
    merged = nn.functional.linear(x, (weight.float() + up @ down).bfloat16()).double()
    beside = (plain.bfloat16() + nn.functional.linear(x, (up @ down).bfloat16())).double()
    assert slope(kept.double() - plain, change) == pytest.approx(1.0, abs=0.05)
    assert slope(merged - plain, change) < 0.6
    assert slope(beside - plain, change) < 0.6


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_bfloat16_logits_are_closer_to_the_truth_than_merged_ones(arch: str, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "a", arch, size=2e-2)
    exact, start = logits(truth(arch, adapter)), logits(truth(arch))
    plain = logits(tiny_model(arch, dtype=torch.bfloat16))
    kept = add_adapter(tiny_model(arch, dtype=torch.bfloat16), adapter)
    merged = rounded_merge(tiny_model(arch, dtype=torch.bfloat16), adapter)
    assert (logits(kept) - exact).norm() < (logits(merged) - exact).norm()
    found = slope(logits(kept) - plain, exact - start)
    assert found == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("arch", ["llama", "gpt_neox"])
def test_a_small_change_of_a_whole_model_survives(arch: str, tmp_path: Path) -> None:
    """0.3 % of the logits: below the noise of 16-bit activations in each, but there on average."""
    adapter = save_adapter(tmp_path / "a", arch, size=3e-4)
    change = logits(truth(arch, adapter)) - logits(truth(arch))
    plain = logits(tiny_model(arch, dtype=torch.bfloat16))
    kept = logits(add_adapter(tiny_model(arch, dtype=torch.bfloat16), adapter)) - plain
    merged = logits(rounded_merge(tiny_model(arch, dtype=torch.bfloat16), adapter)) - plain
    assert abs(slope(kept, change) - 1) < 0.25
    assert slope(merged, change) < 0.55


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_float32_models_are_merged_as_peft_merges_them(arch: str, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "a", arch, size=2e-2)
    found = add_adapter(tiny_model(arch), adapter).state_dict()
    expected = rounded_merge(tiny_model(arch), adapter).state_dict()
    assert found.keys() == expected.keys() == tiny_model(arch).state_dict().keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_adapters_add_up_and_the_layout_stays(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    first = save_adapter(tmp_path / "a", size=5e-2, seed=1)
    second = save_adapter(tmp_path / "b", size=5e-2, seed=2)
    opened = open_anchor(
        Anchor("sft", 1, str(base), (str(first), str(second))), dtype="bfloat16", device="cpu"
    )
    exact = logits(truth("llama", first, second))
    assert (logits(opened.model) - exact).norm() < 0.05 * (exact - logits(truth("llama", first))).norm()
    layer = decoder_layers(opened.model)[1].mlp.up_proj
    assert isinstance(layer, AdaptedLinear)
    assert (layer.in_features, layer.out_features) == (32, 64)
    assert (len(layer.down), layer.joined.shape) == (16, (64, 48))  # each rank 4, filled up to 8
    assert torch.equal(layer.weight, tiny_model(dtype=torch.bfloat16).model.layers[1].mlp.up_proj.weight)
    report, plain = check_loaded(opened), check_loaded(load_model(str(base), dtype="bfloat16"))
    assert report.identity != plain.identity  # the adapters' files are part of it
    assert (report.attention_site, report.mlp_site) == (plain.attention_site, plain.mlp_site)
    names = {name for name, _ in tiny_model().named_modules()}
    assert {name for name, _ in opened.model.named_modules()} == names
    assert not any(parameter.requires_grad for parameter in opened.model.parameters())
    assert len(sublayer_outputs(opened.model)) == 4


def test_an_adapter_folder_is_kept_too_and_cannot_be_saved_as_a_base_model(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    adapter = save_adapter(tmp_path / "a", size=5e-2)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(base)}))
    loaded = load_model(str(adapter), dtype="bfloat16", device="cpu")
    opened = open_anchor(Anchor("sft", 1, str(base), (str(adapter),)), dtype="bfloat16", device="cpu")
    assert torch.equal(logits(loaded.model), logits(opened.model))
    loaded.model.save_pretrained(tmp_path / "saved")
    tiny_tokenizer().save_pretrained(tmp_path / "saved")
    with pytest.raises(InputError, match="missing keys"):
        load_model(str(tmp_path / "saved"), device="cpu")


def test_other_kinds_need_float32(tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "dora", size=5e-2, use_dora=True)
    before = logits(tiny_model())
    assert not torch.allclose(logits(add_adapter(tiny_model(), adapter)), before)
    with pytest.raises(InputError, match=r"not plain LoRA.*float32") as caught:
        add_adapter(tiny_model(dtype=torch.bfloat16), adapter)
    assert "\n" not in str(caught.value)
