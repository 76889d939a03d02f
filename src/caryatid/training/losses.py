"""The losses of protocol §3: pure functions of logits at supervised positions, in float32.

Positions are chosen by masks of the caller (never by pad ids), so every row here is a supervised token.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .settings import AwayVariant

# HarmBench's released `log_1_minus_p_loss` leaves tokens below this log-probability out of the sum, but not out of
# the mean's denominator (arXiv 2402.04249, released code).
HARMBENCH_THRESHOLD = -5.0


def token_logprobs(
    logits: Float[Tensor, "tokens vocab"], targets: Int[Tensor, "tokens"]
) -> Float[Tensor, "tokens"]:
    """log p of each target token, float32, nats."""
    logits = logits.float()
    return logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)


def token_log_one_minus_p(
    logits: Float[Tensor, "tokens vocab"], targets: Int[Tensor, "tokens"]
) -> Float[Tensor, "tokens"]:
    """log(1 − p) of each target token, as the log-sum-exp of all other tokens: exact also where p rounds to 1."""
    logits = logits.float()
    others = logits.scatter(-1, targets.unsqueeze(-1), -torch.inf)
    return others.logsumexp(-1) - logits.logsumexp(-1)


def _mean(values: Float[Tensor, "tokens"]) -> Float[Tensor, ""]:
    """The mean; of no tokens a zero that still carries a gradient of zero, not 0/0."""
    return values.sum() / max(values.numel(), 1)


def sft_loss(logits: Float[Tensor, "tokens vocab"], targets: Int[Tensor, "tokens"]) -> Float[Tensor, ""]:
    """Mean cross-entropy of the assistant's tokens."""
    return -_mean(token_logprobs(logits, targets))


def toward_loss(logits: Float[Tensor, "tokens vocab"], targets: Int[Tensor, "tokens"]) -> Float[Tensor, ""]:
    """Mean cross-entropy of the refusal and its end of turn."""
    return sft_loss(logits, targets)


def away_loss(
    logits: Float[Tensor, "tokens vocab"], targets: Int[Tensor, "tokens"], variant: AwayVariant = "plain"
) -> Float[Tensor, ""]:
    """Mean of −log(1 − p) over the affirmative target's tokens (arXiv 2402.04249, eq. for L_away).

    `harmbench` leaves tokens with log p < −5 out of the sum and keeps them in the denominator.
    """
    terms = -token_log_one_minus_p(logits, targets)
    if variant == "harmbench":
        kept = token_logprobs(logits, targets) >= HARMBENCH_THRESHOLD
        terms = torch.where(kept, terms, torch.zeros_like(terms))
    return _mean(terms)
