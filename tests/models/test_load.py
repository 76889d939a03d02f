import importlib.util
import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    BloomConfig,
    BloomForCausalLM,
    T5Config,
)
from transformers.utils import logging as hf_logging

from caryatid.errors import CaryatidError, DataMissingError, InputError, UsageError
from caryatid.models import convert
from caryatid.models.adapters import add_adapter
from caryatid.models.check import check_loaded
from caryatid.models.forward import last_logits
from caryatid.models.generate import Decoding, generate
from caryatid.models.load import choose_device, load_model
from caryatid.models.template import ChatFormat
from tiny import save_tiny, tiny_model, tiny_tokenizer

IDS = torch.tensor([[5, 17, 90, 33, 8]])
pytestmark = pytest.mark.usefixtures("own_cache")


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def make_adapter(path: Path, base: str | None, seed: int = 0) -> Path:
    """A LoRA adapter with non-zero weights, saved as peft saves it."""
    model = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(path)
    config = json.loads((path / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = base
    (path / "adapter_config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize("arch", ["llama", "gemma2", "gpt2"])
def test_a_folder_loads_ready_for_measurement(arch: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", arch)
    loaded = load_model(str(folder), device="cpu")
    assert torch.equal(logits(loaded.model), logits(tiny_model(arch)))
    assert (loaded.dtype, loaded.device.type, loaded.spec) == (torch.float32, "cpu", str(folder))
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.tokenizer.padding_side == "left"
    half = load_model(str(folder), device="cpu", dtype="bfloat16")
    assert half.dtype == torch.bfloat16 == next(half.model.parameters()).dtype


def test_identity_follows_weights_configuration_and_template(tmp_path: Path) -> None:
    first = save_tiny(tmp_path / "a")
    same = shutil.copytree(first, tmp_path / "b")
    identity = load_model(str(first), device="cpu").identity
    assert load_model(str(same), device="cpu").identity == identity
    (same / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    templated = load_model(str(same), device="cpu").identity
    weights = load_file(same / "model.safetensors")
    save_file(
        {key: value + 1 for key, value in weights.items()}, same / "model.safetensors", {"format": "pt"}
    )
    changed = load_model(str(same), device="cpu").identity
    assert len({identity, templated, changed}) == 3


def test_a_tokenizer_without_pad_token_gets_filling_only(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    assert load_model(str(folder), device="cpu").tokenizer.pad_token_id == 2


def test_an_adapter_is_merged_into_its_base_in_memory(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", str(base))
    before = {path.name: path.read_bytes() for path in base.iterdir()}
    loaded = load_model(str(adapter), device="cpu")
    plain = load_model(str(base), device="cpu")
    assert (logits(loaded.model) - logits(plain.model)).abs().max() > 1e-2
    # Independently: W + (alpha / r) B A for every adapted matrix.
    lora = load_file(adapter / "adapter_model.safetensors")
    config = json.loads((adapter / "adapter_config.json").read_text())
    scale = config["lora_alpha"] / config["r"]
    expected = dict(plain.model.state_dict())
    for key, a in lora.items():
        if key.endswith("lora_A.weight"):
            name = key.removeprefix("base_model.model.").replace(".lora_A", "")
            expected[name] = expected[name] + scale * lora[key.replace("lora_A", "lora_B")] @ a
    found = loaded.model.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.identity != plain.identity
    assert {path.name: path.read_bytes() for path in base.iterdir()} == before


def test_adapters_chain_and_errors_name_the_adapter(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    first = make_adapter(tmp_path / "first", str(base), seed=1)
    second = make_adapter(tmp_path / "second", str(first), seed=2)
    both = add_adapter(add_adapter(load_model(str(base), device="cpu").model, first), second)
    torch.testing.assert_close(logits(load_model(str(second), device="cpu").model), logits(both))
    with pytest.raises(InputError, match=r"does not name its base model.*base_model_name_or_path"):
        load_model(str(make_adapter(tmp_path / "orphan", None)))
    with pytest.raises(DataMissingError, match=r"gone.*its base model cannot be used.*no such model folder"):
        load_model(str(make_adapter(tmp_path / "gone", str(tmp_path / "nowhere"))))
    with pytest.raises(InputError, match="does not end"):
        load_model(str(make_adapter(tmp_path / "self", str(tmp_path / "self"))))
    wide = tmp_path / "wide"
    save_tiny(wide, width=64)
    with pytest.raises(InputError, match="does not fit its base model"):
        load_model(str(make_adapter(tmp_path / "unfit", str(wide))), device="cpu")


def broken_folder(tmp_path: Path, kind: str) -> str:
    folder = save_tiny(tmp_path / "model")
    weights = folder / "model.safetensors"
    if kind == "pickled":
        weights.unlink()
        torch.save({}, folder / "pytorch_model.bin")
    elif kind == "no weights":
        weights.unlink()
    elif kind == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif kind == "garbage":
        weights.write_bytes(b"garbage")
    elif kind == "tensors missing":
        tensors = load_file(weights)
        tensors.pop("model.layers.1.mlp.up_proj.weight")
        save_file(tensors, weights, {"format": "pt"})
    elif kind == "wrong shape":
        tensors = load_file(weights)
        tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(3, 3)
        save_file(tensors, weights, {"format": "pt"})
    elif kind == "no tokenizer":
        for path in folder.glob("tokenizer*"):
            path.unlink()
    elif kind == "bad config":
        (folder / "config.json").write_text("{")
    elif kind == "unknown type":
        (folder / "config.json").write_text('{"model_type": "nonesuch"}')
    elif kind == "remote code":
        (folder / "config.json").write_text('{"model_type": "nonesuch", "auto_map": {"AutoConfig": "x.Y"}}')
    elif kind == "no config":
        (folder / "config.json").unlink()
    elif kind == "gguf in it":
        (folder / "config.json").unlink()
        (folder / "a.gguf").write_bytes(b"GGUF")
    elif kind == "encoder-decoder":
        T5Config(d_model=8, num_layers=1).save_pretrained(folder)
    elif kind == "encoder":
        BertForMaskedLM(
            BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
        ).save_pretrained(folder)
    elif kind == "more tokens":
        tokenizer = tiny_tokenizer()
        tokenizer.add_tokens(["<|new|>"], special_tokens=True)
        tokenizer.chat_template = "<|new|>" + tokenizer.chat_template
        tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("kind", "code", "message"),
    [
        ("pickled", 2, "pickled.*save_pretrained"),
        ("no weights", 3, r"no \.safetensors file"),
        ("truncated", 3, "damaged.*Download"),
        ("garbage", 3, "damaged"),
        ("tensors missing", 2, "1 missing keys in its weights, first model.layers.1.mlp.up_proj.weight"),
        ("wrong shape", 2, "1 mismatched keys"),
        ("no tokenizer", 2, "no tokenizer files"),
        ("bad config", 2, "not valid JSON"),
        ("unknown type", 2, "no model type 'nonesuch'"),
        ("remote code", 2, "trust_remote_code"),
        ("no config", 2, "no config.json"),
        ("gguf in it", 2, "Name one of them: .*a.gguf"),
        ("encoder-decoder", 2, "encoder–decoder"),
        ("encoder", 2, "BertForMaskedLM is not a causal language model"),
        ("more tokens", 2, "writes token 400, the model has 400"),
    ],
)
def test_folders_that_cannot_be_used(tmp_path: Path, kind: str, code: int, message: str) -> None:
    folder = broken_folder(tmp_path, kind)
    with pytest.raises(CaryatidError, match=message) as caught:
        load_model(folder, device="cpu")
    assert caught.value.exit_code == code
    assert "\n" not in str(caught.value)
    assert folder in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "code", "message"),
    [
        ("somebody/some-model", 3, "HF_HUB_OFFLINE"),
        ("./nowhere", 3, "no such model folder"),
        ("nowhere.gguf", 3, "no such file"),
    ],
)
def test_models_that_are_nowhere(spec: str, code: int, message: str) -> None:
    with pytest.raises(DataMissingError, match=message) as caught:
        load_model(spec)
    assert caught.value.exit_code == code
    assert spec in str(caught.value)


def test_a_hub_id_is_found_in_the_hubs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Laid out as huggingface_hub lays it out: `main` and another revision, and a repository of pickles only."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--org--tiny"
    (repository / "refs").mkdir(parents=True)
    for name, commit, arch in (("main", "a" * 40, "llama"), ("old", "b" * 40, "gpt2")):
        (repository / "refs" / name).write_text(commit)
        save_tiny(repository / "snapshots" / commit, arch)
    assert torch.equal(logits(load_model("org/tiny", device="cpu").model), logits(tiny_model("llama")))
    old = load_model("org/tiny", revision="old", device="cpu")
    assert torch.equal(logits(old.model), logits(tiny_model("gpt2")))
    with pytest.raises(DataMissingError, match="org/tiny"):
        load_model("org/tiny", revision="older")
    adapter = make_adapter(tmp_path / "adapter", "org/tiny")
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert load_model(str(adapter), device="cpu").spec == str(adapter)
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "revision": "older"}))
    with pytest.raises(DataMissingError, match="its base model cannot be used: org/tiny"):
        load_model(str(adapter), device="cpu")
    (repository / "snapshots" / ("a" * 40) / "model.safetensors").unlink()
    with pytest.raises(DataMissingError, match=r"no \.safetensors file.*pickled"):
        load_model("org/tiny")


def test_what_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Further chat templates lie in a folder of their own; other folders hold other formats."""
    from huggingface_hub.utils import filter_repo_objects

    files = ["config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "pytorch_model.bin"]
    files += ["additional_chat_templates/rag.jinja", "onnx/config.json", "original/model.safetensors"]
    files += ["consolidated.safetensors"]
    asked: list[str] = []

    def download(_spec: str, allow_patterns: list[str], ignore_patterns: list[str], **_rest: object) -> str:
        asked.extend(
            filter_repo_objects(files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns)
        )
        return str(save_tiny(tmp_path / "model"))

    monkeypatch.setattr("caryatid.models.resolve.snapshot_download", download)
    load_model("org/tiny", device="cpu")
    assert asked == [*files[:4], files[5]]


def test_other_bad_input(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("notes")
    fake = tmp_path / "fake.gguf"
    fake.write_bytes(b"not that")
    hollow = tmp_path / "hollow.gguf"
    hollow.write_bytes(b"GGUF" + bytes(60))
    for path, message in ((text, "not GGUF"), (fake, "not a GGUF file"), (hollow, "cannot read this GGUF")):
        with pytest.raises(InputError, match=message):
            load_model(str(path))
    with pytest.raises(UsageError, match="unknown dtype 'int3'"):
        load_model("embedded", dtype="int3")
    with pytest.raises(UsageError, match="device"):
        load_model("embedded", device="abacus")


@pytest.mark.parametrize(
    ("counts", "named", "chosen"),
    [
        ({}, None, "cpu"),
        ({"mps": 1}, None, "mps"),
        ({"xpu": 2, "mps": 1}, None, "xpu"),
        ({"cuda": 1, "xpu": 2}, None, "cuda"),
        ({"xpu": 2}, "xpu:1", "xpu:1"),
        ({"mps": 1}, "mps", "mps"),
        ({"cuda": 1}, "cpu", "cpu"),
    ],
)
def test_devices(
    counts: dict[str, int], named: str | None, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rules only: neither XPU nor MPS is here."""
    monkeypatch.setattr("caryatid.models.load._devices", lambda kind: {"cpu": 1, **counts}.get(kind, 0))
    assert choose_device(named) == torch.device(chosen)
    for absent in {"cuda", "xpu", "mps"} - counts.keys():
        with pytest.raises(UsageError, match=f"no device '{absent}' here"):
            choose_device(absent)
    with pytest.raises(UsageError, match=r"cannot run on device 'meta'\. Use cpu, cuda, xpu or mps"):
        choose_device("meta")


def test_transformers_settings_are_restored(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_info()
    hf_logging.enable_progress_bar()
    try:
        load_model(str(folder), device="cpu")
        assert hf_logging.get_verbosity() == hf_logging.INFO
        assert hf_logging.is_progress_bar_enabled()
    finally:
        hf_logging.set_verbosity(verbosity)
        if not bars:
            hf_logging.disable_progress_bar()


def test_loading_says_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = save_tiny(tmp_path / "model")
    capfd.readouterr()
    load_model(str(folder), device="cpu")
    assert tuple(capfd.readouterr()) == ("", "")


def test_report_of_a_model(tmp_path: Path) -> None:
    report = check_loaded(load_model(str(save_tiny(tmp_path / "model", "gpt2")), device="cpu"))
    assert (report.architecture, report.layers, report.width, report.vocabulary) == (
        "GPT2LMHeadModel",
        4,
        32,
        400,
    )
    assert report.parameters == sum(parameter.numel() for parameter in tiny_model("gpt2").parameters())
    assert report.positions == len(report.post_tokens) == 7
    assert report.end_of_turn == report.stop == ("<|im_end|>",)
    assert report.stream_error < 1e-5
    assert json.loads(json.dumps(report.to_dict()))["dtype"] == "float32"


def test_reports_refuse_what_cannot_be_measured(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    with pytest.raises(InputError, match="no token after the user's text"):
        check_loaded(load_model(str(folder), device="cpu"))
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(InputError, match="no chat template"):
        check_loaded(load_model(str(folder), device="cpu"))
    # BLOOM's sublayers return the stream with their output added, so its sites are not what they seem.
    bloom = tmp_path / "bloom"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BloomForCausalLM(BloomConfig(vocab_size=400, hidden_size=32, n_layer=2, n_head=4)).save_pretrained(
            bloom
        )
    tiny_tokenizer().save_pretrained(bloom)
    with pytest.raises(
        InputError, match=r"something else than their attention and MLP.*BloomAttention does not reach"
    ):
        check_loaded(load_model(str(bloom), device="cpu"))


@pytest.mark.slow
def test_the_embedded_backbone(own_cache: Path) -> None:
    """Converted from the wheel into an empty cache, against the GGUF file as transformers reads it."""
    loaded = load_model("embedded", device="cpu")
    report = check_loaded(loaded)
    assert (report.layers, report.width, report.vocabulary) == (30, 576, 49152)
    assert (report.dtype, report.identity) == ("float32", convert.EMBEDDED_SHA256)
    assert "".join(report.post_tokens) == "<|im_end|>\n<|im_start|>assistant\n"
    assert loaded.tokenizer.pad_token_id == loaded.tokenizer.eos_token_id
    place = importlib.util.find_spec(convert.EMBEDDED_PACKAGE).submodule_search_locations[0]
    direct = AutoModelForCausalLM.from_pretrained(place, gguf_file=convert.EMBEDDED_FILE, dtype=torch.float32)
    found = dict(loaded.model.named_parameters())
    for name, value in direct.named_parameters():
        assert torch.equal(found[name], value), name
    chat = ChatFormat(loaded.tokenizer)
    texts = ["What is the capital of France?", "Name three colours."]
    answers = generate(loaded, chat, texts, Decoding(16, 2))
    assert "Paris" in answers[0].text
    for text, answer in zip(texts, answers, strict=True):
        ids = chat.ids(text)
        logits = last_logits(
            loaded, [ids + list(answer.ids[:n]) for n in range(answer.n_tokens)], batch_size=8
        )
        assert logits.argmax(-1).tolist() == list(answer.ids)
    began = time.perf_counter()
    assert load_model("embedded", device="cpu").identity == loaded.identity
    assert time.perf_counter() - began < 5  # 0.2 s on an idle machine; reading the GGUF file takes 16
