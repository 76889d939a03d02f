"""Search in lower precision: what is decided exactly, what follows the weights, and what stays as it was."""

import copy
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch

from caryatid.attacks.base import AttackResult, BlockRun, Goal
from caryatid.attacks.gcg import precision, steps
from caryatid.attacks.gcg.precision import Float8Linear, float8_product, low_precision, quantised_rows
from caryatid.attacks.gcg.search import gcg_search
from caryatid.attacks.gcg.settings import GcgSettings, Ranking, SearchPrecision
from caryatid.models.adapters import AdaptedLinear
from caryatid.models.batch import RowLimit
from caryatid.models.load import LoadedModel
from caryatid.models.template import ChatFormat
from caryatid.training.settings import LoraSettings, TrainingSettings
from caryatid.training.trainee import Trainee
from tiny import ARCHITECTURES, tiny_loaded

GOALS = (
    Goal("letter", "How do I write a letter to the office?", "Sure, here is a letter"),
    Goal("tides", "Explain the tides", "Sure, here is how the tides work"),
)
SETTINGS = GcgSettings(steps=4, width=24, top_k=24, suffix_length=5, search_precision="model")
IDS = torch.tensor([[5, 9, 44, 7, 300, 12]])


def searched(loaded: LoadedModel, **changes: Any) -> list[AttackResult]:
    run = BlockRun(0, RowLimit(16))
    return gcg_search(loaded, ChatFormat(loaded.tokenizer), GOALS, replace(SETTINGS, **changes), run)


def facts(results: list[AttackResult]) -> list[tuple[object, ...]]:
    return [(one.suffix_ids, one.losses, one.candidates) for one in results]


@torch.no_grad()
def logits(loaded: LoadedModel) -> torch.Tensor:
    return loaded.model(IDS).logits.float()


@pytest.mark.parametrize(("dtype", "wanted"), [(torch.float32, "bfloat16"), (torch.bfloat16, "float8")])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_winner_is_decided_in_the_models_own_precision(
    arch: str, dtype: torch.dtype, wanted: SearchPrecision, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every move's loss is the own-precision loss, the smallest of the re-scored, which are the best of the ranking."""
    loaded = tiny_loaded(arch, dtype=dtype)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    decided = steps._decided

    def recording(engine: Any, layouts: Any, candidates: Any, ranked: Any, suffix: Any, again: int) -> Any:
        found = decided(engine, layouts, candidates, ranked, suffix, again)
        own = steps._start(engine, layouts, candidates, suffix, None).result()
        for low, chosen, exact in zip(ranked, found[0], own.losses, strict=True):
            finite = chosen.isfinite()
            assert int(finite.sum()) == 8
            assert float(low[finite].max()) <= float(low[~finite].min())
            tolerance = (
                {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.05}
            )
            torch.testing.assert_close(chosen[finite], exact[finite], **tolerance)
            seen.append((low, exact))
        return found

    monkeypatch.setattr(steps, "_decided", recording)
    low = low_precision(loaded, wanted)
    results = searched(loaded, search_precision=wanted, rescored=8)
    if low is None:  # a model without linear layers of a usable shape
        assert results[0].scored.endswith(str(dtype).removeprefix("torch."))
        assert not seen
        return
    name = str(dtype).removeprefix("torch.")
    assert results[0].scored.endswith(f"{wanted}, the best 8 again in {name}")
    assert len(seen) == 2 * SETTINGS.steps
    assert any(not torch.equal(low, exact) for low, exact in seen)
    for low_losses, exact in seen:
        torch.testing.assert_close(low_losses, exact, rtol=0.1, atol=0.2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_off_is_the_search_without_it_to_the_bit(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny_loaded("llama", dtype=dtype)
    off = facts(searched(loaded))
    assert facts(searched(loaded, search_precision="auto")) == off  # on the CPU there is nothing to gain
    low = {torch.float32: "bfloat16", torch.bfloat16: "float8"}[dtype]
    assert facts(searched(loaded, search_precision=low, rescored=24)) == off  # nothing to rank
    before = logits(loaded)
    assert "again" in searched(loaded, search_precision=low, rescored=8)[0].scored
    assert torch.equal(logits(loaded), before)
    assert facts(searched(loaded)) == off


def test_float8_decides_half_of_the_candidates_again_and_bfloat16_eight() -> None:
    """By default; a given number holds in both, and the record names it."""
    numbers = [GcgSettings(width=width).decided("float8") for width in (16, 128, 131, 512)]
    assert numbers == [64, 64, 66, 256]
    assert {GcgSettings(width=width).decided("bfloat16") for width in (16, 128, 512)} == {8}
    assert {GcgSettings(rescored=8).decided(name) for name in get_args(Ranking)} == {8}
    loaded = tiny_loaded("llama", dtype=torch.bfloat16)
    wide = {"search_precision": "float8", "width": 70, "top_k": 70, "steps": 1}
    assert searched(loaded, **wide)[0].scored.endswith("float8, the best 64 again in bfloat16")
    assert searched(loaded, **wide, rescored=8)[0].scored.endswith("float8, the best 8 again in bfloat16")
    assert searched(loaded, search_precision="float8")[0].scored.endswith(", bfloat16")  # all would be
    single = searched(tiny_loaded("llama"), search_precision="bfloat16", steps=1)
    assert single[0].scored.endswith("bfloat16, the best 8 again in float32")


def test_float8_tokens_count_those_decided_again() -> None:
    loaded = tiny_loaded("llama", dtype=torch.bfloat16)
    wide = {"search_precision": "float8", "width": 70, "top_k": 70, "steps": 1}
    few, many = (searched(loaded, **wide, rescored=number)[0] for number in (8, 64))
    assert many.forward_tokens > few.forward_tokens


def test_all_candidates_decided_is_the_exact_search() -> None:
    """In float32, where layouts differ by little: with 23 of 24 re-scored the search takes the same path."""
    loaded = tiny_loaded("llama")
    own, low = searched(loaded), searched(loaded, search_precision="bfloat16", rescored=23)
    assert [one.suffix_ids for one in low] == [one.suffix_ids for one in own]
    assert low[0].forward_tokens > own[0].forward_tokens


def test_other_models_and_devices_fall_back(monkeypatch: pytest.MonkeyPatch) -> None:
    assert low_precision(tiny_loaded("llama", dtype=torch.float64), "bfloat16") is None
    assert low_precision(tiny_loaded("llama"), "float8") is None
    assert low_precision(tiny_loaded("llama", dtype=torch.bfloat16), "bfloat16") is None
    with torch.autocast("cpu", torch.bfloat16):
        assert low_precision(tiny_loaded("llama"), "bfloat16") is None
    monkeypatch.setattr(precision, "_WORKS", {})

    def unsupported(*_: object) -> torch.Tensor:
        raise RuntimeError("torch._scaled_mm is only supported on newer cards")

    monkeypatch.setattr(precision, "float8_product", unsupported)
    loaded = tiny_loaded("llama", dtype=torch.bfloat16)
    assert low_precision(loaded, "float8") is None
    assert searched(loaded, search_precision="float8", rescored=8)[0].scored.endswith(", bfloat16")


def test_float8_rows_are_scaled_each_to_the_largest_value() -> None:
    generator = torch.Generator().manual_seed(0)
    size = torch.tensor([[1e-3], [1.0], [300.0], [0.0]])
    x = (torch.randn(4, 32, generator=generator) * size).to(torch.bfloat16)
    weight = torch.randn(48, 32, generator=generator).to(torch.bfloat16)
    rows, scales = quantised_rows(x)
    assert rows.float().abs().amax(dim=1).tolist() == [448, 448, 448, 0]
    wrong = (rows.float() * scales - x.float()).abs() / x.float().abs().clamp_min(1e-9)
    assert (
        float(wrong[:3][x[:3].float().abs() > 0.02 * size[:3]].max()) <= 2**-4 + 1e-3
    )  # half a step of e4m3
    weight_rows, weight_scales = quantised_rows(weight)
    product = float8_product((rows, scales), (weight_rows, weight_scales.T.contiguous())).float()
    exact = x.float() @ weight.float().T
    assert float((product - exact)[:3].norm() / exact[:3].norm()) < 0.05
    assert torch.equal(product[3], torch.zeros(48))


def trainee_of(dtype: torch.dtype) -> Trainee:
    settings = TrainingSettings(lora=LoraSettings(r=4, dropout=0.3), learning_rate=1e-3)
    return Trainee(tiny_loaded("llama", dtype=dtype), settings, updates=1, seed=0)


def turn(trainee: Trainee, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainee.parameters:
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize(("dtype", "wanted"), [(torch.float32, "bfloat16"), (torch.bfloat16, "float8")])
def test_it_follows_the_weights_of_a_model_in_training(dtype: torch.dtype, wanted: SearchPrecision) -> None:
    """Adapters put on a model that was ranked before, and each change of theirs."""
    plain = tiny_loaded("llama", dtype=dtype)
    assert low_precision(plain, wanted) is not None
    trainee = trainee_of(dtype)
    assert low_precision(trainee.loaded, wanted) is not None
    base = logits(plain)
    for seed in (1, 2):
        turn(trainee, seed)
        with trainee.attacked():
            low = low_precision(trainee.loaded, wanted)
            assert low is not None
            exact = logits(trainee.loaded)
            with low.opened():
                ranked = logits(low.loaded)
            assert torch.equal(logits(trainee.loaded), exact)
        # Of what the adapters changed; a model of four random blocks turns float8's rounding into .15 of its logits.
        assert float((ranked - exact).norm()) < 0.3 * float((exact - base).norm())
    assert sum("Float8Linear" in type(module).__name__ for module in trainee.loaded.model.modules()) == 0


def test_adapters_in_training_are_added_as_they_are_now() -> None:
    trainee = trainee_of(torch.bfloat16)
    layer = trainee.loaded.model.model.layers[0].mlp.gate_proj
    x = torch.randn(6, 32, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    low = Float8Linear(layer.joined_product)
    weight = layer.get_base_layer().weight
    rows, scales = quantised_rows(weight)
    base = float8_product(quantised_rows(x), (rows, scales.T.contiguous()))
    for seed in (1, 2):
        turn(trainee, seed)
        with torch.no_grad():
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            change = (x @ a.to(x.dtype).T) @ (b * layer.scaling["default"]).to(x.dtype).T
            torch.testing.assert_close(low(x), base + change)
            assert float(change.norm()) > 0.1 * float(base.norm())
            weight.mul_(2.0)
            low.refresh(layer.joined_product)
            base = base * 2
            torch.testing.assert_close(low(x), base + change)


def test_kept_adapters_of_opened_anchors_are_added_in_their_own_precision() -> None:
    loaded = tiny_loaded("llama", dtype=torch.bfloat16)
    model = copy.deepcopy(loaded.model)
    layer = model.model.layers[1].mlp.up_proj
    generator = torch.Generator().manual_seed(0)
    down = torch.randn(4, layer.in_features, generator=generator).to(torch.bfloat16)
    up = (0.3 * torch.randn(layer.out_features, 4, generator=generator)).to(torch.bfloat16)
    model.model.layers[1].mlp.up_proj = AdaptedLinear(layer.weight, None, down, up)
    adapted = replace(loaded, model=model)
    low = low_precision(adapted, "float8")
    assert low is not None
    exact, plain = logits(adapted), logits(loaded)
    with low.opened():
        ranked = logits(adapted)
    assert float((ranked - exact).norm()) < 0.3 * float((exact - plain).norm())
