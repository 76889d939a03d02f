"""Padding, batches of similar length, and batch sizes that fit into memory."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

from ..errors import InputError, MemoryExhaustedError, out_of_memory
from .layout import hidden_size, num_layers
from .load import LoadedModel
from .lockstep import is_lockstep
from .placement import devices_of
from .sizes import BatchSizes

T = TypeVar("T")


class PaddedBatch(NamedTuple):
    """Token rows padded to one length.

    Attributes:
        ids: token ids; padding holds the pad id, which may also be a real token's id.
        mask: 1 at tokens, 0 at padding, from the lengths alone.
        position_ids: 0, 1, 2, … from each row's first token; 0 at padding on the left.
    """

    ids: Int[Tensor, "rows tokens"]
    mask: Int[Tensor, "rows tokens"]
    position_ids: Int[Tensor, "rows tokens"]


def _lengths(seqs: Sequence[Sequence[int]], where: str) -> list[int]:
    lengths = [len(seq) for seq in seqs]
    if not lengths or min(lengths) == 0:
        raise InputError("cannot batch an empty list of tokens", where=where)
    return lengths


def left_pad(
    seqs: Sequence[Sequence[int]], pad_id: int, device: torch.device | str | None = None
) -> PaddedBatch:
    """Pad rows of token ids on the left to the longest one.

    Raises:
        InputError: there are no rows, or one of them is empty.
    """
    lengths = _lengths(seqs, "left_pad")
    longest = max(lengths)
    ids = torch.tensor([[pad_id] * (longest - len(seq)) + list(seq) for seq in seqs], device=device)
    column = torch.arange(longest, device=device)
    offset = longest - torch.tensor(lengths, device=device).unsqueeze(1)  # [rows, 1] padding per row
    return PaddedBatch(ids, (column >= offset).long(), (column - offset).clamp_min(0))


def right_pad(
    seqs: Sequence[Sequence[int]], pad_id: int, device: torch.device | str | None = None
) -> PaddedBatch:
    """Pad rows of token ids on the right to the longest one: under a causal mask no position attends to nothing.

    Raises:
        InputError: there are no rows, or one of them is empty.
    """
    lengths = _lengths(seqs, "right_pad")
    longest = max(lengths)
    ids = torch.tensor([list(seq) + [pad_id] * (longest - len(seq)) for seq in seqs], device=device)
    column = torch.arange(longest, device=device)
    mask = column < torch.tensor(lengths, device=device).unsqueeze(1)
    return PaddedBatch(ids, mask.long(), column.expand(len(seqs), -1))


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on the device; on CUDA without waiting for the work that is under way there."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def length_sorted_batches(
    lengths: Sequence[int], size: int, per_batch: float | None = None
) -> list[list[int]]:
    """Row numbers in batches of at most `size`, longest rows first (so that memory runs out at once or never).

    Rows of one length keep their order; every row appears exactly once. `per_batch`: what a batch costs besides its
    tokens, in tokens (`batch_cost`); then batches are parted where that is cheaper than padding rows to the longest.

    Raises:
        InputError: `size` is below 1.
    """
    if size < 1:
        raise InputError(f"batch size {size} is below 1", where="length_sorted_batches")
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    if per_batch is None:
        return [order[start : start + size] for start in range(0, len(order), size)]
    cheapest, begins = (
        [0.0],
        [0],
    )  # of the first n rows: tokens with padding, and where their last batch begins
    for end in range(1, len(order) + 1):
        cost, begin = min(
            (cheapest[start] + (end - start) * lengths[order[start]] + per_batch, start)
            for start in range(max(0, end - size), end)
        )
        cheapest.append(cost)
        begins.append(begin)
    batches: list[list[int]] = []
    end = len(order)
    while end:
        batches.append(order[begins[end] : end])
        end = begins[end]
    return batches[::-1]


_CPU_PASS_TOKENS = 30  # tokens that a CPU computes while it reads the weights once


def batch_cost(device: torch.device, passes: int = 1) -> float | None:
    """What one more batch of so many forward passes costs, in tokens; None where large batches are always faster.

    A pass that reads the weights for few rows takes a CPU as long as some tens of tokens, an accelerator as long as
    thousands.
    """
    return float(_CPU_PASS_TOKENS * passes) if device.type == "cpu" else None


@dataclass(frozen=True)
class BackedOff(Generic[T]):
    """A result and the batch size it was computed with."""

    value: T
    size: int

    def __iter__(self) -> Iterator[Any]:
        """`value, size = with_backoff(…)`."""
        return iter((self.value, self.size))


RELEASES: list[Callable[[], bool]] = []
"""Functions that give up memory which is held to save time, and say whether there was any."""


def released() -> bool:
    """Give up all of that memory; whether there was any."""
    found = sum(release() for release in RELEASES) > 0  # all of them, not up to the first
    if found and torch.cuda.is_available():
        torch.cuda.empty_cache()
    return found


def with_backoff(fn: Callable[[int], T], size: int) -> BackedOff[T]:
    """Call `fn(size)`, halving the size each time memory runs out, after what `released` gives up.

    Raises:
        MemoryExhaustedError: memory also runs out at size 1; in lockstep (`lockstep.py`) at once.
    """
    size = max(1, size)
    while True:
        again = False
        try:
            return BackedOff(fn(size), size)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            again = released()
            if (size == 1 and not again) or is_lockstep():
                raise MemoryExhaustedError(
                    f"out of memory at batch size {size}",
                    remedy="Use smaller batches, a smaller model, a shorter token limit, or a device with more memory.",
                ) from error
        size = size if again else size // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@dataclass
class RowLimit:
    """Rows per forward that fit into memory so far; only ever lowered."""

    rows: int

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise InputError(f"batch_size {self.rows} is below 1", where="batch")


CPU_BATCH_SIZES = BatchSizes(forward=16, generate=32, gcg=32, train=8)
_CUDA_LIMITS = BatchSizes(forward=256, generate=256, gcg=512, train=64)
_SHARE_OF_FREE_MEMORY = 0.5


def _rows_that_fit(free: float, per_row: float, limit: int) -> int:
    rows = int(free / per_row)
    return min(limit, 1 << max(rows, 1).bit_length() - 1)  # a power of two, at least 1


def plan_batch_sizes(loaded: LoadedModel, max_tokens: int) -> BatchSizes:
    """Batch sizes for rows of at most `max_tokens` tokens.

    On the CPU fixed values (they decide speed, not whether it fits). On CUDA from the free memory, counting per token
    the key-value cache, about 20 live activations of width d while scoring, 40 per block kept for the backward
    pass while training, and float32 logits (all positions while training, 32 target positions for GCG); half
    of the free memory is planned, `with_backoff` catches the rest. Of several cards the one with the least free memory
    decides, as if it held all of the cache.
    """
    if loaded.device.type != "cuda":
        return CPU_BATCH_SIZES
    cards = [device for device in devices_of(loaded.model) if device.type == "cuda"]
    free = min(torch.cuda.mem_get_info(card)[0] for card in cards) * _SHARE_OF_FREE_MEMORY
    width, layers = hidden_size(loaded.model), num_layers(loaded.model)
    text = loaded.model.config.get_text_config()
    heads = getattr(text, "num_attention_heads", 1)
    kv_width = (getattr(text, "num_key_value_heads", None) or heads) * (
        getattr(text, "head_dim", None) or width // heads
    )
    size = loaded.dtype.itemsize
    cache = 2 * layers * kv_width * size  # bytes per token
    live = 20 * width * size + 4 * width * 4
    logits = 3 * 4 * int(text.vocab_size)  # bytes per position: logits, log-softmax, one copy
    train = 40 * width * layers * size + 2 * logits
    return BatchSizes(
        forward=_rows_that_fit(free, max_tokens * (live + cache) + logits, _CUDA_LIMITS.forward),
        generate=_rows_that_fit(free, max_tokens * (live + cache) + logits, _CUDA_LIMITS.generate),
        gcg=_rows_that_fit(free, max_tokens * (live + cache) + 32 * logits, _CUDA_LIMITS.gcg),
        train=_rows_that_fit(free, max_tokens * train, _CUDA_LIMITS.train),
    )
