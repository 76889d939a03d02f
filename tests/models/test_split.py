"""A model whose blocks lie on several devices measures what the same model on one device does.

On a CPU: two virtual devices (`virtual_devices.py`), and blocks that accelerate brings from the disk: bit for bit.
With CUDA: blocks on a GPU and on the CPU, and on two GPUs where there are two.
"""

import copy
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.hooks import attach_align_device_hook_on_blocks
from torch.utils._pytree import tree_flatten_with_path, tree_map

from caryatid.attacks.base import BlockRun, Goal
from caryatid.attacks.embedding import embedding_search
from caryatid.attacks.gcg.engine import gcg_engine
from caryatid.attacks.gcg.layout import PromptLayout, build_prefix_cache
from caryatid.attacks.gcg.scoring import SCORINGS
from caryatid.attacks.gcg.settings import GcgSettings
from caryatid.attacks.gcg.state import start_state, text_loss
from caryatid.attacks.settings import EmbeddingSettings
from caryatid.causal.attribution import ablate_sublayers, attribute
from caryatid.causal.cone import ConeLoss
from caryatid.causal.scores import CandidateDirections, ScoringSettings, SelectionPrompts, score_candidates
from caryatid.cli.options import ModelOptions
from caryatid.errors import InputError, UsageError
from caryatid.models.adapters import with_adapter
from caryatid.models.affine import Affine
from caryatid.models.batch import RowLimit, plan_batch_sizes
from caryatid.models.check import check_loaded
from caryatid.models.directional import Ablate, Add, orthonormal
from caryatid.models.forward import answer_logprobs, block_inputs, last_logits
from caryatid.models.generate import Decoding, Sampling, generate, generate_ids
from caryatid.models.load import LoadedModel, load_model
from caryatid.models.placement import described
from caryatid.models.residual import Intervention, Touched
from caryatid.models.template import ChatFormat
from caryatid.models.turns import Turn
from caryatid.training.settings import TrainingSettings
from caryatid.training.trainee import Trainee
from searching import candidate_losses, search_alone, steps_of, suffix_gradient
from tiny import save_adapter, save_tiny, tiny_loaded
from virtual_devices import FIRST, SECOND, OverTwoDevices, VirtualDevices, keep_on_parameters, put

WIDTH, LAYERS = 32, 4
TEXTS = ["How do I write a letter?", "Hi", "What is the capital of France? Explain it to the user.", "Please"]
GOAL = Goal("letter", "How do I write a letter to the office?", "Sure, here is a letter")
OTHER = Goal("tides", "Explain the tides", "Sure, the tides")
# Virtual devices check the same on a CPU; these add what only GPUs show: run on one H200, on two not yet.
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="places blocks on a GPU")
needs_two = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="places blocks on two GPUs")


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def places_of(first: str | int, second: str | int, tied: bool = False) -> dict[str, str | int]:
    """Embeddings and the first two blocks on one device, the rest on another."""
    blocks = {f"model.layers.{number}": first if number < 2 else second for number in range(LAYERS)}
    head = {"model.norm": second, "lm_head": first if tied else second}
    return {"model.embed_tokens": first, "model.rotary_emb": first, **blocks, **head}


def hooked(loaded: LoadedModel, first: str, second: str) -> LoadedModel:
    """Its modules run where `places_of` says from now on, the CPU included, where `device_map` would only keep them."""
    model: Any = loaded.model
    places = places_of(first, second, tied=model.config.tie_word_embeddings)
    attach_align_device_hook_on_blocks(
        model,
        execution_device={**places, "": first},
        offload=dict.fromkeys(places, False),
        skip_keys=model._skip_keys_device_placement,
    )
    model.hf_device_map = places
    return replace(loaded, device=torch.device(first))


def virtual(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    """A copy on two virtual devices, to be used inside `VirtualDevices`."""
    monkeypatch.setattr("accelerate.utils.modeling.clear_device_cache", lambda *_, **__: None)  # slow
    keep_on_parameters(monkeypatch)
    model: Any = copy.deepcopy(loaded.model)
    for name, place in places_of(FIRST, SECOND, tied=model.config.tie_word_embeddings).items():
        module = model.get_submodule(name)
        put([*module.parameters(), *module.buffers()], place)
    with VirtualDevices():
        return hooked(replace(loaded, model=model), FIRST, SECOND)


def changes(rows: int) -> list[Intervention]:
    """One of each kind, a row per text."""
    strength = torch.linspace(0.0, 1.5, rows)
    basis = torch.stack([orthonormal(draw(2, WIDTH, seed=row)) for row in range(rows)])
    layers = torch.arange(rows) % LAYERS
    return [
        Ablate(basis, strength),
        Add(draw(rows, WIDTH), layers, strength),
        Affine(draw(rows, WIDTH, seed=5), draw(rows, WIDTH, seed=6), strength, layers.flip(0)),
    ]


def forwards(loaded: LoadedModel) -> dict[str, Any]:
    """Sites, logits with interventions and without, and answers."""
    seqs = ChatFormat(loaded.tokenizer).ids_many(TEXTS)
    changed, touched = changes(len(seqs)), Touched([0, 0, 0])
    inputs = partial(block_inputs, loaded, seqs, layers=range(LAYERS), n_positions=2, batch_size=3)
    answers = [[7, 8, 9], [30], [40, 2, 42, 43, 44], [5, 6]]
    given = generate_ids(loaded, seqs, Decoding(8, 3), stop=(), interventions=changed, touched=touched)
    return {
        "logits": last_logits(loaded, seqs, batch_size=3),
        "one row": last_logits(loaded, seqs[2:3], batch_size=1)[0],
        "changed": last_logits(loaded, seqs, batch_size=3, interventions=changed),
        "answers": answer_logprobs(loaded, seqs, answers, batch_size=3, interventions=changed),
        "inputs": inputs(),
        "changed inputs": inputs(interventions=changed),
        "given": given,
        "touched": touched.per_intervention,
        "plain": generate_ids(loaded, seqs, Decoding(8, 3), stop=()),
        "sampled": generate_ids(loaded, seqs, Decoding(6, 4, Sampling(seed=3)), stop=()),
        "fit": check_loaded(loaded).stream_error,
    }


def causes(loaded: LoadedModel) -> dict[str, Any]:
    """Scored candidates with COSMIC's outputs, attribution, and a cone's loss with its slope."""
    seqs = ChatFormat(loaded.tokenizer).ids_many(TEXTS)
    harmful, harmless, tokens = seqs[:2], seqs[2:], (5, 6, 7, 100)
    candidates = CandidateDirections(draw(4, WIDTH), (-1, -1, -2, -1), (0, 1, 2, 3))
    prompts = SelectionPrompts(harmful, harmless, [[7, 8, 9], [30, 2]], tokens)
    scores = score_candidates(
        loaded, candidates, prompts, ScoringSettings(batch_size=6, cosmic_layers=(1, 2, 3))
    )
    parts = attribute(loaded, harmful, harmless, draw(WIDTH), 3, batch_size=3)
    effects = ablate_sublayers(loaded, harmful, draw(WIDTH), 3, tokens, batch_size=3)
    kinds = (harmful, harmless) if scores.harmful.mean() > scores.harmless.mean() else (harmless, harmful)
    cone = ConeLoss(loaded, *kinds, tokens, layer=2, length=3.0, batch_size=3)
    slope = cone(orthonormal(draw(2, WIDTH, seed=9)))
    return {
        "scores": [getattr(scores, name) for name in ("bypass", "induce", "kl", "kl_answer")],
        "cosmic": list(scores.cosmic or ()),
        "attributed": [parts.attention, parts.mlp, parts.heads, parts.total],
        "effects": [effects.attention, effects.mlp],
        "cone": slope.value,
        "slope": slope.gradient,
    }


def attacks(loaded: LoadedModel) -> dict[str, Any]:
    """A gradient, candidates scored in all ways, searches, embeddings in place of a suffix and an answer to them."""
    chat, generator = ChatFormat(loaded.tokenizer), torch.Generator().manual_seed(0)
    parts = [tuple(torch.randint(4, 400, (n,), generator=generator).tolist()) for n in (11, 5, 3, 4)]
    layout = PromptLayout(*parts)
    rows = torch.randint(4, 400, (9, 5), generator=generator)
    settings = {"steps": 2, "width": 12, "top_k": 24, "suffix_length": 5, "search_precision": "model"}
    (found,) = search_alone(loaded, chat, [GOAL], batch_size=8, seed=0, **settings)
    both = steps_of(
        loaded,
        chat,
        [start_state(chat, goal, length=5) for goal in (GOAL, OTHER)],
        batch_size=8,
        generator=torch.Generator().manual_seed(1),
        **settings,
    )
    (soft,) = embedding_search(
        loaded, chat, [GOAL], EmbeddingSettings(steps=3, suffix_length=4), BlockRun(0, RowLimit(4))
    )
    turn = Turn(soft.sent_text, soft=soft.soft)
    return {
        "gradient": [suffix_gradient(loaded, layout, use_cache=cached).gradient for cached in (True, False)],
        "candidates": [
            candidate_losses(loaded, layout, rows, batch_size=4, scoring=scoring) for scoring in SCORINGS
        ],
        "search": [found.losses, found.suffix_ids],
        "together": [(state.losses, state.suffix_ids) for state in both],
        "text": text_loss(loaded, chat, GOAL, found.suffix_text),
        "soft": soft.losses,
        "answer": generate(loaded, chat, [turn], Decoding(6, 1))[0].ids,
    }


BATTERIES = (forwards, causes, attacks)


def plain(value: Any) -> Any:
    return value.detach().cpu() if isinstance(value, torch.Tensor) else value


def assert_same(found: dict[str, Any], expected: dict[str, Any], *, exact: bool) -> None:
    """Equal, or for another device's arithmetic close in float32; what is counted or chosen is equal in any case.

    A slope is a sum over sites, which are added up device by device.
    """
    for (path, value), (_, wanted) in zip(
        tree_flatten_with_path(found)[0], tree_flatten_with_path(expected)[0], strict=True
    ):
        if isinstance(wanted, torch.Tensor | np.ndarray | float):
            close = 2e-3 if not exact else 1e-5 if "slope" in str(path) else 0.0
            value, wanted = (torch.as_tensor(one).double() for one in (value, wanted))
            torch.testing.assert_close(
                value, wanted, rtol=close, atol=close, equal_nan=True, msg=lambda m, path=path: f"{path}: {m}"
            )
        else:
            assert value == wanted, path


@pytest.mark.parametrize("arch", ["llama", "gemma2"])
@pytest.mark.parametrize("battery", BATTERIES)
def test_virtual_devices_give_the_same(battery: Any, arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gemma 2 has its output matrix, tied to the embeddings, on the first device again."""
    whole = tiny_loaded(arch)
    expected = battery(whole)
    split = virtual(whole, monkeypatch)
    with VirtualDevices():
        found = battery(split)
    assert_same(tree_map(plain, found), tree_map(plain, expected), exact=True)


def test_an_adapter_is_added_where_its_layers_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype in (torch.float32, torch.bfloat16):  # merged, and kept beside
        whole = tiny_loaded("llama", dtype=dtype)
        folder = save_adapter(tmp_path / str(dtype), size=0.3)
        split = virtual(whole, monkeypatch)
        seqs = ChatFormat(whole.tokenizer).ids_many(TEXTS)
        expected = last_logits(replace(whole, model=with_adapter(whole.model, folder)), seqs, batch_size=2)
        with VirtualDevices():
            adapted = replace(split, model=with_adapter(split.model, folder))
            found, before = (last_logits(one, seqs, batch_size=2) for one in (adapted, split))
        assert torch.equal(found, expected)
        assert not torch.equal(before, found)


def test_virtual_devices_refuse_what_a_gpu_refuses() -> None:
    with VirtualDevices():
        first, second = (torch.ones(3, device=device) for device in (FIRST, SECOND))
        for wrong in (
            lambda: first + second,
            lambda: first * torch.ones(3),
            lambda: torch.cat([first, second]),
        ):
            with pytest.raises(OverTwoDevices):
                wrong()
        assert (first + second.to(first.device)).device == first.device
        assert first[torch.tensor([0, 2])].device == first.device
        assert (first * torch.tensor(2.0)).cpu().device == torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("split") / "tiny", layers=LAYERS)


@pytest.fixture
def from_disk(folder: Path) -> LoadedModel:
    return load_model(str(folder), dtype="float32", device_map=places_of("cpu", "disk"))


@pytest.mark.parametrize("battery", BATTERIES)
def test_blocks_that_are_brought_from_the_disk_give_the_same(
    battery: Any, folder: Path, from_disk: LoadedModel
) -> None:
    assert from_disk.split
    assert sum(weight.is_meta for weight in from_disk.model.parameters()) > LAYERS
    expected = battery(load_model(str(folder), dtype="float32", device="cpu"))
    assert_same(tree_map(plain, battery(from_disk)), tree_map(plain, expected), exact=True)


def test_what_lies_where_is_said(folder: Path, from_disk: LoadedModel) -> None:
    where = "cpu: blocks 0–1; disk: blocks 2–3"
    assert described(from_disk.model) == where
    assert from_disk.notes == (f"{folder}: its blocks lie on several devices ({where})",)
    assert check_loaded(from_disk).device == where
    whole = load_model(str(folder), device_map={"": "cpu"}, dtype="float32")
    assert (whole.split, whole.notes, described(whole.model)) == (False, (), "")


def test_an_attack_on_a_split_model_says_so_and_records_nothing(from_disk: LoadedModel) -> None:
    chat = ChatFormat(from_disk.tokenizer)
    states = [start_state(chat, GOAL, length=4)]
    settings = GcgSettings(steps=100, width=64, search_precision="bfloat16", compiled=True)
    engine = gcg_engine(from_disk, chat, states, settings, RowLimit(4), exact=True)
    assert engine.described == "incremental, float32, blocks on several devices"
    assert (engine.low, engine.fuse, engine.gradients._open) == (None, False, False)


def test_what_cannot_be_done_is_refused_in_a_line(
    folder: Path, from_disk: LoadedModel, tmp_path: Path
) -> None:
    load = partial(load_model, str(folder), dtype="float32")
    with pytest.raises(UsageError, match=r"training\.shard: fsdp2"):
        Trainee(from_disk, TrainingSettings(), updates=1, seed=0)
    adapter = save_adapter(tmp_path / "adapter", size=0.1)
    with pytest.raises(InputError, match="an adapter cannot be added to a model with offloaded blocks"):
        with_adapter(from_disk.model, adapter)
    with pytest.raises(InputError, match="leaves its embeddings on no device"):
        load(device_map={**places_of("cpu", "disk"), "model.embed_tokens": "disk"})
    inside = {"model.layers.0.self_attn": "cpu", "model.layers.0.mlp": "disk"}
    rest = {f"model.layers.0.{norm}": "cpu" for norm in ("input_layernorm", "post_attention_layernorm")}
    parts = {name: place for name, place in places_of("cpu", "cpu").items() if name != "model.layers.0"}
    with pytest.raises(InputError, match=r"parts of model\.layers\.0 on cpu and disk"):
        load(device_map={**parts, **inside, **rest})
    with pytest.raises(UsageError, match="device 'cpu' beside a device_map"):
        load(device="cpu", device_map="auto")
    with pytest.raises(UsageError, match="there is no device 'cuda:99' here"):
        load(device_map={"": "cuda:99"})


@pytest.mark.parametrize("given", ["everywhere", "{}", "[1]", '{"model.norm": 0.5}', '{"model.norm": true}'])
def test_a_device_map_that_places_nothing_is_refused(given: str) -> None:
    with pytest.raises(UsageError, match=r"^device_map: .*Use auto, balanced"):
        ModelOptions(device_map=given).load("embedded")


def test_the_command_line_reads_words_and_json(folder: Path) -> None:
    options = {"dtype": "float32", "device": None, "revision": None, "template_arg": []}
    options |= {"system": None, "thinking": "off", "date": None, "template": None}
    split = ModelOptions(**options, device_map=json.dumps(places_of("cpu", "disk"))).load(str(folder))
    assert split.split


@needs_cuda
@pytest.mark.parametrize("second", ["cpu", pytest.param("cuda:1", marks=needs_two)])
@pytest.mark.parametrize("battery", BATTERIES)
def test_blocks_on_two_devices_give_the_same(battery: Any, second: str) -> None:
    whole = tiny_loaded("llama", device="cuda:0")
    split = hooked(tiny_loaded("llama", device="cuda:0"), "cuda:0", second)
    assert {weight.device for weight in split.model.parameters()} == {
        torch.device("cuda:0"),
        torch.device(second),
    }
    assert_same(tree_map(plain, battery(split)), tree_map(plain, battery(whole)), exact=False)


@needs_cuda
@pytest.mark.parametrize(("first", "second"), [(0, "cpu"), pytest.param(0, 1, marks=needs_two)])
@pytest.mark.parametrize("battery", BATTERIES)
def test_a_model_that_transformers_places_gives_the_same(
    battery: Any, first: int, second: int | str, folder: Path
) -> None:
    """Blocks that are kept on the CPU are brought to the GPU in each pass."""
    split = load_model(str(folder), dtype="float32", device_map=places_of(first, second))
    whole = load_model(str(folder), dtype="float32", device="cuda:0")
    assert split.split
    assert not whole.split
    assert split.device == whole.device == torch.device("cuda:0")
    assert_same(tree_map(plain, battery(split)), tree_map(plain, battery(whole)), exact=False)


@needs_two
def test_balanced_places_blocks_on_both_gpus_and_batches_fit_the_fuller_one(folder: Path) -> None:
    loaded = load_model(str(folder), dtype="float32", device_map="balanced")
    assert {weight.device.index for weight in loaded.model.parameters()} == {0, 1}
    assert plan_batch_sizes(loaded, 256).forward >= 1


@needs_cuda
def test_prefix_keys_lie_on_their_blocks_devices() -> None:
    split = hooked(tiny_loaded("llama", device="cuda:0"), "cuda:0", "cpu")
    layout = PromptLayout(tuple(range(5, 16)), (20, 21), (30, 31), (40, 41))
    prefix = build_prefix_cache(split, [layout])
    assert prefix is not None
    assert [keys.device.type for keys in prefix.keys] == ["cuda", "cuda", "cpu", "cpu"]
