"""The prefix cache: keys and values that many rows share, computed once and read by all of them.

The entries of a cache are its *cases*: prompts under attack, or one prompt's beginning under several interventions.
Behind its prefix a row may also read the first columns of its case's present suffix, as a forward has recorded them.
Nothing that stands after these tokens changes them, so that results equal those of whole rows, up to rounding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from .batch import to_device
from .forward import pad_id
from .heads import logits_at
from .layout import unwrapped
from .load import LoadedModel

Pieces = tuple[Tensor, ...]
"""Keys (or values) one after another, each [rows, heads, columns, head width]."""


class _SharedLayer(DynamicLayer):
    """Keys and values that every row reads and no forward adds to: they stay as they are."""

    def __init__(self, keys: Pieces, values: Pieces) -> None:
        super().__init__()
        self.pieces = keys, values
        if keys:
            self.keys, self.values = keys[0], values[0]
            self.dtype, self.device = self.keys.dtype, self.keys.device
        self.is_initialized = True

    def get_seq_length(self) -> int:
        return sum(piece.shape[-2] for piece in self.pieces[0])

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        keys, values = self.pieces
        return torch.cat([*keys, key_states], dim=-2), torch.cat([*values, value_states], dim=-2)


class _RecordingLayer(_SharedLayer):
    """Also keeps what the last forward computed for its first `columns` columns."""

    def __init__(self, keys: Pieces, values: Pieces, columns: int) -> None:
        super().__init__(keys, values)
        self.columns = columns
        self.recorded: Pieces = ()

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        new = (state.detach()[..., : self.columns, :].clone() for state in (key_states, value_states))
        self.recorded = (next(new), next(new))
        return super().update(key_states, value_states)


@dataclass(frozen=True)
class SuffixKeys:
    """Keys and values of the present suffixes, per block [cases, heads, suffix, head width], filled on the right."""

    keys: Pieces
    values: Pieces

    def to(self, dtype: torch.dtype) -> "SuffixKeys":
        """In another precision."""
        return SuffixKeys(*(tuple(one.to(dtype) for one in pieces) for pieces in (self.keys, self.values)))


def shared_cache(blocks: Sequence[tuple[Pieces, Pieces]], columns: int = 0) -> DynamicCache:
    """A cache of each block's keys and values, which may be none; keeps a forward's first `columns` columns."""
    cache = DynamicCache()
    for keys, values in blocks:
        layer = _RecordingLayer(keys, values, columns) if columns else _SharedLayer(keys, values)
        cache.layers.append(layer)
    return cache


def recording(shared: DynamicCache, columns: int) -> DynamicCache:
    """As a shared cache, but keeps the keys and values of the next forward's first `columns` columns."""
    return shared_cache([layer.pieces for layer in shared.layers if isinstance(layer, _SharedLayer)], columns)


def recorded_suffixes(cache: DynamicCache) -> SuffixKeys:
    """What a recording cache holds after its forward."""
    blocks = [layer.recorded for layer in cache.layers if isinstance(layer, _RecordingLayer)]
    return SuffixKeys(tuple(keys for keys, _ in blocks), tuple(values for _, values in blocks))


def joined_suffixes(parts: Sequence[SuffixKeys], longest: int) -> SuffixKeys:
    """Those of consecutive batches of cases as one, filled up to `longest` suffix columns."""
    if len(parts) == 1:
        return parts[0]

    def joined(blocks: Sequence[Pieces]) -> Pieces:
        return tuple(
            torch.cat([_filled(states, longest) for states in block]) for block in zip(*blocks, strict=True)
        )

    return SuffixKeys(joined([part.keys for part in parts]), joined([part.values for part in parts]))


def _filled(states: Tensor, columns: int) -> Tensor:
    return torch.nn.functional.pad(states, (0, 0, 0, columns - states.shape[-2]))


@dataclass(frozen=True)
class PrefixCache:
    """Keys and values of the prefixes of some cases, filled up on the right to one length.

    Attributes:
        keys, values: per block [cases, heads, prefix, head width], or [1, …] where all cases have the same; each on its
            block's device.
        lengths: real tokens per case.
    """

    keys: Pieces
    values: Pieces
    lengths: tuple[int, ...]

    def to(self, dtype: torch.dtype) -> "PrefixCache":
        """In another precision."""
        keys, values = (tuple(one.to(dtype) for one in pieces) for pieces in (self.keys, self.values))
        return PrefixCache(keys, values, self.lengths)

    def columns(self, cases: Sequence[int]) -> int:
        """Columns that the prefixes of `cases` take in a cache of theirs."""
        return max(self.lengths[case] for case in set(cases))

    def rows(
        self, cases: Sequence[int], suffix: SuffixKeys | None = None, suffix_columns: int = 0
    ) -> DynamicCache:
        """A cache whose row r is the prefix of `cases[r]`, then the first columns of its suffix where asked for.

        Of one case alone it is an expanded view: nothing is copied.
        """
        return shared_cache(self._pieces(cases, suffix, suffix_columns))

    def _pieces(
        self, cases: Sequence[int], suffix: SuffixKeys | None, suffix_columns: int
    ) -> list[tuple[Pieces, Pieces]]:
        one = cases[0] if len(set(cases)) == 1 else None
        chosen, length = torch.tensor(cases), self.columns(cases)
        index = {device: to_device(chosen, device) for device in {keys.device for keys in self.keys}}

        def shared(states: Tensor, columns: int) -> Tensor:
            if one is not None or len(states) == 1:
                row = 0 if len(states) == 1 else one
                return states[row, None, :, :columns].expand(len(cases), -1, -1, -1)
            return states[:, :, :columns].index_select(0, index[states.device])

        found = []
        for block, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            pieces: tuple[list[Tensor], list[Tensor]] = ([shared(keys, length)], [shared(values, length)])
            if suffix is not None and suffix_columns:
                pieces[0].append(shared(suffix.keys[block], suffix_columns))
                pieces[1].append(shared(suffix.values[block], suffix_columns))
            found.append((tuple(pieces[0]), tuple(pieces[1])))
        return found


def prefix_cache_supported(loaded: LoadedModel, longest: int) -> bool:
    """Whether a shared prefix is exact for rows of `longest` columns (filling included).

    It is not where a block keeps something other than keys and values, nor where a sliding window could cut rows: the
    library measures windows in columns, and keeps only a window's worth of keys.
    """
    config = loaded.model.config.get_text_config()
    for layer in DynamicCache(config=config).layers:
        if type(layer) is DynamicSlidingWindowLayer:
            if longest >= layer.sliding_window:
                return False
        elif type(layer) is not DynamicLayer:
            return False
    return True


def tree_attention_supported(loaded: LoadedModel) -> bool:
    """Whether the model reads a ready 4-D float mask: the library's own code, with eager or sdpa attention."""
    base: Any = unwrapped(loaded.model)
    return (
        type(base).__module__.startswith("transformers.")
        and bool(getattr(base, "_supports_attention_backend", False))
        and base.config.get_text_config()._attn_implementation in ("eager", "sdpa")
    )


@torch.no_grad()
def run_prefixes(loaded: LoadedModel, prefixes: Sequence[Sequence[int]]) -> PrefixCache:
    """Keys and values of token rows, run in one batch. Exact for what `prefix_cache_supported` allows.

    A block that a hook kept from running has none: its keys and values must be replaced before use.
    """
    lengths = tuple(map(len, prefixes))
    fill = pad_id(loaded)
    ids = [[*prefix, *[fill] * (max(lengths) - len(prefix))] for prefix in prefixes]
    cache = DynamicCache()
    here = torch.zeros(1, dtype=torch.long, device=loaded.device)
    logits_at(
        loaded.model,
        ids=torch.tensor(ids, device=loaded.device),
        mask=None,
        positions=torch.arange(max(lengths), device=loaded.device).expand(len(ids), -1),
        cache=cache,
        rows=here,
        columns=here,
    )
    layers: list[Any] = list(cache.layers)
    return PrefixCache(tuple(one.keys for one in layers), tuple(one.values for one in layers), lengths)
