"""The tokens of a case, and the logits that its loss needs."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache

from caryatid.errors import InputError

_LOSS_CHUNK = 2048


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Dropout off inside; afterwards every module is in the mode it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@dataclass(frozen=True)
class PromptLayout:
    """The tokens of one case: templated prompt up to the suffix, the suffix, the rest of the prompt, the target."""

    prefix_ids: tuple[int, ...]
    suffix_ids: tuple[int, ...]
    post_ids: tuple[int, ...]
    target_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.target_ids or not self.suffix_ids:
            raise InputError("a case needs a target and a suffix of at least one token", where="GCG")

    @property
    def tail_length(self) -> int:
        """Tokens run per candidate after the prefix; the last target token predicts nothing that is scored."""
        return len(self.suffix_ids) + len(self.post_ids) + len(self.target_ids) - 1

    @property
    def length(self) -> int:
        """Tokens run per candidate without a prefix cache."""
        return len(self.prefix_ids) + self.tail_length


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on the device; on CUDA without waiting for the work that is under way there."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class _Gather:
    """Hands the output matrix the scored places only, as contiguous rows [1, scored, d]."""

    def __init__(self, rows: Tensor, columns: Tensor) -> None:
        self.rows, self.columns, self.done = rows, columns, False

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        self.done = True
        return (args[0][self.rows, self.columns].unsqueeze(0), *args[1:])


@contextmanager
def _gathering(model: nn.Module, rows: Tensor, columns: Tensor) -> Iterator[_Gather]:
    gather = _Gather(rows, columns)
    find = getattr(model, "get_output_embeddings", None)
    head = find() if callable(find) else None
    handle = head.register_forward_pre_hook(gather) if isinstance(head, nn.Module) else None
    try:
        yield gather
    finally:
        if handle is not None:
            handle.remove()


def scored_logits(
    model: nn.Module,
    *,
    ids: Tensor | None = None,
    embeds: Tensor | None = None,
    mask: Tensor | None,
    positions: Tensor,
    cache: DynamicCache | None,
    rows: Int[Tensor, "scored"],
    columns: Int[Tensor, "scored"],
) -> Float[Tensor, "scored vocab"]:
    """Logits at places (`rows`, `columns`); no other place goes through the output matrix, where the model has one."""
    inputs = {"input_ids": ids} if embeds is None else {"inputs_embeds": embeds}
    with _gathering(model, rows, columns) as gather:
        output = model(
            **inputs,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
        )
    logits: Tensor = output.logits
    return logits[0] if gather.done else logits[rows, columns]


def token_losses(
    logits: Float[Tensor, "scored vocab"], targets: Int[Tensor, "scored"]
) -> Float[Tensor, "scored"]:
    """Cross-entropy of each target, in float32 or better; some rows at a time, to save memory."""
    parts = []
    for some, wanted in zip(logits.split(_LOSS_CHUNK), targets.split(_LOSS_CHUNK), strict=True):
        precise = some.to(torch.promote_types(some.dtype, torch.float32))
        parts.append(precise.logsumexp(dim=1) - precise.gather(1, wanted.unsqueeze(1)).squeeze(1))
    return torch.cat(parts)
