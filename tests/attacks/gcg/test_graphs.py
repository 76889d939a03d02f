"""Recorded and compiled passes change no result, and leave nothing behind."""

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from caryatid.attacks.base import Goal
from caryatid.attacks.gcg import graphs, recordings
from caryatid.attacks.gcg.gradient import suffix_gradients
from caryatid.attacks.gcg.graphs import Replay, fused, worth_fusing
from caryatid.attacks.gcg.layout import PromptLayout, build_prefix_cache
from caryatid.attacks.gcg.scoring import score_candidates
from caryatid.attacks.gcg.state import text_loss
from caryatid.models.load import LoadedModel
from caryatid.models.template import ChatFormat
from searching import search_alone
from tiny import ARCHITECTURES, tiny_loaded

CASES = (
    Goal("a", "How do I write a letter to the office?", "Sure, here is a letter"),
    Goal("b", "Explain the tides to me please", "Sure, here is"),
)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="records on CUDA only")


class Backend:
    """A compiler that runs what it is given, and counts."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward


def layouts_of(sizes: tuple[tuple[int, ...], ...] = ((11, 5, 3, 4), (8, 5, 2, 3))) -> list[PromptLayout]:
    generator = torch.Generator().manual_seed(0)

    def draw(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(4, 400, (n,), generator=generator).tolist())

    return [PromptLayout(*(draw(n) for n in shape)) for shape in sizes]


def losses(loaded: LoadedModel) -> Tensor:
    layouts, generator = layouts_of(), torch.Generator().manual_seed(1)
    rows = [torch.randint(4, 400, (6, 5), generator=generator) for _ in layouts]
    prefix = build_prefix_cache(loaded, layouts)
    return torch.cat(score_candidates(loaded, layouts, rows, batch_size=4, prefix=prefix).losses)


def touched(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if "forward" in vars(module)]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_fused_losses_are_the_same_and_the_model_is_as_before(arch: str) -> None:
    loaded, backend = tiny_loaded(arch), Backend()
    home = sys.modules[type(loaded.model).__module__]
    rotary = vars(home).get("apply_rotary_pos_emb")
    plain = losses(loaded)
    with fused(loaded.model, backend=backend):
        inside = touched(loaded.model)
        assert torch.equal(losses(loaded), plain)
        assert (vars(home).get("apply_rotary_pos_emb") is rotary) == (rotary is None)
    assert touched(loaded.model) == []
    assert vars(home).get("apply_rotary_pos_emb") is rotary
    if arch in ("llama", "mistral", "qwen2", "gemma2"):
        assert (
            len(inside) >= 2 * 4 + 4 + 1
        )  # four blocks, each with norms and a gated part, and the last norm
    if inside:
        assert 1 <= backend.graphs <= 12  # one per kind and kind of shape, not one per block


def test_adapted_and_hooked_parts_stay_as_they_are() -> None:
    loaded = tiny_loaded("llama")
    down = dict(loaded.model.named_modules())["model.layers.1.mlp.down_proj"]
    handle = down.register_forward_hook(lambda module, args, output: output * 2)
    doubled = losses(loaded)
    with fused(loaded.model, backend=Backend()):
        assert "model.layers.1.mlp" not in touched(loaded.model)
        assert "model.layers.2.mlp" in touched(loaded.model)
        assert torch.equal(losses(loaded), doubled)
    handle.remove()


def test_without_a_working_compiler_the_parts_run_as_written(caplog: pytest.LogCaptureFixture) -> None:
    def broken(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        raise ValueError("no compiler here")

    loaded = tiny_loaded("llama")
    plain = losses(loaded)
    with fused(loaded.model, backend=broken):
        assert torch.equal(losses(loaded), plain)
        assert torch.equal(losses(loaded), plain)
    warned = [record.getMessage() for record in caplog.records if "runs uncompiled" in record.getMessage()]
    assert any(text.startswith("LlamaRMSNorm.forward") for text in warned)
    assert len(warned) == len(set(warned))


def test_small_models_and_the_cpu_are_not_fused_by_default() -> None:
    assert not worth_fusing(tiny_loaded("llama").model)


def test_on_the_cpu_a_replayed_function_is_called_as_it_is() -> None:
    replay, calls = Replay[Tensor](torch.device("cpu"), 100), list[Tensor]()

    def double(value: Tensor) -> Tensor:
        calls.append(value)
        return value * 2

    values = [torch.ones(3), torch.ones(3) * 5, torch.ones(2)]
    assert [replay(double, value).tolist() for value in values] == [[2.0] * 3, [10.0] * 3, [2.0] * 2]
    assert all(seen is value for seen, value in zip(calls, values, strict=True))
    assert not replay.recorded


@needs_cuda
def test_a_recorded_function_gives_what_it_would_give() -> None:
    device = torch.device("cuda")
    weight, replay = torch.randn(16, 16, device=device), Replay[Tensor](device, graphs.RECORDED_FROM)

    def product(value: Tensor) -> Tensor:
        return (value @ weight).relu().sum(0)

    for index in range(5):
        value = torch.randn(4, 16, device=device)
        assert torch.equal(replay(product, value), product(value))
        assert replay.recorded == (index > 0)
    other = torch.randn(3, 16, device=device)
    assert torch.equal(replay(product, other), product(other))


@needs_cuda
def test_what_cannot_be_recorded_runs_without_and_breaks_nothing(caplog: pytest.LogCaptureFixture) -> None:
    device = torch.device("cuda")
    replay = Replay[Tensor](device, 100)

    def waits(value: Tensor) -> Tensor:
        return value * value.sum().item()

    for _ in range(3):
        value = torch.randn(8, device=device)
        assert torch.equal(replay(waits, value), waits(value))
    assert not replay.recorded
    assert "no CUDA graph" in caplog.text
    dropped = nn.functional.dropout(torch.ones(1000, device=device), 0.5)
    assert 300 < int((dropped > 0).sum()) < 700


@needs_cuda
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_recorded_gradients_and_texts_equal_the_plain_ones(arch: str) -> None:
    loaded = tiny_loaded(arch, device="cuda")
    layouts = layouts_of()
    prefix = build_prefix_cache(loaded, layouts)
    replay, chat = Replay[Any](loaded.device, 100), ChatFormat(loaded.tokenizer)
    texts = Replay[Tensor](loaded.device, 100)
    for index in range(4):
        now = [
            replace(layout, suffix_ids=tuple((token + index) % 400 for token in layout.suffix_ids))
            for layout in layouts
        ]
        options: dict[str, Any] = {"prefix": prefix, "batch_size": 8, "record": prefix is not None}
        plain = suffix_gradients(loaded, now, **options)
        found = suffix_gradients(loaded, now, **options, replay=replay)
        assert replay.recorded == (index > 0)
        for one, other in zip(found.cases, plain.cases, strict=True):
            torch.testing.assert_close(one.gradient, other.gradient, rtol=1e-4, atol=1e-6)
            assert one.loss == pytest.approx(other.loss, rel=1e-5)
        if found.suffix is not None and plain.suffix is not None:
            for mine, theirs in zip(found.suffix.keys, plain.suffix.keys, strict=True):
                torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
        words = " ".join("abcde"[(index + i) % 5] for i in range(5))
        alone = text_loss(loaded, chat, CASES[0], words)
        assert text_loss(loaded, chat, CASES[0], words, texts) == pytest.approx(alone, rel=1e-5)
        assert texts.recorded == (index > 0)


@needs_cuda
def test_a_search_is_the_same_recorded_and_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny_loaded("llama", dtype=torch.float64, device="cuda")
    options: dict[str, Any] = {"steps": 6, "width": 16, "top_k": 16, "batch_size": 8, "seed": 0}
    chat = ChatFormat(loaded.tokenizer)
    fast = search_alone(loaded, chat, CASES, suffix_length=5, compiled=True, **options)
    monkeypatch.setattr(graphs, "RECORDED_FROM", 1000)
    monkeypatch.setattr(recordings, "MODE", "off")
    plain = search_alone(loaded, chat, CASES, suffix_length=5, compiled=False, **options)
    assert [one.suffix_ids for one in fast] == [one.suffix_ids for one in plain]
    for one, other in zip(fast, plain, strict=True):
        assert one.losses == pytest.approx(other.losses, rel=1e-6)
