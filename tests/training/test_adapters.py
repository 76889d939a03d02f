"""Adapters in a 16-bit model's own precision: the same function up to rounding, and nothing left behind."""

import statistics
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from caryatid.anchors import Anchor, open_anchor
from caryatid.errors import InputError
from caryatid.models.adapters import AdaptedLinear
from caryatid.models.batch import left_pad
from caryatid.models.load import LoadedModel, load_model
from caryatid.training.adapters import LowPrecisionAdapters
from caryatid.training.losses import sft_loss
from caryatid.training.settings import LoraSettings, TrainingSettings
from caryatid.training.trainee import Example, Trainee
from tiny import ARCHITECTURES, save_tiny, tiny_loaded

SEQS = [[5, 9, 44, 7, 300, 12], [8, 21, 4]]
LORA = TrainingSettings(lora=LoraSettings(r=2, alpha=6, dropout=0.2), learning_rate=1e-3)


def trainee_of(arch: str, dtype: torch.dtype, seed: int = 1) -> Trainee:
    """A trainee whose adapters are no longer idle."""
    trainee = Trainee(tiny_loaded(arch, dtype=dtype), LORA, updates=1, seed=0)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainee.parameters:
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return trainee


def float64_of(trainee: Trainee) -> nn.Module:
    """The same weights and adapters as PEFT runs them, in float64."""
    wide = Trainee(tiny_loaded("llama", dtype=torch.float32), LORA, updates=1, seed=0)
    wide.loaded.model.load_state_dict(trainee.loaded.model.state_dict())
    return wide.loaded.model.double()


@torch.no_grad()
def model_logits(loaded: LoadedModel) -> torch.Tensor:
    batch = left_pad(SEQS, 0)
    return loaded.model(batch.ids, attention_mask=batch.mask, position_ids=batch.position_ids).logits.float()


def logits(trainee: Trainee) -> torch.Tensor:
    return model_logits(trainee.loaded)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_bfloat16_adapters_differ_from_float32_ones_by_rounding(arch: str) -> None:
    trainee = trainee_of(arch, torch.bfloat16)
    assert all(parameter.dtype == torch.float32 for parameter in trainee.parameters)
    before = [parameter.detach().clone() for parameter in trainee.parameters]
    plain = logits(trainee)
    with trainee.at_step_zero():
        idle = logits(trainee)
    with trainee.attacked():
        low = logits(trainee)
    effect = (plain - idle).norm()
    assert effect > 0.2 * idle.norm()
    assert (low - plain).norm() < 0.1 * effect
    assert torch.equal(logits(trainee), plain)
    assert all(parameter.requires_grad for parameter in trainee.parameters)
    assert all(torch.equal(a, b) for a, b in zip(before, trainee.parameters, strict=True))


def test_each_linear_layer_adds_its_rounded_factors() -> None:
    trainee = trainee_of("llama", torch.bfloat16)
    layer = trainee.loaded.model.get_decoder().layers[1].mlp.down_proj
    hidden = torch.randn(2, 3, layer.in_features, generator=torch.Generator().manual_seed(2)).bfloat16()
    a = layer.lora_A["default"].weight.bfloat16()
    b = (layer.lora_B["default"].weight * 3.0).bfloat16()  # alpha / r
    wide = [t.double() for t in (hidden, layer.get_base_layer().weight, a, b)]
    expected = wide[0] @ wide[1].T + wide[0] @ wide[2].T @ wide[3].T
    with trainee.attacked():
        found = layer(hidden)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(
        found.double(), expected, rtol=2**-6, atol=2**-6 * float(expected.detach().abs().mean())
    )


def test_present_weights_are_used_at_each_attack() -> None:
    trainee = trainee_of("llama", torch.bfloat16)
    with trainee.attacked():
        first = logits(trainee)
    with torch.no_grad():
        for parameter in trainee.parameters:
            parameter.mul_(0.0)
    with trainee.attacked():
        second = logits(trainee)
    with trainee.at_step_zero():
        assert torch.equal(second, logits(trainee))
    assert not torch.equal(first, second)


def test_gradients_with_respect_to_inputs_pass_through() -> None:
    """Against the same model in float64, over several adapters: the noise of 16-bit activations differs a lot."""
    ids = torch.tensor([SEQS[0]])

    def gradient(model: nn.Module) -> torch.Tensor:
        embeds = model.get_input_embeddings()(ids).detach().requires_grad_(True)
        loss = model(inputs_embeds=embeds).logits.double().logsumexp(-1).sum()
        return torch.autograd.grad(loss, embeds)[0].double().flatten()

    found: dict[str, list[float]] = {"plain": [], "low": [], "idle": []}
    for seed in range(1, 8):
        trainee = trainee_of("llama", torch.bfloat16, seed)
        model = trainee.loaded.model
        gradients = {"plain": gradient(model)}
        with trainee.attacked():
            gradients["low"] = gradient(model)
        with trainee.at_step_zero():
            gradients["idle"] = gradient(model)
        assert all(parameter.grad is None for parameter in trainee.parameters)
        assert nn.functional.cosine_similarity(gradients["plain"], gradients["low"], dim=0) > 0.99
        exact = gradient(float64_of(trainee))
        for name, one in gradients.items():
            found[name].append(float(nn.functional.cosine_similarity(one, exact, dim=0)))
    for name in ("plain", "low"):
        assert statistics.median(found[name]) > 0.99
        assert min(found[name]) > 0.95
    assert max(found["idle"]) < 0.9


def test_a_float32_model_is_attacked_as_it_is() -> None:
    trainee = trainee_of("llama", torch.float32)
    plain = logits(trainee)
    with trainee.attacked():
        assert torch.equal(logits(trainee), plain)


def test_hooks_come_off_after_an_error() -> None:
    trainee = trainee_of("llama", torch.bfloat16)
    plain = logits(trainee)
    with pytest.raises(ZeroDivisionError), trainee.attacked():
        raise ZeroDivisionError
    assert torch.equal(logits(trainee), plain)
    assert not any(module._forward_hooks for module in trainee.loaded.model.modules())


class _Layer(nn.Module):
    """One linear layer as a model that PEFT takes."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.proj = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.proj(x)
        return out


def adapted(layer: nn.Module, scale_of_b: float, dropout: float = 0.0) -> Any:
    config = LoraConfig(r=8, lora_alpha=16, lora_dropout=dropout, target_modules=["proj"])
    peft: Any = get_peft_model(_Layer(layer), config)  # type: ignore[arg-type]
    with torch.no_grad():
        b = peft.base_model.model.proj.lora_B["default"].weight
        b.copy_(scale_of_b * torch.randn(b.shape, generator=torch.Generator().manual_seed(5)))
    return peft


def linear_of(kind: str) -> nn.Module:
    """256 to 192, bfloat16, weights of standard deviation 0.02."""
    generator = torch.Generator().manual_seed(3)
    weight, bias = (
        0.02 * torch.randn(192, 256, generator=generator),
        0.1 * torch.randn(192, generator=generator),
    )
    if kind == "conv1d":
        conv = Conv1D(192, 256)
        conv.weight.data, conv.bias.data = weight.T.contiguous(), bias
        return conv.bfloat16()
    plain = nn.Linear(256, 192, bias=kind == "biased")
    plain.weight.data = weight
    if kind == "biased":
        plain.bias.data = bias
    plain = plain.bfloat16()
    if kind != "kept":
        return plain
    down, up = torch.randn(8, 256, generator=generator) / 16, 0.01 * torch.randn(192, 8, generator=generator)
    return AdaptedLinear(plain.weight.data, None, down, up)


@pytest.mark.parametrize("opened", [False, True], ids=["training", "attack"])
@pytest.mark.parametrize("kind", ["plain", "biased", "conv1d", "kept"])
def test_changes_below_half_a_step_of_the_output_are_not_lost(kind: str, opened: bool) -> None:
    """The share of an adapter's change that outputs show on average: a regression on the exact change."""
    torch.manual_seed(0)
    peft = adapted(linear_of(kind), 1e-4)
    layer = peft.base_model.model.proj
    x = torch.randn(4, 500, 256, generator=torch.Generator().manual_seed(6)).bfloat16()

    def share() -> float:
        with torch.no_grad():
            change = (layer(x).double() - layer.get_base_layer()(x).double()).flatten()
        return float(change @ exact / (exact @ exact))

    a, b = layer.lora_A["default"].weight.double(), layer.lora_B["default"].weight.double()
    exact = (2.0 * x.double() @ a.T @ b.T).detach().flatten()
    as_peft_adds = share()
    assert as_peft_adds < 0.6
    narrow = LowPrecisionAdapters(peft)
    with narrow.open() if opened else nullcontext():
        assert share() == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize("kind", ["plain", "biased", "conv1d", "kept"])
def test_gradients_are_those_of_peft(kind: str) -> None:
    x = torch.randn(2, 3, 256, generator=torch.Generator().manual_seed(6)).bfloat16()
    found = []
    for ours in (False, True):
        torch.manual_seed(0)
        peft = adapted(linear_of(kind), 0.02, dropout=0.5).train()
        if ours:
            LowPrecisionAdapters(peft)
        layer, inputs = peft.base_model.model.proj, x.clone().requires_grad_(True)
        torch.manual_seed(1)  # the same dropout
        output = layer(inputs)
        weights = torch.linspace(-1, 1, output.numel()).view_as(output)
        (output.float() * weights).sum().backward()
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        found.append([output.detach(), inputs.grad, a.grad, b.grad])
    for theirs, mine in zip(*found, strict=True):
        assert mine.dtype == theirs.dtype
        torch.testing.assert_close(mine, theirs, rtol=2**-6, atol=2**-7 * float(theirs.abs().max()))


def test_a_small_step_moves_the_model_that_trains_as_far_as_the_opened_anchor(tmp_path: Path) -> None:
    """Mean shift of the loss under a change far below half a step of most outputs, against the exact one."""
    base = save_tiny(tmp_path / "base", width=64)
    loaded = load_model(str(base), dtype="bfloat16")
    trainee = Trainee(loaded, TrainingSettings(lora=LoraSettings(r=4), learning_rate=1e-3), updates=1, seed=0)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for name, parameter in zip(trainee.names, trainee.parameters, strict=True):
            if "lora_B" in name:
                parameter.copy_(2e-3 * torch.randn(parameter.shape, generator=generator))
    trainee.save_weights(tmp_path / "arm")
    rows = torch.randint(4, 400, (96, 48), generator=torch.Generator().manual_seed(2))

    @torch.no_grad()
    def nll(model: nn.Module) -> torch.Tensor:
        logits = model(rows).logits[:, :-1].double()
        return nn.functional.cross_entropy(logits.transpose(1, 2), rows[:, 1:], reduction="none")

    exact_base = load_model(str(base), dtype="float32")
    anchor = Anchor("sft", 1, str(base), (str(tmp_path / "arm"),))
    wanted = (nll(open_anchor(anchor, dtype="float32").model) - nll(exact_base.model)).flatten()
    with trainee.at_step_zero():
        before = nll(trainee.loaded.model)
    shares = []
    for context in (nullcontext(), trainee.attacked()):
        with context:
            moved = (nll(trainee.loaded.model) - before).flatten()
        shares.append(float(moved @ wanted / (wanted @ wanted)))
    assert shares == pytest.approx([1.0, 1.0], abs=0.25)
    opened = model_logits(open_anchor(anchor, dtype="bfloat16"))
    assert torch.equal(logits(trainee), opened)  # trained, attacked and measured: one function
    with trainee.attacked():
        assert torch.equal(logits(trainee), opened)


def test_base_weights_are_in_memory_once_and_as_they_were() -> None:
    plain, trainee = tiny_loaded("llama", dtype=torch.bfloat16), trainee_of("llama", torch.bfloat16)
    wanted = dict(plain.model.named_parameters())
    storages = set()
    for name, value in trainee.loaded.model.named_parameters():
        if "lora_" not in name:
            assert torch.equal(value, wanted[name.replace(".base_layer", "")])
        if ".base_layer" in name:
            storages.add(value.untyped_storage().data_ptr())
            assert value.untyped_storage().nbytes() == 2 * value.shape[0] * (value.shape[1] + 8)
    assert len(storages) == 4 * 7  # one for each of the linear layers in four blocks


def test_full_training_of_16_bit_weights_is_refused() -> None:
    settings = replace(LORA, mode="full")
    with pytest.raises(InputError, match=r"full training of bfloat16 weights.*float32.*lora"):
        Trainee(tiny_loaded("llama", dtype=torch.bfloat16), settings, updates=1, seed=0)
    Trainee(tiny_loaded("llama"), settings, updates=1, seed=0)


def test_training_goes_on_from_a_kept_adapter(tmp_path: Path) -> None:
    """A warmed 16-bit step 0 and an arm's adapter on top of it: nothing of either is lost on the way through files."""
    base = save_tiny(tmp_path / "base")
    warmed = trainee_of("llama", torch.bfloat16)
    warmed.save_weights(tmp_path / "warm")
    step_zero = Anchor("base", 0, str(base), (str(tmp_path / "warm"),))
    loaded = open_anchor(step_zero, dtype="bfloat16", device="cpu")
    start = model_logits(loaded)
    trainee = Trainee(loaded, replace(LORA, learning_rate=3e-2), updates=2, seed=1)
    assert torch.equal(logits(trainee), start)
    for _ in range(2):
        with trainee.training():
            output = trainee.forward([Example([5, 9, 44], [7, 300]), Example([8, 21, 4], [12])])
            trainee.backward(sft_loss(output.logits, output.targets), "test")
            trainee.update()
    with trainee.at_step_zero():
        assert torch.equal(logits(trainee), start)
    trained = logits(trainee)
    with trainee.attacked():
        assert (logits(trainee) - trained).norm() < 0.1 * (trained - start).norm()
    trainee.save_weights(tmp_path / "arm")
    anchor = Anchor("sft", 2, str(base), (str(tmp_path / "warm"), str(tmp_path / "arm")))
    opened = model_logits(open_anchor(anchor, dtype="bfloat16", device="cpu"))
    exact = model_logits(open_anchor(anchor, dtype="float32", device="cpu"))
    assert (trained - start).norm() > 0.2 * start.norm()
    assert (opened - trained).norm() < 0.1 * (trained - start).norm()
    assert (opened - exact).norm() < 0.1 * (trained - start).norm()


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_float32_adapters_are_merged_into_a_copy_that_follows_them(arch: str) -> None:
    trainee = trainee_of(arch, torch.float32)
    before = {name: value.detach().clone() for name, value in trainee.loaded.model.state_dict().items()}
    idle_copy = trainee_of(arch, torch.float32, seed=2)
    for change in (0.0, 0.2):
        with torch.no_grad():
            for parameter in trainee.parameters:
                parameter.add_(change)
        plain = logits(trainee)
        with trainee.attacked() as attacked:
            merged = model_logits(attacked)
            parts = [type(part).__module__ for part in attacked.model.modules()]
            assert not [part for part in parts if part.startswith("peft")]
            assert not attacked.model.training
        assert (merged - plain).norm() < 1e-5 * plain.norm()
        assert (logits(idle_copy) - plain).norm() > 0.1 * plain.norm()
        assert torch.equal(logits(trainee), plain)
    # Nothing but the adapters' own change is in the model in training, and what is not adapted is in memory once.
    now = trainee.loaded.model.state_dict()
    assert all(torch.equal(before[name], now[name]) for name in before if "lora" not in name)
    embedding: Any = trainee.loaded.model.get_input_embeddings()
    assert attacked.model.get_input_embeddings().weight is embedding.weight
