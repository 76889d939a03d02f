"""Losses of the arms beside R2D2: pure functions of tensors, in float32."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# Slope of a capped term beyond its cutoff, in the released code of C-AdvUL.
CAPPED_SLOPE = 0.001
_LEAST_NORM = 1e-12


def capped_toward(cross_entropy: Float[Tensor, ""], cutoff: float) -> Float[Tensor, ""]:
    """The cross-entropy of the refusal; below `cutoff` almost flat: cutoff + 0.001 · CE (C-AdvUL, arXiv 2405.15589)."""
    return torch.where(cross_entropy < cutoff, cutoff + CAPPED_SLOPE * cross_entropy, cross_entropy)


def capped_away(cross_entropy: Float[Tensor, ""], cutoff: float) -> Float[Tensor, ""]:
    """Minus the cross-entropy of the affirmative target; below `cutoff` almost flat: cutoff − 0.001 · CE.

    The unlikelihood term of C-AdvUL as its code has it (arXiv 2405.15589); `cutoff` is negative.
    """
    away = -cross_entropy
    return torch.where(away < cutoff, cutoff + CAPPED_SLOPE * away, away)


def dpo_loss(
    chosen: Float[Tensor, "pairs"],
    rejected: Float[Tensor, "pairs"],
    chosen_reference: Float[Tensor, "pairs"],
    rejected_reference: Float[Tensor, "pairs"],
    beta: float,
) -> Float[Tensor, "pairs"]:
    """−log σ(β[(log π(y_w) − log π₀(y_w)) − (log π(y_l) − log π₀(y_l))]) of each pair (arXiv 2305.18290, eq. 7).

    Args:
        chosen, rejected: log-probabilities of whole answers under the model. …_reference: under step 0.
    """
    margin = (chosen - chosen_reference) - (rejected - rejected_reference)
    return -torch.nn.functional.logsigmoid(beta * margin.float())


def rerouting_loss(
    now: Float[Tensor, "layers rows tokens d"],
    before: Float[Tensor, "layers rows tokens d"],
    real: Bool[Tensor, "rows tokens"],
) -> Float[Tensor, ""]:
    """Mean over layers and real tokens of ReLU(cos(h, h₀)), h₀ of step 0 (arXiv 2406.04313)."""
    now, before = now.float(), before.float()
    lengths = (now.norm(dim=-1) * before.norm(dim=-1)).clamp_min(_LEAST_NORM)
    cosine = (now * before).sum(dim=-1) / lengths
    return (torch.relu(cosine) * real).sum() / (real.sum() * len(now)).clamp_min(1)


def retain_loss(
    now: Float[Tensor, "layers rows tokens d"],
    before: Float[Tensor, "layers rows tokens d"],
    real: Bool[Tensor, "rows tokens"],
) -> Float[Tensor, ""]:
    """Mean over layers and real tokens of ‖h − h₀‖₂: representations of chat stay step 0's (arXiv 2406.04313)."""
    # The square root's slope is infinite at 0, which is where training begins.
    squares = (now.float() - before.float()).square().sum(dim=-1)
    moved = torch.where(squares > 0, squares.clamp_min(_LEAST_NORM**2).sqrt(), squares)
    return (moved * real).sum() / (real.sum() * len(now)).clamp_min(1)


def circuit_breaker_weights(step: int, updates: int, alpha: float) -> tuple[float, float]:
    """Weights of rerouting and of retaining at an update: α(1 − t/2T) and α·t/2T (arXiv 2406.04313, algorithm 1).

    Args:
        step: t, 1 at the first update, as in the released code. updates: T.

    >>> circuit_breaker_weights(50, 100, 10.0)
    (7.5, 2.5)
    """
    share = step / (2 * updates)
    return alpha * (1 - share), alpha * share
