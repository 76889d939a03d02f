"""The tokens of a case, and its target's losses from logits."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ...errors import InputError
from ...models.cache import PrefixCache, prefix_cache_supported, run_prefixes
from ...models.load import LoadedModel

_LOSS_CHUNK = 2048


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """On CUDA: small tensors on the CPU are handled by one thread; handing them to dozens takes far longer."""
    threads = torch.get_num_threads()
    if device.type == "cuda":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Context with dropout off; afterwards every module is in its former mode."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
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


def token_losses(
    logits: Float[Tensor, "scored vocab"], targets: Int[Tensor, "scored"]
) -> Float[Tensor, "scored"]:
    """Cross-entropy of each target, in float32 or better; some rows at a time, to save memory."""
    parts = []
    for some, wanted in zip(logits.split(_LOSS_CHUNK), targets.split(_LOSS_CHUNK), strict=True):
        precise = some.to(torch.promote_types(some.dtype, torch.float32))
        parts.append(precise.logsumexp(dim=1) - precise.gather(1, wanted.unsqueeze(1)).squeeze(1))
    return torch.cat(parts)


def longest_row(layouts: Sequence[PromptLayout]) -> int:
    """Columns of a row of several cases' prefixes and tails, filling included."""
    return max(len(layout.prefix_ids) for layout in layouts) + max(layout.tail_length for layout in layouts)


def build_prefix_cache(
    loaded: LoadedModel,
    layouts: Sequence[PromptLayout],
    run: Callable[[LoadedModel, Sequence[Sequence[int]]], PrefixCache] = run_prefixes,
) -> PrefixCache | None:
    """`run` all cases' prefixes in one batch; None where the model does not allow it or a prefix is empty."""
    prefixes = [layout.prefix_ids for layout in layouts]
    if min(map(len, prefixes)) == 0 or not prefix_cache_supported(loaded, longest_row(layouts)):
        return None
    return run(loaded, prefixes)
