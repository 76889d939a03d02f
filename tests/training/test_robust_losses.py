"""Losses of the arms beside R2D2, pinned to values derived by hand and to the released formulas."""

import math

import pytest
import torch

from caryatid.training.robust_losses import (
    capped_away,
    capped_toward,
    circuit_breaker_weights,
    dpo_loss,
    rerouting_loss,
    retain_loss,
)


@pytest.mark.parametrize(("entropy", "value", "slope"), [(0.2, 0.5002, 0.001), (0.5, 0.5, 1), (2.0, 2.0, 1)])
def test_the_toward_term_is_almost_flat_below_its_cutoff(entropy: float, value: float, slope: float) -> None:
    given = torch.tensor(entropy, requires_grad=True)
    loss = capped_toward(given, 0.5)
    loss.backward()
    assert loss.item() == pytest.approx(value, rel=1e-6)
    assert given.grad is not None
    assert given.grad.item() == pytest.approx(slope)


@pytest.mark.parametrize(
    ("entropy", "value", "slope"), [(1.5, -1.5, -1), (5.0, -5.0, -1), (8.0, -5.008, -0.001)]
)
def test_the_away_term_is_almost_flat_once_the_target_is_unlikely(
    entropy: float, value: float, slope: float
) -> None:
    given = torch.tensor(entropy, requires_grad=True)
    loss = capped_away(given, -5.0)
    loss.backward()
    assert loss.item() == pytest.approx(value, rel=1e-6)
    assert given.grad is not None
    assert given.grad.item() == pytest.approx(slope)


def test_dpo_by_hand() -> None:
    """Margins of 0, and of (−1 + 3) − (−4 + 2) = 4 at β = 0.1."""
    chosen, rejected = torch.tensor([-7.0, -1.0]), torch.tensor([-2.0, -4.0])
    reference = torch.tensor([-7.0, -3.0]), torch.tensor([-2.0, -2.0])
    found = dpo_loss(chosen, rejected, *reference, beta=0.1)
    expected = [math.log(2), -math.log(1 / (1 + math.exp(-0.4)))]
    assert found.tolist() == pytest.approx(expected, rel=1e-6)
    chosen.requires_grad_(True)
    dpo_loss(chosen, rejected, *reference, beta=0.1).sum().backward()
    assert chosen.grad is not None  # −β σ(−β·margin)
    assert chosen.grad.tolist() == pytest.approx([-0.05, -0.1 / (1 + math.exp(0.4))], rel=1e-5)


def test_rerouting_by_hand() -> None:
    """Two layers, one row of two tokens and filling: cosines 1, −1 (no loss), 0.6, 0; filling counts for nothing."""
    now = torch.tensor([[[[2.0, 0.0], [-1.0, 0.0], [1.0, 0.0]]], [[[3.0, 4.0], [0.0, 1.0], [1.0, 0.0]]]])
    before = torch.tensor([[[[5.0, 0.0], [3.0, 0.0], [1.0, 0.0]]], [[[2.0, 0.0], [1.0, 0.0], [1.0, 0.0]]]])
    real = torch.tensor([[True, True, False]])
    assert rerouting_loss(now, before, real).item() == pytest.approx((1 + 0 + 0.6 + 0) / 4)
    now.requires_grad_(True)
    rerouting_loss(now, before, real).backward()
    assert now.grad is not None
    assert not now.grad[:, :, 2].any()
    assert not now.grad[0, 0, 1].any()  # already beyond a right angle


def test_retaining_by_hand_and_where_nothing_moved() -> None:
    before = torch.zeros(1, 2, 2, 2)
    now = torch.tensor([[[[3.0, 4.0], [0.0, 0.0]], [[0.0, 1.0], [9.0, 9.0]]]], requires_grad=True)
    real = torch.tensor([[True, True], [True, False]])
    loss = retain_loss(now, before, real)
    assert loss.item() == pytest.approx((5 + 0 + 1) / 3)
    loss.backward()
    assert now.grad is not None
    assert torch.isfinite(now.grad).all()
    assert now.grad[0, 0, 0].tolist() == pytest.approx([0.6 / 3, 0.8 / 3])
    same = before.clone().requires_grad_(True)
    retain_loss(same, before, real).backward()
    assert same.grad is not None
    assert not same.grad.any()


def test_weights_move_from_rerouting_to_retaining() -> None:
    """The released run has 150 updates, counts them from 1 and divides by 300."""
    assert circuit_breaker_weights(1, 150, 10.0) == pytest.approx((10 - 1 / 30, 1 / 30))
    assert circuit_breaker_weights(150, 150, 10.0) == (5.0, 5.0)
    assert sum(circuit_breaker_weights(37, 100, 10.0)) == pytest.approx(10.0)
