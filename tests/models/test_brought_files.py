"""Folders and GGUF files as people bring them: which files count, what names mean, what is missing."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_brought_models import logits
from test_convert import write_gguf
from tokenizers import AddedToken

from caryatid.errors import CaryatidError
from caryatid.models.check import check_loaded
from caryatid.models.gguf_facts import GgufFacts, split_otherwise
from caryatid.models.load import load_model
from caryatid.models.quiet import LoadWarning
from tiny import save_tiny, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.usefixtures("own_cache")
INDEX = "model.safetensors.index.json"


def sharded(folder: Path) -> Path:
    """A tiny model in three files and more."""
    save_tiny(folder)
    (folder / "model.safetensors").unlink()
    tiny_model().save_pretrained(folder, max_shard_size="40KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    return folder


def part(folder: Path, number: int = 1) -> Path:
    return sorted(folder.glob("model-*.safetensors"))[number]


def another_whole(folder: Path) -> None:
    save_tiny(folder / "other", seed=5)
    shutil.move(folder / "other" / "model.safetensors", folder / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (lambda f: part(f).unlink(), 3, r"1 of the \d files of its weights are missing, first model-00002.*again"),
        (lambda f: part(f).write_bytes(part(f).read_bytes()[:-90]), 3, r"model-00002-of-\S+ is damaged.*again"),
        (lambda f: part(f).write_text("version https://git-lfs.github.com/spec/v1\n"), 3, r"pointer of Git LFS"),
        (another_whole, 2, r"two sets of weights: model\.safetensors, and the parts.*Remove the set"),
        (lambda f: (f / INDEX).unlink(), 2, r"in model-00001-of-\S+, not in model\.safetensors.*put the index"),
        (lambda f: (f / INDEX).write_text("{"), 2, "index.json: not an index of weights.*again"),
        (lambda f: (f / "config.json").unlink(), 2, "not a model folder"),
    ],
    ids=["missing", "damaged", "pointer", "two sets", "no index", "broken index", "no configuration"],
)  # fmt: skip
def test_weights_that_are_not_whole(
    change: Callable[[Path], Any], code: int, message: str, tmp_path: Path
) -> None:
    folder = sharded(tmp_path / "model")
    change(folder)
    with pytest.raises(CaryatidError, match=message) as caught:
        load_model(str(folder), device="cpu")
    assert (caught.value.exit_code, "\n" in str(caught.value)) == (code, False)


def test_files_beside_the_weights_are_named(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "model")
    assert torch.equal(logits(load_model(str(folder), device="cpu").model), logits(tiny_model()))
    save_file({"more": torch.ones(1)}, folder / "model-00099-of-00099.safetensors")
    with pytest.warns(LoadWarning, match="1 files are not among its weights and not used: model-00099"):
        loaded = load_model(str(folder), device="cpu")
    assert torch.equal(logits(loaded.model), logits(tiny_model()))


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "module.", "_forward_module.module."])
def test_weights_saved_inside_a_wrapper(wrapper: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    stored = load_file(folder / "model.safetensors")
    named = {wrapper + name: value for name, value in stored.items()}
    save_file(named, folder / "model.safetensors", {"format": "pt"})
    with pytest.warns(LoadWarning, match=f"names were read without {wrapper}"):
        loaded = load_model(str(folder), device="cpu")
    assert torch.equal(logits(loaded.model), logits(tiny_model()))


def test_a_model_inside_peft_is_told_apart(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    stored = load_file(folder / "model.safetensors")
    stored = {name.replace("q_proj.", "q_proj.base_layer."): value for name, value in stored.items()}
    stored["model.layers.0.self_attn.q_proj.lora_A.default.weight"] = torch.ones(2, 32)
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CaryatidError, match=r"an adapter that is not merged.*merge_and_unload"):
        load_model(str(folder), device="cpu")


def settings(file: str, **changed: object) -> Callable[[Path], Any]:
    def change(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))

    return change


def integers(folder: Path) -> None:
    stored = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    save_file(
        {**stored, name: (stored[name] * 90).to(torch.int8)}, folder / "model.safetensors", {"format": "pt"}
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            settings("config.json", rms_norm_eps="1e-5"),
            r"config\.json: transformers cannot read it: .*rms_norm_eps",
        ),
        (settings("config.json", dtype="float99"), r"config\.json: transformers cannot read it: .*float99"),
        (
            settings("config.json", rope_parameters={"rope_type": "yarn"}),
            r"config\.json: transformers cannot read it",
        ),
        (settings("config.json", model_type=["llama"]), r"knows no model type \"\['llama'\]\""),
        (settings("config.json", quantization_config={"bits": 4}), r"quantization_config names no method"),
        (
            lambda f: (f / "generation_config.json").write_text("{"),
            r"generation_config\.json: not valid JSON",
        ),
        (
            integers,
            r"1 of its weights are integers, first model\.layers\.1\.mlp\.up_proj.*quantization_config",
        ),
    ],
    ids=["type", "dtype", "rope", "kind", "method", "generation", "integers"],
)
def test_settings_that_cannot_be_read_are_named(
    change: Callable[[Path], Any], message: str, tmp_path: Path
) -> None:
    folder = save_tiny(tmp_path / "model")
    change(folder)
    with pytest.raises(CaryatidError, match=message) as caught:
        load_model(str(folder), device="cpu")
    assert (caught.value.exit_code, "\n" in str(caught.value)) == (2, False)


def test_settings_of_outputs_change_nothing(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    settings("config.json", return_dict=False, output_hidden_states=True, use_cache=False)(folder)
    loaded = load_model(str(folder), device="cpu")
    assert torch.equal(logits(loaded.model), logits(tiny_model()))
    assert check_loaded(loaded).layers == 4


def test_a_folder_of_checkpoints_names_one(tmp_path: Path) -> None:
    save_tiny(tmp_path / "run" / "checkpoint-10")
    with pytest.raises(
        CaryatidError, match=r"not a model folder.*Name a folder in it, such as \S+checkpoint-10"
    ):
        load_model(str(tmp_path / "run"))
    with pytest.raises(CaryatidError, match="no such path") as caught:
        load_model("~nobody-of-this-name/model")
    assert caught.value.exit_code == 3


def test_a_padding_token_without_an_embedding_is_filling_only(tmp_path: Path) -> None:
    """As training scripts add one without resizing the model."""
    folder = save_tiny(tmp_path / "model")
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    with pytest.warns(LoadWarning, match="padding token 400 has no embedding and is not used"):
        loaded = load_model(str(folder), device="cpu")
    assert loaded.tokenizer.pad_token_id == 2
    tokenizer.add_special_tokens({"eos_token": AddedToken("<end>", special=True)})
    tokenizer.save_pretrained(folder)
    with pytest.raises(CaryatidError, match="writes token 401, the model has 400"):
        load_model(str(folder), device="cpu")


def test_the_template_of_a_processor_is_read(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    before = load_model(str(folder), device="cpu").chat().text("Hi")
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": tiny_tokenizer().chat_template}))
    assert load_model(str(folder), device="cpu").chat().text("Hi") == before


def of_kind(kind: str, number: int = 0) -> Callable[[Any], None]:
    def add(writer: Any) -> None:
        if kind == "split":
            writer.add_uint16("split.no", number)
            writer.add_uint16("split.count", 3)
        else:
            writer.add_string("general.type", kind)

    return add


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("split", "part 1 of 3 of a model.*gguf-split --merge"),
        ("adapter", "holds no model but a LoRA adapter.*PEFT's folder"),
        ("mmproj", "holds no model but a model's part for images"),
        ("new", "holds no model but 'new'"),
    ],
)
def test_gguf_files_that_hold_no_whole_model(kind: str, message: str, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "file.gguf", add=of_kind(kind))
    with pytest.raises(CaryatidError, match=message) as caught:
        load_model(str(path))
    assert (caught.value.exit_code, "\n" in str(caught.value)) == (2, False)


def test_a_gguf_file_that_is_not_whole(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "file.gguf")
    whole = path.read_bytes()
    for length in (2000, len(whole) - 5000):
        path.write_bytes(whole[:length])
        with pytest.raises(CaryatidError, match=r"damaged or not whole.*Download it again") as caught:
            load_model(str(path))
        assert (caught.value.exit_code, "\n" in str(caught.value)) == (2, False)


def test_a_gguf_file_is_known_by_its_content(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf").rename(tmp_path / "sha256-0123")
    torch.testing.assert_close(logits(load_model(str(path), device="cpu").model), logits(tiny_model()))


@pytest.mark.parametrize(
    ("splits", "pre_tokenizer", "said"),
    [
        ("smollm", {"type": "ByteLevel", "use_regex": True}, None),
        ("llama-bpe", {"type": "Sequence", "pretokenizers": []}, None),
        (None, None, None),
        ("deepseek-v3", {"type": "ByteLevel", "use_regex": True}, "pre = deepseek-v3"),
        ("", {"type": "ByteLevel", "use_regex": True}, "does not say how"),
    ],
)
def test_text_that_is_split_otherwise_than_a_gguf_file_asks(
    splits: str | None, pre_tokenizer: dict | None, said: str | None
) -> None:
    found = split_otherwise(GgufFacts("llama", {}, (), {}, splits), pre_tokenizer)
    assert bool(found) == (said is not None)
    assert said is None or said in found[0]


def test_quantised_and_narrow_gguf_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dequantised by the gguf package is the independent answer."""
    import gguf
    from gguf.quants import dequantize, quantize

    whole = gguf.GGUFWriter.add_tensor
    for kind in (gguf.GGMLQuantizationType.BF16, gguf.GGMLQuantizationType.Q8_0):

        def narrow(writer: Any, name: str, tensor: np.ndarray, kind: Any = kind) -> None:
            if tensor.ndim == 2:
                whole(writer, name, quantize(tensor, kind), raw_dtype=kind)
            else:
                whole(writer, name, tensor)

        monkeypatch.setattr(gguf.GGUFWriter, "add_tensor", narrow)
        path = write_gguf(tmp_path / f"{kind.name}.gguf")
        model = tiny_model()
        for parameter in model.parameters():
            if parameter.ndim == 2:
                values = dequantize(quantize(parameter.numpy(), kind), kind)
                parameter.data = torch.from_numpy(values.reshape(parameter.shape).copy())
        found = logits(load_model(str(path), device="cpu").model)
        assert (found - logits(model)).norm() < 1e-5 * found.norm()
        assert (found - logits(tiny_model())).norm() > 1e-4 * found.norm()
