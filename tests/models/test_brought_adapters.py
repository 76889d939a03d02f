"""Adapters as people bring them: every stored tensor has an effect, once, or the adapter is refused in one line."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, TrainableTokensConfig, get_peft_model
from safetensors.torch import load_file, save_file
from test_kept_adapters import logits
from tokenizers import AddedToken

from caryatid.errors import CaryatidError
from caryatid.models.adapters import add_adapter, with_adapter
from caryatid.models.check import check_loaded
from caryatid.models.load import load_model
from caryatid.models.quiet import LoadWarning
from tiny import save_adapter, save_tiny, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.usefixtures("own_cache")


def rewrite(adapter: Path, rename=lambda key: key, keep=lambda key: True, config: dict | None = None) -> Path:
    """An adapter's tensors under other names, or some of them; its configuration changed."""
    tensors = load_file(adapter / "adapter_model.safetensors")
    named = {rename(key): value.clone() for key, value in tensors.items() if keep(key)}
    save_file(named, adapter / "adapter_model.safetensors")
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**settings, **(config or {})}))
    return adapter


def peft(adapter: Path, arch: str = "llama") -> torch.Tensor:
    """PEFT's own, unmerged."""
    return logits(PeftModel.from_pretrained(tiny_model(arch), str(adapter)))


@pytest.mark.parametrize(
    "rename",
    [
        lambda key: f"_orig_mod.{key}",
        lambda key: f"module.{key}",
        lambda key: key.replace("base_model.model.", "base_model.model._orig_mod."),
        lambda key: key.replace("layers.", "layers.").replace(
            ".self_attn.", "._fsdp_wrapped_module.self_attn."
        ),
        lambda key: key.removeprefix("base_model.model."),
        lambda key: key.replace("lora_A.weight", "lora_A.default.weight").replace(
            "lora_B.w", "lora_B.default.w"
        ),
        lambda key: key.replace("model.model.", "model.model.language_model."),
        lambda key: f"base_model.model.{key}",
        lambda key: f"_forward_module.module.{key}",
        lambda key: key.replace("lora_A.weight", "lora_A.mine.weight").replace("lora_B.w", "lora_B.mine.w"),
    ],
    ids=[
        "compiled",
        "parallel",
        "inside",
        "sharded",
        "bare",
        "live",
        "vision-language",
        "doubled",
        "engine",
        "named",
    ],
)
@pytest.mark.parametrize("options", [{}, {"use_rslora": True}], ids=["plain", "other"])
def test_names_of_wrappers_are_read(rename, options: dict, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "a", size=5e-2, **options)
    expected = peft(adapter)
    rewrite(adapter, rename)
    with (
        pytest.warns(LoadWarning, match="names were read without")
        if rename("base_model.model.x") != "x"
        else (pytest.MonkeyPatch.context())
    ):
        found = add_adapter(tiny_model(), adapter)
    assert (logits(found) - expected).norm() < 1e-5 * expected.norm()
    assert not torch.allclose(expected, logits(tiny_model()), atol=1e-2)


@pytest.mark.parametrize(
    "targets", [["q_proj", "down_proj"], r".*\.layers\..*(q_proj|down_proj)"], ids=["list", "regex"]
)
def test_settings_that_name_modules_follow_the_tensors(targets: object, tmp_path: Path) -> None:
    """A pattern that misses its module would silently leave its scale to the default."""
    own = {
        "rank_pattern": {"model.layers.2.mlp.down_proj": 2},
        "alpha_pattern": {"model.layers.1.self_attn.q_proj": 64},
    }
    adapter = save_adapter(tmp_path / "a", size=5e-2, target_modules=targets, **own)
    expected = peft(adapter)
    moved = {
        setting: {name.replace("model.", "model.language_model.", 1): value for name, value in values.items()}
        for setting, values in own.items()
    }
    if isinstance(targets, str):
        moved["target_modules"] = targets.replace(r".*\.layers", r".*\.language_model\.layers")
    rewrite(adapter, lambda key: key.replace("model.model.", "model.model.language_model."), config=moved)
    with pytest.warns(LoadWarning, match="names were read without language_model"):
        found = add_adapter(tiny_model(), adapter)
    assert (logits(found) - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize("options", [{}, {"use_dora": True}], ids=["plain", "other"])
@pytest.mark.parametrize(
    ("rename", "message"),
    [
        (lambda key: key.replace("self_attn", "attent"), r"\d+ of the adapter's \d+ tensors have no place.*attent"),
        (lambda key: key.replace("layers.3", "layers.4"), r"\d+ of the adapter's \d+ tensors have no place.*layers\.4"),
        (lambda key: f"transformer.{key}", r"(\d+) of the adapter's \1 tensors have no place.*transformer\.base_model"),
    ],
    ids=["other names", "one block more", "unknown wrapper"],
)  # fmt: skip
def test_tensors_without_a_place_are_named(rename, message: str, options: dict, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "a", size=5e-2, **options)
    rewrite(adapter, rename)
    with pytest.raises(CaryatidError, match=message) as caught:
        add_adapter(tiny_model(), adapter)
    assert (caught.value.exit_code, "\n" in str(caught.value)) == (3, False)


def spoilt(adapter: Path, kind: str) -> Path:
    path = adapter / "adapter_model.safetensors"
    if kind == "empty":
        return rewrite(adapter, keep=lambda key: False)
    if kind == "not gathered":
        tensors = load_file(path)
        save_file({**tensors, next(iter(tensors)): torch.zeros(0)}, path)
    if kind == "lacking":
        shutil.rmtree(adapter)
        save_adapter(adapter, size=5e-2, modules_to_save=["lm_head"])
        return rewrite(adapter, keep=lambda key: "lm_head" not in key)
    if kind == "inside":
        return rewrite(adapter, lambda key: f"policy.{key}", config={"modules_to_save": ["lm_head"]})
    if kind == "unmergeable":
        return save_adapter(adapter, size=5e-2, alora_invocation_tokens=[5, 6], target_modules=["q_proj"])
    if kind == "not finite":
        tensors = load_file(path)
        first = next(iter(tensors))
        save_file({**tensors, first: tensors[first] / 0}, path)
    elif kind == "no type":
        rewrite(adapter, config={"peft_type": None})
    elif kind == "future type":
        rewrite(adapter, config={"peft_type": "LORA9"})
    elif kind == "future setting":
        rewrite(adapter, config={"use_newer_lora": True})
    elif kind == "damaged":
        path.write_bytes(path.read_bytes()[:-50])
    elif kind == "not JSON":
        (adapter / "adapter_config.json").write_text("{")
    elif kind == "prompt":
        shutil.rmtree(adapter)
        settings = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
        get_peft_model(tiny_model(), settings).save_pretrained(adapter)
    return adapter


@pytest.mark.parametrize(
    ("kind", "code", "message"),
    [
        ("empty", 3, "stores no tensor.*gather the weights"),
        ("not gathered", 3, "1 of its 56 tensors are empty, first base_model.*gather the weights"),
        ("lacking", 3, r"does not store base_model\.model\.lm_head\.weight.*Save it again"),
        ("inside", 3, r"56 of the adapter's 56 tensors have no place.*policy\.base_model"),
        ("unmergeable", 2, r"this adapter \(LORA\) cannot be merged.*mergeable kind"),
        ("not finite", 2, "1 of its 56 tensors are not finite, first base_model"),
        ("no type", 2, "what kind of adapter.*peft_type"),
        ("future type", 2, "knows no adapter type 'LORA9'.*Upgrade peft"),
        ("future setting", 2, "does not know its setting 'use_newer_lora'.*Upgrade peft"),
        ("damaged", 3, "tensors cannot be read"),
        ("not JSON", 2, "not readable as JSON"),
        ("prompt", 2, r"PROMPT_TUNING\) cannot be merged"),
    ],
)
def test_adapters_that_cannot_be_used(kind: str, code: int, message: str, tmp_path: Path) -> None:
    adapter = spoilt(save_adapter(tmp_path / "a", size=5e-2), kind)
    for add in (add_adapter, with_adapter):
        with pytest.raises(CaryatidError, match=message) as caught:
            add(tiny_model(), adapter)
        assert (caught.value.exit_code, "\n" in str(caught.value)) == (code, False)


@pytest.mark.parametrize("options", [{}, {"use_dora": True}], ids=["plain", "other"])
def test_what_an_adapter_lacks_is_said(options: dict, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "a", size=5e-2, **options)
    rewrite(adapter, keep=lambda key: "layers.1." not in key)
    with pytest.warns(
        LoadWarning, match=r"stores nothing for 7 of the layers that it names, first model\.layers\.1"
    ):
        add_adapter(tiny_model(), adapter)
    if options:
        return
    with pytest.warns(LoadWarning, match="changes nothing: all its B are zero"):
        add_adapter(tiny_model(), save_adapter(tmp_path / "zero", size=0.0))


def merged(tmp_path: Path) -> Path:
    """Full weights with the adapter merged in, and the adapter beside them, as training scripts leave them."""
    base = save_tiny(tmp_path / "base")
    adapter = save_adapter(tmp_path / "both", size=5e-2)
    model = PeftModel.from_pretrained(tiny_model(), str(adapter)).merge_and_unload()
    model.save_pretrained(adapter)
    tiny_tokenizer().save_pretrained(adapter)
    return rewrite(adapter, config={"base_model_name_or_path": str(base)})


def test_full_weights_beside_an_adapter_are_used_alone(tmp_path: Path) -> None:
    folder = merged(tmp_path)
    adapter = save_adapter(tmp_path / "alone", size=5e-2)
    with pytest.warns(LoadWarning, match="full weights and an adapter; the weights are used as they are"):
        loaded = load_model(str(folder), device="cpu")
    expected = peft(adapter)
    assert (logits(loaded.model) - expected).norm() < 1e-5 * expected.norm()
    # The base's config.json beside an adapter does not make full weights of it.
    (folder / "model.safetensors").unlink()
    found = logits(load_model(str(folder), device="cpu").model)
    assert (found - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["whole", "rows"])
def test_an_adapter_with_new_tokens(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """PEFT on a base resized by hand is the independent answer."""
    base = save_tiny(tmp_path / "base")
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken("<|go|>", special=True), AddedToken("<|eot|>", special=True)])
    tokenizer.chat_template = "<|go|>" + tokenizer.chat_template
    options = {"modules_to_save": ["embed_tokens", "lm_head"]} if kind == "whole" else {}
    options |= {"trainable_token_indices": [400, 401]} if kind == "rows" else {}
    resized = tiny_model(dtype=dtype)
    resized.resize_token_embeddings(402, mean_resizing=False)
    resized.get_output_embeddings().weight.data[400:] = 0
    resized.get_input_embeddings().weight.data[400:] = 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = get_peft_model(
            resized, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", **options)
        )
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn(parameter.shape)
    model.save_pretrained(tmp_path / "a", save_embedding_layers=False)
    tokenizer.save_pretrained(tmp_path / "a")
    rewrite(tmp_path / "a", config={"base_model_name_or_path": str(base)})
    with pytest.warns(LoadWarning, match="resized from 400 to 402"):
        loaded = load_model(str(tmp_path / "a"), device="cpu", dtype=str(dtype).removeprefix("torch."))
    ids = torch.tensor([loaded.chat().ids("Hi"), [400, *loaded.chat().ids("Go")[1:]]])
    assert 400 in ids
    with torch.no_grad():
        peft, found = model.eval()(ids).logits.float(), loaded.model(ids).logits.float()
        exact = copy.deepcopy(model).float()(ids).logits  # the same weights without rounding on the way
    # In 16 bits no further from the exact logits than PEFT is.
    assert (found - exact).norm() < 1.2 * (peft - exact).norm() + 1e-5 * exact.norm()
    assert check_loaded(load_model(str(tmp_path / "a"), device="cpu")).vocabulary == 402


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_token_rows_alone(dtype: torch.dtype, tmp_path: Path) -> None:
    model = get_peft_model(tiny_model(), TrainableTokensConfig(token_indices=[7, 90], task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if "delta" in name:
            parameter.data += 1.0
    model.save_pretrained(tmp_path)
    plain, base = tiny_model(dtype=dtype).get_input_embeddings().weight, tiny_model(dtype=dtype)
    for found in (with_adapter(base, tmp_path), add_adapter(tiny_model(dtype=dtype), tmp_path)):
        changed = (found.get_input_embeddings().weight - plain).float().abs().amax(dim=1)
        assert changed.nonzero()[:, 0].tolist() == [7, 90]
        assert (changed[[7, 90]] - 1).abs().max() < 1e-2
    assert torch.equal(base.get_input_embeddings().weight, plain)


def test_new_tokens_that_an_adapter_does_not_store_are_refused(tmp_path: Path) -> None:
    resized = tiny_model()
    resized.resize_token_embeddings(402, mean_resizing=False)
    model = get_peft_model(resized, LoraConfig(r=2, target_modules=["embed_tokens"], task_type="CAUSAL_LM"))
    model.save_pretrained(tmp_path / "a", save_embedding_layers=False)
    with pytest.raises(
        CaryatidError, match=r"trained with 402 tokens, its base model has 400.*save_embedding_layers"
    ):
        add_adapter(tiny_model(), tmp_path / "a")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "options",
    [
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"trainable_token_indices": [7, 9]},
        {"target_modules": ["q_proj", "lm_head"]},
    ],
    ids=["head", "embedding", "both", "tokens", "factors"],
)
def test_what_an_adapter_stores_beside_factors_over_tied_weights(
    options: dict, dtype: torch.dtype, tmp_path: Path
) -> None:
    settings = {"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", **options}
    model = get_peft_model(tiny_model("gemma2"), LoraConfig(**settings))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn(parameter.shape)
    model.save_pretrained(tmp_path)
    expected = logits(PeftModel.from_pretrained(tiny_model("gemma2", dtype=dtype), str(tmp_path)))
    base = tiny_model("gemma2", dtype=dtype)
    plain = logits(base)
    assert (plain - expected).norm() > 0.1 * expected.norm()
    for found in (with_adapter(base, tmp_path), add_adapter(tiny_model("gemma2", dtype=dtype), tmp_path)):
        exact = dtype == torch.float32
        assert (logits(found) - expected).norm() < (1e-5 if exact else 5e-2) * expected.norm()
    assert torch.equal(logits(base), plain)


def test_a_merge_that_is_another_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from peft.tuners.lora.layer import Linear

    adapter = save_adapter(tmp_path / "a", size=5e-2, use_rslora=True)
    whole = Linear.get_delta_weight
    monkeypatch.setattr(Linear, "get_delta_weight", lambda layer, name: 2 * whole(layer, name))
    with pytest.raises(
        CaryatidError, match=r"\(LORA\) cannot be merged: the merged model's logits differ by"
    ):
        add_adapter(tiny_model(), adapter)


def test_an_adapter_over_quantised_weights_is_refused(tmp_path: Path) -> None:
    """As transformers' FP8 layers are: linear layers whose weights mean nothing without their scales."""
    adapter, model = save_adapter(tmp_path / "a", size=5e-2), tiny_model(dtype=torch.bfloat16)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight = torch.nn.Parameter(module.weight.to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(CaryatidError, match=r"its base model is quantised.*Set base_model_name_or_path"):
        add_adapter(model, adapter)


def test_a_pickled_adapter_is_not_loaded(tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "a", size=5e-2)
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(CaryatidError, match=r"pickled \(adapter_model\.bin\).*safetensors"):
        add_adapter(tiny_model(), adapter)


def test_files_beside_an_adapter_are_no_weights_of_a_model(tmp_path: Path) -> None:
    """A copy of its base's config.json and a value head, as trainers leave them; and an adapter of another library."""
    base, adapter = save_tiny(tmp_path / "base"), save_adapter(tmp_path / "a", size=5e-2)
    expected = peft(adapter)
    rewrite(adapter, config={"base_model_name_or_path": str(base)})
    shutil.copy(base / "config.json", adapter)
    save_file({"v_head.weight": torch.ones(2)}, adapter / "value_head.safetensors")
    found = logits(load_model(str(adapter), device="cpu").model)
    assert (found - expected).norm() < 1e-5 * expected.norm()
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(CaryatidError, match=r"in value_head\.safetensors, not in adapter_model.*MLX"):
        load_model(str(adapter), device="cpu")
