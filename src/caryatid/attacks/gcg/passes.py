"""One forward, or forward and backward, as a function of tensors that stay in one place, so that it can be recorded.

All passes of a search have one form here: rows of tails one behind the other (`tails.Packed`) behind their cases'
cached keys and values, under a mask by which each token sees its own context and its own tail. Everything is filled up
to a `PassShape`, and filling changes nothing: a token of filling sees filling only and is seen by no other; a scored
place of filling goes to a tail of its own, which is the last and is left out.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache

from ...models.batch import to_device
from ...models.cache import PrefixCache, SuffixKeys, recorded_suffixes, shared_cache
from ...models.heads import logits_at
from ...models.layout import num_layers
from ...models.load import LoadedModel
from .layout import token_losses
from .tails import Packed, Scored, seen_context, tree_mask

PassKind = Literal["losses", "gradient", "prefix"]


class PassShape(NamedTuple):
    """Sizes of a pass, filling included.

    Attributes:
        rows, columns: of tokens. tails: one more than there are at least. scored: places whose targets are scored.
        most: targets of one tail. cases: entries of the context. prefix, suffix: its columns.
        kept: first columns whose keys, and gradients, are wanted.
    """

    rows: int
    columns: int
    tails: int
    scored: int
    most: int
    cases: int
    prefix: int
    suffix: int
    kept: int

    def filled(self) -> "PassShape":
        """With room, so that few shapes serve many passes: an eighth more of what is large, up to multiples of what is
        small.

        Columns of keys are cheap, and multiples of 16 of them need no further filling in attention.
        """
        return PassShape(
            rows=_up(self.rows),
            columns=_up(self.columns, 8),
            tails=_up(self.tails, 8),
            scored=_up(self.scored, 16),
            most=_up(self.most, 16),
            cases=self.cases,
            prefix=_up(self.prefix, 32),
            suffix=_up(self.suffix, 16),
            kept=_up(self.kept, 8),
        )

    def holds(self, other: "PassShape") -> bool:
        return all(mine >= theirs for mine, theirs in zip(self, other, strict=True))

    @property
    def cost(self) -> float:
        """In tokens, roughly: attention by the keys, and the output matrix of a small model."""
        keys = self.prefix + self.suffix + self.columns
        return self.rows * self.columns * (1 + keys / 2048) + 0.4 * self.scored


def _up(size: int, least: int = 1) -> int:
    """The next multiple of about an eighth of `size`, and of `least`."""
    step = max(least, 1 << max(0, size.bit_length() - 4))
    return -(-size // step) * step


class PassOutput(NamedTuple):
    """What a pass found, filling included; None where it is not of its kind.

    Attributes:
        keys: keys of all blocks, then values of all blocks, at the first columns.
    """

    losses: Float[Tensor, "tails"] | None
    gradient: Float[Tensor, "rows kept d"] | None
    keys: Float[Tensor, "twice_blocks rows heads kept head_width"] | None
    vocabulary: int

    def cloned(self) -> "PassOutput":
        losses, gradient, keys = (None if one is None else one.clone() for one in self[:3])
        return PassOutput(losses, gradient, keys, self.vocabulary)


class _Parts(NamedTuple):
    """The integers of a pass; views of one tensor, so that one transfer brings them all."""

    ids: Int[Tensor, "rows columns"]
    positions: Int[Tensor, "rows columns"]
    owners: Int[Tensor, "rows columns"]
    cases: Int[Tensor, "rows"]
    prefix: Int[Tensor, "tails"]
    skipped: Int[Tensor, "tails"]
    counts: Int[Tensor, "tails"]
    places: Int[Tensor, "5 scored"]


def _sizes(shape: PassShape) -> list[int]:
    tokens = shape.rows * shape.columns
    return [*[tokens] * 3, shape.rows, *[shape.tails] * 3, 5 * shape.scored]


def _parts(flat: Int[Tensor, "_"], shape: PassShape) -> _Parts:
    ids, positions, owners, cases, prefix, skipped, counts, places = flat.split(_sizes(shape))
    table = (shape.rows, shape.columns)
    return _Parts(
        ids.view(table),
        positions.view(table),
        owners.view(table),
        cases,
        prefix,
        skipped,
        counts,
        places.view(5, shape.scored),
    )


def needed_shape(
    packed: Packed, prefix: PrefixCache | None, suffix: SuffixKeys | None, kept: int
) -> PassShape:
    """What a pass needs at least."""
    rows, columns = packed.ids.shape
    return PassShape(
        rows=rows,
        columns=columns,
        tails=len(packed.prefix) + 1,
        scored=max(1, len(packed.scored.rows)),
        most=max(1, packed.scored.most),
        cases=0 if prefix is None else len(prefix.lengths),
        prefix=0 if prefix is None else max(prefix.lengths),
        suffix=0 if suffix is None else suffix.keys[0].shape[2],
        kept=kept,
    )


class PassInputs:
    """The tensors that a pass of one shape reads, on the model's device; always at the same place.

    Args:
        like: keys of one block, as `PrefixCache` has them; None without a context.
    """

    def __init__(self, loaded: LoadedModel, shape: PassShape, like: Tensor | None) -> None:
        self.shape = shape
        self._empty = torch.zeros(sum(_sizes(shape)), dtype=torch.long)
        parts = _parts(self._empty, shape)
        parts.owners.fill_(-1)
        parts.counts.fill_(1)
        parts.places[3].fill_(shape.tails - 1)
        self.integers = self._empty.to(loaded.device)
        self.context: Tensor | None = None
        if like is not None:
            _, heads, _, width = like.shape
            columns = shape.prefix + shape.suffix
            size = (2 * num_layers(loaded.model), shape.cases, heads, columns, width)
            self.context = torch.zeros(size, dtype=like.dtype, device=like.device)

    @torch.no_grad()
    def fill(
        self,
        packed: Packed,
        cases: Sequence[int],
        prefix: PrefixCache | None,
        suffix: SuffixKeys | None,
    ) -> None:
        """Put a pass in, with filling around it; does not wait for the device.

        Args:
            cases: of each row.
        """
        flat = self._empty.clone()
        parts, (rows, columns) = _parts(flat, self.shape), packed.ids.shape
        parts.ids[:rows, :columns] = packed.ids
        parts.positions[:rows, :columns] = packed.positions
        parts.owners[:rows, :columns] = packed.owners
        parts.cases[:rows] = torch.tensor(cases)
        tails, scored = len(packed.prefix), packed.scored
        parts.prefix[:tails] = packed.prefix
        parts.skipped[:tails] = packed.skipped
        parts.counts[:tails] = scored.counts
        for part, values in zip(parts.places, scored[:5], strict=True):
            part[: len(values)] = values
        self.integers.copy_(to_device(flat, self.integers.device))
        if self.context is None or prefix is None:
            return
        self.context.zero_()  # a stale value times a weight of 0 is not 0 where it is not finite
        stacked = torch.stack([*prefix.keys, *prefix.values])
        self.context[:, : len(prefix.lengths), :, : stacked.shape[3]] = stacked
        if suffix is not None:
            stacked, first = torch.stack([*suffix.keys, *suffix.values]), self.shape.prefix
            self.context[:, : stacked.shape[1], :, first : first + stacked.shape[3]] = stacked

    def run(self, loaded: LoadedModel, kind: PassKind) -> PassOutput:
        """The pass; waits for nothing."""
        shape, parts = self.shape, _parts(self.integers, self.shape)
        seen = seen_context(parts.prefix, parts.skipped, shape.prefix, shape.suffix)
        cache = self._cache(loaded, parts.cases)
        inputs: dict[str, Any] = {
            "mask": tree_mask(parts.owners, seen, loaded.dtype),
            "positions": parts.positions,
            "cache": cache,
            "rows": parts.places[0],
            "columns": parts.places[1],
        }
        if kind == "gradient":
            return self._gradient(loaded, parts, inputs)
        with torch.no_grad():
            logits = logits_at(loaded.model, ids=parts.ids, **inputs)
            if kind == "prefix":
                return PassOutput(None, None, _kept(cache), logits.shape[-1])
            return PassOutput(self._means(logits, parts), None, None, logits.shape[-1])

    def _gradient(self, loaded: LoadedModel, parts: _Parts, inputs: dict[str, Any]) -> PassOutput:
        with torch.enable_grad():
            embedding = loaded.model.get_input_embeddings()
            embeds = embedding(parts.ids).detach().requires_grad_(True)
            logits = logits_at(loaded.model, embeds=embeds, **inputs)
            losses = self._means(logits, parts)
            (gradient,) = torch.autograd.grad(losses.sum(), embeds)
        kept = _kept(inputs["cache"])
        return PassOutput(losses.detach(), gradient[:, : self.shape.kept], kept, logits.shape[-1])

    def _means(self, logits: Float[Tensor, "scored vocab"], parts: _Parts) -> Float[Tensor, "tails"]:
        """Without the last tail, that of filling."""
        rows, columns, targets, owners, nth = parts.places
        scored = Scored(rows, columns, targets, owners, nth, parts.counts, self.shape.most)
        return scored.means(token_losses(logits, scored.targets))[:-1]

    def _cache(self, loaded: LoadedModel, cases: Int[Tensor, "rows"]) -> DynamicCache:
        """Each row's context."""
        blocks = num_layers(loaded.model)
        if self.context is None:
            return shared_cache([((), ())] * blocks, self.shape.kept)
        rows = self.context.index_select(1, cases)
        pairs = zip(rows[:blocks], rows[blocks:], strict=True)
        return shared_cache([((keys,), (values,)) for keys, values in pairs], self.shape.kept)


def _kept(cache: DynamicCache) -> Tensor:
    found = recorded_suffixes(cache)
    return torch.stack([*found.keys, *found.values])


def unstacked(keys: Tensor, rows: int, columns: int) -> SuffixKeys:
    """The first rows and columns of stacked keys and values, per block."""
    parts = keys[:, :rows, :, :columns].unbind()
    return SuffixKeys(parts[: len(parts) // 2], parts[len(parts) // 2 :])


def prefix_rows(prefixes: Sequence[Sequence[int]]) -> Packed:
    """Token rows that nothing stands before, and of which nothing is scored."""
    lengths = torch.tensor([len(prefix) for prefix in prefixes])
    columns = int(lengths.max())
    ids = torch.stack([pad(torch.tensor(prefix), (0, columns - len(prefix))) for prefix in prefixes])
    column = torch.arange(columns).expand(len(prefixes), -1)
    row = torch.arange(len(prefixes)).unsqueeze(1).expand(-1, columns)
    real, none = column < lengths.unsqueeze(1), torch.zeros(len(prefixes), dtype=torch.long)
    empty = torch.zeros(0, dtype=torch.long)
    return Packed(
        ids=ids,
        positions=torch.where(real, column, 0),
        owners=torch.where(real, row, -1),
        prefix=none,
        skipped=none,
        scored=Scored(empty, empty, empty, empty, empty, none + 1, 1),
    )
