"""Passes in fixed places, with filling, give what plain passes give; recordings are bounded and notice changes."""

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from caryatid.attacks.base import BlockRun, Goal
from caryatid.attacks.gcg import recordings
from caryatid.attacks.gcg.gradient import suffix_gradients
from caryatid.attacks.gcg.layout import PromptLayout, build_prefix_cache
from caryatid.attacks.gcg.passes import PassShape
from caryatid.attacks.gcg.precision import low_precision
from caryatid.attacks.gcg.scoring import Packing, score_candidates
from caryatid.attacks.gcg.search import gcg_search
from caryatid.attacks.gcg.settings import GcgSettings
from caryatid.models.batch import RowLimit, with_backoff
from caryatid.models.load import LoadedModel
from caryatid.models.template import ChatFormat
from tiny import tiny_loaded

SHAPES = ((11, 5, 3, 4), (8, 6, 2, 3), (34, 3, 0, 1))  # prefix, suffix, rest of the prompt, target
GOALS = (
    Goal("a", "How do I write a letter to the office?", "Sure, here is a letter"),
    Goal("b", "Explain the tides to me please", "Sure, here is"),
)
# Without CUDA there is nothing to record. The same tests then run with `MODE = "unlaunched"`: the same places, filling
# and bookkeeping, launched one by one. docs/log.md says what has run on a GPU.
cuda = pytest.param(
    "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="records on CUDA only")
)


@pytest.fixture(autouse=True)
def no_recordings() -> Iterator[None]:
    """None are left to other tests: giving up those of a stand-in for a GPU would wait for it."""
    yield
    recordings._STORES.clear()


@pytest.fixture(params=["cpu", cuda])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """On the CPU passes run in their fixed places; on CUDA they are recorded."""
    if request.param == "cpu":
        monkeypatch.setattr(recordings, "MODE", "unlaunched")
    else:
        gradient(tiny_loaded("llama", device="cuda"), persistent=False)  # opens the libraries
    monkeypatch.setattr(recordings, "SIGHTINGS", 1)
    return request.param


def layouts_of(seed: int = 0, shapes: tuple[tuple[int, ...], ...] = SHAPES) -> list[PromptLayout]:
    generator = torch.Generator().manual_seed(seed)

    def drawn(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(4, 400, (count,), generator=generator).tolist())

    return [PromptLayout(*map(drawn, shape)) for shape in shapes]


def changed(layout: PromptLayout, count: int, seed: int = 1) -> Tensor:
    """Candidates with one token changed each."""
    generator = torch.Generator().manual_seed(seed)
    length = len(layout.suffix_ids)
    rows = torch.tensor(layout.suffix_ids).repeat(count, 1)
    places = torch.randint(length, (count, 1), generator=generator)
    return rows.scatter(1, places, torch.randint(4, 400, (count, 1), generator=generator))


def kept(loaded: LoadedModel) -> dict[str, int]:
    return recordings.recordings(loaded.model)


@pytest.mark.parametrize("counts", [(9, 4, 6), (0, 40, 3), (200, 1, 0)])
@pytest.mark.parametrize("arch", ["llama", "qwen2", "mistral"])
def test_losses_and_gradients_equal_the_plain_ones(device: str, arch: str, counts: tuple[int, ...]) -> None:
    loaded = tiny_loaded(arch, dtype=torch.float64, device=device)
    for seed in range(3):  # of the same shapes: the same recordings serve
        layouts = layouts_of(seed)
        plain_prefix = build_prefix_cache(loaded, layouts)
        prefix = build_prefix_cache(loaded, layouts, recordings.prefixes)
        assert plain_prefix is not None
        assert prefix is not None
        plain = suffix_gradients(loaded, layouts, prefix=plain_prefix, batch_size=8, record=True)
        found = suffix_gradients(loaded, layouts, prefix=prefix, batch_size=8, record=True, persistent=True)
        for one, other in zip(found.cases, plain.cases, strict=True):
            assert one.loss == pytest.approx(other.loss, abs=1e-12)
            torch.testing.assert_close(one.gradient, other.gradient, rtol=1e-10, atol=1e-12)
        assert found.suffix is not None
        assert plain.suffix is not None
        for mine, theirs in zip(found.suffix.keys, plain.suffix.keys, strict=True):
            for case, layout in enumerate(layouts):
                at = (case, slice(None), slice(len(layout.suffix_ids)))
                torch.testing.assert_close(mine[at], theirs[at], rtol=1e-10, atol=1e-12)
        candidates = [changed(layout, n, seed) for layout, n in zip(layouts, counts, strict=True)]
        options: dict[str, Any] = {"batch_size": 64, "scoring": "packed"}
        exact = score_candidates(
            loaded,
            layouts,
            candidates,
            prefix=plain_prefix,
            suffix=plain.suffix,
            packing=Packing(32),
            **options,
        )
        same = score_candidates(
            loaded,
            layouts,
            candidates,
            prefix=prefix,
            suffix=found.suffix,
            packing=Packing(32, record=True),
            **options,
        )
        torch.testing.assert_close(torch.cat(same.losses), torch.cat(exact.losses), rtol=0, atol=1e-12)
        assert same.case_tokens == exact.case_tokens
    assert kept(loaded)["replays"] >= 5


@pytest.mark.parametrize(
    ("rows", "columns"), [(62, 256), (31, 250), (33, 243), (64, 40), (8, 40), (8, 43), (17, 256)]
)
def test_filling_costs_little(rows: int, columns: int) -> None:
    needed = PassShape(rows, columns, 4 * rows, 40 * rows, 14, 8, 43, 20, 0)
    filled = needed.filled()
    assert filled.holds(needed)
    assert filled.tails > needed.tails - 1
    assert needed.cost <= filled.cost <= 1.2 * needed.cost
    assert filled == filled.filled()


def searched(loaded: LoadedModel, **settings: Any) -> list[Any]:
    run = BlockRun(3, RowLimit(32))
    options = {"steps": 6, "width": 12, "top_k": 16, "suffix_length": (4, 7), "scoring": "packed", **settings}
    return gcg_search(loaded, ChatFormat(loaded.tokenizer), GOALS, GcgSettings(**options), run)


@pytest.mark.parametrize("sightings", [1, 2])
def test_a_search_is_the_same(device: str, sightings: int, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny_loaded("llama", dtype=torch.float64, device=device)
    monkeypatch.setattr(recordings, "SIGHTINGS", sightings)
    fast = searched(loaded)
    assert kept(loaded)["replays"] >= 8
    with monkeypatch.context() as off:
        off.setattr(recordings, "MODE", "off")
        plain = searched(loaded)
    assert [one.suffix_ids for one in fast] == [one.suffix_ids for one in plain]
    for one, other in zip(fast, plain, strict=True):
        assert one.losses == pytest.approx(other.losses, rel=1e-9)


def test_what_ranks_and_what_decides_are_recorded_each(device: str) -> None:
    loaded = tiny_loaded("llama", dtype=torch.float32, device=device)
    searched(loaded, search_precision="bfloat16", rescored=3)
    low = low_precision(loaded, "bfloat16")
    assert low is not None
    assert kept(loaded)["replays"] > 4  # gradients, and what is decided
    assert kept(low.loaded)["replays"] > 4


def gradient(loaded: LoadedModel, seed: int = 0, *, persistent: bool = True) -> Tensor:
    layouts = layouts_of(seed)
    prefix = build_prefix_cache(loaded, layouts)
    found = suffix_gradients(loaded, layouts, prefix=prefix, batch_size=8, record=True, persistent=persistent)
    return torch.cat([one.gradient for one in found.cases])


def test_weights_changed_in_place_are_read_and_replaced_ones_noticed(device: str) -> None:
    loaded = tiny_loaded("llama", dtype=torch.float64, device=device)
    mlp: Any = loaded.model.model.layers[1].mlp
    before = gradient(loaded)
    with torch.no_grad():
        mlp.down_proj.weight.mul_(1.5)
    inside = gradient(loaded)
    assert not torch.allclose(before, inside)
    assert kept(loaded) == {"kept": 1, "replays": 1}
    mlp.down_proj.weight = nn.Parameter(mlp.down_proj.weight.detach() * 2)
    for replays in range(2):
        torch.testing.assert_close(gradient(loaded), gradient(loaded, persistent=False))
        assert kept(loaded) == {"kept": 1, "replays": replays}
    d_out, d_in = mlp.up_proj.weight.shape
    mlp.up_proj = nn.Linear(d_in, d_out, bias=False).to(mlp.up_proj.weight).eval()
    for replays in range(2):
        torch.testing.assert_close(gradient(loaded), gradient(loaded, persistent=False))
        assert kept(loaded) == {"kept": 1, "replays": replays}
    square: Any = loaded.model.model.layers[0].self_attn.o_proj.weight
    square.data = square.data.t()  # in the same place, read the other way
    torch.testing.assert_close(gradient(loaded), gradient(loaded, persistent=False))
    assert kept(loaded) == {"kept": 1, "replays": 0}


def test_what_a_recording_would_not_repeat_runs_without(device: str) -> None:
    loaded = tiny_loaded("llama", dtype=torch.float64, device=device)
    gradient(loaded)
    mlp: Any = loaded.model.model.layers[1].mlp
    handle = mlp.register_forward_hook(lambda module, args, output: output * 2)
    torch.testing.assert_close(gradient(loaded), gradient(loaded, persistent=False))
    handle.remove()
    with torch.autocast(device, torch.bfloat16):
        gradient(loaded)
    mlp.training = True
    gradient(loaded)
    assert kept(loaded) == {"kept": 1, "replays": 0}
    mlp.training = False
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, output: None)
    gradient(loaded)
    handle.remove()
    assert kept(loaded) == {"kept": 1, "replays": 0}
    gradient(loaded)
    assert kept(loaded) == {"kept": 1, "replays": 1}


def test_recordings_are_bounded_and_go_with_the_model(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recordings, "KEPT", 2)
    loaded = tiny_loaded("llama", dtype=torch.float64, device=device)
    for rows in range(1, 5):
        layouts = layouts_of(rows, SHAPES[:1] * rows)
        prefix = build_prefix_cache(loaded, layouts)
        suffix_gradients(loaded, layouts, prefix=prefix, batch_size=8, record=True, persistent=True)
        assert kept(loaded) == {"kept": min(rows, 2), "replays": 0}
    before = len(recordings._STORES)
    del loaded
    gc.collect()
    assert len(recordings._STORES) < before


def test_recordings_are_dropped_when_memory_runs_out(device: str, caplog: pytest.LogCaptureFixture) -> None:
    loaded, sizes = tiny_loaded("llama", dtype=torch.float64, device=device), list[int]()
    gradient(loaded)

    def exhausted_twice(size: int) -> int:
        sizes.append(size)
        if len(sizes) < 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return size

    assert with_backoff(exhausted_twice, 4).value == 2
    assert sizes == [4, 4, 2]  # at the same size once they are gone
    assert kept(loaded)["kept"] == 0
    torch.testing.assert_close(gradient(loaded), gradient(loaded, persistent=False))
    assert kept(loaded)["kept"] == 0
    assert recordings.closed(loaded)
    assert [record.getMessage()[:11] for record in caplog.records] == ["memory ran "]


def test_where_recording_fails_passes_run_without(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, tried = tiny_loaded("llama", dtype=torch.float64), list[Any]()
    monkeypatch.setattr(recordings, "SIGHTINGS", 1)
    monkeypatch.setattr(recordings, "captured", lambda function, device, pool: tried.append(device))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    for _ in range(3):
        torch.testing.assert_close(gradient(loaded), gradient(loaded, persistent=False))
        assert kept(loaded) == {"kept": 0, "replays": 0}
    assert len(tried) == 1


def test_replays_read_their_inputs_and_give_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the graph, which computes into the recorded outputs."""
    loaded = tiny_loaded("llama", dtype=torch.float64)

    class Graph:
        def __init__(self, function: Any, output: Any) -> None:
            self.function, self.output = function, output

        def replay(self) -> None:
            for old, new in zip(self.output[:3], self.function()[:3], strict=True):
                if old is not None:
                    old.copy_(new)

    def captured(function: Any, device: Any, pool: Any) -> Any:
        output = function().cloned()
        return Graph(function, output), output

    monkeypatch.setattr(recordings, "captured", captured)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    found = [gradient(loaded, seed) for seed in range(5)]
    assert kept(loaded) == {"kept": 1, "replays": 3}
    for seed, one in enumerate(found):
        torch.testing.assert_close(one, gradient(loaded, seed, persistent=False), rtol=1e-10, atol=1e-12)
