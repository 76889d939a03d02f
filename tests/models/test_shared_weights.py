"""Many adapters over one loaded base: each model as if loaded by itself, to the bit; the base stays as it was."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from caryatid.anchors import Anchor, builds_on, open_anchor, open_from
from caryatid.errors import DataMissingError, InputError
from caryatid.models import adapters
from caryatid.models.adapter_files import read_adapter
from caryatid.models.adapters import add_adapter, with_adapter
from caryatid.models.plain_lora import LoraFactors
from caryatid.models.plain_lora import read_plain_lora as read_factors
from caryatid.models.quiet import warn
from caryatid.training.settings import LoraSettings
from tiny import ARCHITECTURES, save_adapter, save_tiny, tiny_model

pytestmark = pytest.mark.usefixtures("own_cache")


def read_plain_lora(model: PreTrainedModel, folder: Path) -> list[LoraFactors] | None:
    return read_factors(model, read_adapter(model, folder, warn))


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_adapters_one_after_the_other_over_one_base(arch: str, dtype: torch.dtype, tmp_path: Path) -> None:
    base = tiny_model(arch, dtype=dtype)
    before = state(base)
    for seed in (1, 2, 1):
        adapter = save_adapter(tmp_path / str(seed), arch, size=5e-2, seed=seed)
        found, alone = with_adapter(base, adapter), add_adapter(tiny_model(arch, dtype=dtype), adapter)
        assert same(state(found), state(alone))
        assert not same(state(found), before)
        ids = torch.arange(4, 40).reshape(2, 18)
        assert torch.equal(found(ids).logits, alone(ids).logits)
        assert same(state(base), before)
        shared, own = found.get_input_embeddings().weight, base.get_input_embeddings().weight
        assert shared.data_ptr() == own.data_ptr()
        assert not any(parameter.requires_grad for parameter in found.parameters())
        assert {name for name, _ in found.named_modules()} == {name for name, _ in base.named_modules()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_factors_from_the_file_are_added_as_peft_adds_them(
    arch: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (save_adapter(tmp_path / str(i), arch, size=5e-2, seed=i) for i in (1, 2))
    found = add_adapter(add_adapter(tiny_model(arch, dtype=dtype), first), second)
    monkeypatch.setattr(adapters, "read_plain_lora", lambda model, folder: None)
    assert same(state(found), state(add_adapter(add_adapter(tiny_model(arch, dtype=dtype), first), second)))


@pytest.mark.parametrize(
    "options",
    [
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2}},
        {"alpha_pattern": {"q_proj": 2}},
        {"use_dora": True},
        {"bias": "lora_only"},
        {"init_lora_weights": "pissa"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_is_more_than_plain_is_left_to_peft(options: dict, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "a", "qwen2", size=5e-2, **options)
    assert read_plain_lora(tiny_model("qwen2"), adapter) is None
    found = state(add_adapter(tiny_model("qwen2"), adapter))
    assert same(found, state(PeftModel.from_pretrained(tiny_model("qwen2"), str(adapter)).merge_and_unload()))


@pytest.mark.parametrize("alpha", [LoraSettings().alpha, 7.5])
def test_an_alpha_with_decimals_as_training_writes_it_is_plain(alpha: float, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "a", size=5e-2)
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    (adapter / "adapter_config.json").write_text(
        json.dumps({**config, "lora_alpha": alpha}), encoding="utf-8"
    )
    assert isinstance(alpha, float)
    assert {one.scale for one in read_plain_lora(tiny_model(), adapter) or ()} == {alpha / config["r"]}
    merged = PeftModel.from_pretrained(tiny_model(), str(adapter)).merge_and_unload()
    assert same(state(with_adapter(tiny_model(), adapter)), state(merged))


def test_adapters_that_do_not_fit_or_are_damaged_are_left_to_peft(tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "a", size=5e-2)
    assert len(read_plain_lora(tiny_model(), adapter) or ()) == 4 * 7
    assert read_plain_lora(tiny_model(width=64), adapter) is None
    with pytest.raises(DataMissingError, match=r"28 of the adapter's 56 tensors have no place.*layers\.2"):
        add_adapter(tiny_model(layers=2), adapter)
    assert read_plain_lora(tiny_model("gpt2"), adapter) is None
    with pytest.raises(InputError, match="does not fit"):
        add_adapter(tiny_model(width=64), adapter)
    (adapter / "adapter_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(DataMissingError, match="its tensors cannot be read"):
        read_plain_lora(tiny_model(), adapter)
    with pytest.raises(InputError, match="not readable as JSON"):
        read_plain_lora(tiny_model(), tmp_path)


@pytest.mark.parametrize(
    "options",
    [{"use_dora": True}, {"bias": "all"}, {"modules_to_save": ["lm_head"]}, {"trainable_token_indices": [7]}],
    ids=["dora", "bias", "modules", "tokens"],
)
def test_other_kinds_leave_the_base_alone_too(options: dict, tmp_path: Path) -> None:
    arch = "qwen2"  # its projections have biases
    base = tiny_model(arch)
    before = state(base)
    adapter = save_adapter(tmp_path / "a", arch, size=5e-2, **options)
    found = with_adapter(base, adapter)
    assert same(state(found), state(add_adapter(tiny_model(arch), adapter)))
    assert same(state(base), before)
    pointers = {parameter.data_ptr() for parameter in base.parameters()}
    assert not pointers & {parameter.data_ptr() for parameter in found.parameters()}


@pytest.mark.parametrize(
    "targets", [["lm_head"], ["lm_head", "q_proj"], ["embed_tokens"], ["lm_head", "embed_tokens"]]
)
def test_an_adapter_on_tied_weights_changes_what_it_names_only(targets: list[str], tmp_path: Path) -> None:
    """PEFT, unmerged, is the independent answer; merging into the shared tensor would change both places."""
    adapter = save_adapter(tmp_path / "tied", "gemma2", size=5e-2, target_modules=targets)
    base = tiny_model("gemma2")
    assert base.lm_head.weight is base.get_input_embeddings().weight
    before = state(base)
    ids = torch.arange(4, 40).reshape(2, 18)
    expected = PeftModel.from_pretrained(tiny_model("gemma2"), str(adapter))(ids).logits
    found, alone = with_adapter(base, adapter), add_adapter(tiny_model("gemma2"), adapter)
    assert (found(ids).logits - expected).norm() < 1e-5 * expected.norm()
    assert same(state(found), state(alone))
    assert not found.config.get_text_config().tie_word_embeddings
    assert same(state(base), before)
    assert base.config.tie_word_embeddings


def test_what_peft_adds_unties_nothing_that_it_does_not_name(tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "dora", "gemma2", size=5e-2, target_modules=["q_proj"], use_dora=True)
    base = tiny_model("gemma2")
    found = add_adapter(base, adapter)
    assert found.lm_head.weight is found.get_input_embeddings().weight
    assert found.config.tie_word_embeddings


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_anchor_from_step_0_is_the_anchor(dtype: str, tmp_path: Path) -> None:
    folder = str(save_tiny(tmp_path / "base"))
    warm, arm, further = (
        str(save_adapter(tmp_path / name, size=5e-2, seed=seed))
        for name, seed in (("warm", 1), ("arm", 2), ("further", 3))
    )
    start = Anchor("base", 0, folder, (warm,))
    loaded = open_anchor(start, dtype=dtype, device="cpu")
    before = state(loaded.model)
    for chain in ((warm, arm), (warm, arm, further), (warm,)):
        anchor = Anchor("sft", 2, folder, chain)
        found = open_from(anchor, start, loaded)
        alone = open_anchor(anchor, dtype=dtype, device="cpu")
        assert same(state(found.model), state(alone.model))
        assert (found.identity, found.spec, found.dtype) == (alone.identity, alone.spec, alone.dtype)
        assert same(state(loaded.model), before)
    with pytest.raises(DataMissingError, match="no adapter here"):
        open_from(Anchor("sft", 2, folder, (warm, str(tmp_path / "gone"))), start, loaded)


def test_what_builds_on_step_0() -> None:
    start = Anchor("base", 0, "m", ("w",), revision="r")
    assert builds_on(Anchor("sft", 1, "m", ("w", "a"), revision="r"), start)
    assert builds_on(start, start)
    for other in (
        Anchor("sft", 1, "m", ("a",), revision="r"),
        Anchor("sft", 1, "m", (), revision="r"),
        Anchor("sft", 1, "m", ("w", "a"), revision="s"),
        Anchor("sft", 1, "n", ("w", "a"), revision="r"),
        Anchor("sft", 1, "m", ("w", "a"), weights="full", revision="r"),
    ):
        assert not builds_on(other, start)
    full = Anchor("base", 0, "m", weights="warmed")
    assert builds_on(Anchor("sft", 1, "m", ("a",), weights="warmed"), full)
    assert not builds_on(Anchor("sft", 1, "m", ("a",)), full)
