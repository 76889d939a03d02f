"""DPO on pairs of a refusal and an affirmative target for the same request (arXiv 2305.18290)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..attacks.gcg.layout import evaluation_mode
from .losses import token_logprobs
from .robust_losses import dpo_loss
from .settings import R2D2Settings
from .terms import Terms, token_count
from .trainee import DrawnCases, Example, Trainee


def answer_logprobs(trainee: Trainee, rows: Sequence[Example]) -> Float[Tensor, "rows"]:
    """Log-probability of each row's whole answer."""
    out = trainee.forward(rows)
    return torch.stack([one.sum() for one in token_logprobs(out.logits, out.targets).split(out.lengths)])


def dpo_terms(trainee: Trainee, drawn: DrawnCases, _settings: R2D2Settings) -> Terms:
    """The refusal with its end of turn is chosen, the affirmative target rejected; step 0 is the reference."""
    settings = trainee.settings.dpo
    tokens = token_count([*drawn.toward, *drawn.away])
    mine = trainee.ranks.mine(len(drawn.toward))
    if not mine:
        return Terms(None, {"dpo": 0.0}, tokens, tokens, 0)
    rows = [*(drawn.toward[i] for i in mine), *(drawn.away[i] for i in mine)]
    with evaluation_mode(trainee.loaded.model), trainee.at_step_zero(), torch.no_grad():
        reference = answer_logprobs(trainee, rows)
    now, pairs = answer_logprobs(trainee, rows), len(mine)
    losses = dpo_loss(now[:pairs], now[pairs:], reference[:pairs], reference[pairs:], settings.beta)
    loss = losses.mean() * (pairs / len(drawn.toward))
    return Terms(settings.weight * loss, {"dpo": float(loss.detach())}, tokens, tokens, 0)
