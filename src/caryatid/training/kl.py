"""How far training has moved the model on benign text."""

from collections.abc import Sequence

import torch

from ..models.batch import with_backoff
from .trainee import Example, Trainee


def benign_kl(trainee: Trainee, examples: Sequence[Example], batch_size: int) -> float:
    """Mean KL(step 0 ‖ now) of the next-token distribution over the examples' answer tokens, in nats per token.

    `batch_size` examples at a time, or as many as memory holds.
    """
    return with_backoff(lambda rows: _benign_kl(trainee, examples, rows), batch_size).value


@torch.no_grad()
def _benign_kl(trainee: Trainee, examples: Sequence[Example], batch_size: int) -> float:
    total, tokens = 0.0, 0
    trainee.loaded.model.eval()
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size]
        now = trainee.forward(batch).logits.log_softmax(-1)
        with trainee.at_step_zero():
            before = trainee.forward(batch).logits.log_softmax(-1)
        total += float((before.exp() * (before - now)).sum(-1).double().sum())
        tokens += now.shape[0]
    return total / max(tokens, 1)
