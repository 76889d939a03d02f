"""Adapters in a 16-bit model's own precision: the same function up to rounding, and nothing left behind."""

from pathlib import Path

import pytest
import torch
from torch import nn

from caryatid.anchors import Anchor, open_anchor
from caryatid.errors import InputError
from caryatid.models.batch import left_pad
from caryatid.models.load import LoadedModel
from caryatid.training.losses import sft_loss
from caryatid.training.trainee import Example, LoraShape, OptimizerSettings, Trainee
from tiny import ARCHITECTURES, save_tiny, tiny_loaded

SEQS = [[5, 9, 44, 7, 300, 12], [8, 21, 4]]
LORA = LoraShape(r=2, alpha=6, dropout=0.2)


def trainee_of(arch: str, dtype: torch.dtype) -> Trainee:
    """A trainee whose adapters are no longer idle."""
    trainee = Trainee(
        tiny_loaded(arch, dtype=dtype), mode="lora", lora=LORA, settings=OptimizerSettings(1e-3, 1), seed=0
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainee.parameters:
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return trainee


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
    trainee = trainee_of("llama", torch.bfloat16)
    model, ids = trainee.loaded.model, torch.tensor([SEQS[0]])

    def gradient() -> torch.Tensor:
        embeds = model.get_input_embeddings()(ids).detach().requires_grad_(True)
        loss = model(inputs_embeds=embeds).logits.float().logsumexp(-1).sum()
        return torch.autograd.grad(loss, embeds)[0].float().flatten()

    plain = gradient()
    with trainee.attacked():
        low = gradient()
    with trainee.at_step_zero():
        idle = gradient()
    assert nn.functional.cosine_similarity(plain, low, dim=0) > 0.99
    assert nn.functional.cosine_similarity(plain, idle, dim=0) < 0.9
    assert all(parameter.grad is None for parameter in trainee.parameters)


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


def test_full_training_of_16_bit_weights_is_refused() -> None:
    settings = OptimizerSettings(1e-3, 1)
    with pytest.raises(InputError, match=r"full training of bfloat16 weights.*float32.*lora"):
        Trainee(tiny_loaded("llama", dtype=torch.bfloat16), mode="full", lora=LORA, settings=settings, seed=0)
    Trainee(tiny_loaded("llama"), mode="full", lora=LORA, settings=settings, seed=0)


def test_training_goes_on_from_a_kept_adapter(tmp_path: Path) -> None:
    """A warmed 16-bit step 0 and an arm's adapter on top of it: nothing of either is lost on the way through files."""
    base = save_tiny(tmp_path / "base")
    warmed = trainee_of("llama", torch.bfloat16)
    warmed.save_weights(tmp_path / "warm")
    step_zero = Anchor("base", 0, str(base), (str(tmp_path / "warm"),))
    loaded = open_anchor(step_zero, dtype="bfloat16", device="cpu")
    start = model_logits(loaded)
    trainee = Trainee(loaded, mode="lora", lora=LORA, settings=OptimizerSettings(3e-2, 2), seed=1)
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
