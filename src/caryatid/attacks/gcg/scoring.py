"""Exact target losses of many suffixes.

Four ways to score, each with one shortcut more than the one before, all exact:

* `plain`: whole rows.
* `prefix`: everything before the suffix is the same for all candidates of a case; its keys and values are computed once
  and read by every row.
* `incremental`: so is the suffix before a candidate's first changed token; the keys and values that the gradient's
  forward computed for the present suffix are read up to there.
* `packed`: the remaining tails lie one behind the other in few long rows behind one shared context, under a mask that
  shows each token its own context and its own tail (tree attention). No filling, no copies of the context.

Only the logits that predict target tokens are computed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from ...errors import InputError
from ...models.batch import with_backoff
from ...models.cache import (
    PrefixCache,
    SuffixKeys,
    prefix_cache_supported,
    tree_attention_supported,
)
from ...models.heads import logits_at
from ...models.load import LoadedModel
from .gradient import present_suffixes
from .layout import PromptLayout, longest_row, token_losses
from .settings import Scoring
from .tails import TailBatch, Tails, assemble_tails

SCORINGS: tuple[Scoring, ...] = get_args(Scoring)
CPU_ROWS = 8  # per incremental forward on the CPU: enough to keep it busy, and rows of nearly one length
PACK_TOKENS = 256  # per packed row: attention within a row grows with its square


def default_scoring(device: torch.device) -> Scoring:
    """On the CPU the fastest as measured (docs/performance.md); elsewhere the one with the fewest tokens and copies."""
    return "incremental" if device.type == "cpu" else "packed"


def usable_scoring(
    loaded: LoadedModel, layouts: Sequence[PromptLayout], prefix: PrefixCache | None, wanted: Scoring
) -> Scoring:
    """`wanted`, or the nearest before it that is exact on this model.

    `packed` needs eager or sdpa attention in the library's own code; `incremental` rows whose columns stay within every
    sliding window; all but `plain` a prefix cache.
    """
    if wanted not in SCORINGS:
        raise InputError(f"unknown scoring {wanted!r}", where="GCG", remedy=f"Use {', '.join(SCORINGS)}.")
    if prefix is None:
        return "plain"
    longest = longest_row(layouts) + max(len(layout.suffix_ids) for layout in layouts)
    if wanted in ("incremental", "packed") and not prefix_cache_supported(loaded, longest):
        return "prefix"
    return "incremental" if wanted == "packed" and not tree_attention_supported(loaded) else wanted


@dataclass(frozen=True)
class ScoredCandidates:
    """Losses per case on the CPU, real forward tokens they took per case, and the batch size that fitted."""

    losses: tuple[Float[Tensor, "_"], ...]
    case_tokens: tuple[int, ...]
    batch_size: int

    @property
    def tokens(self) -> int:
        """Over all cases."""
        return sum(self.case_tokens)


@dataclass(frozen=True)
class PendingScores:
    """Scores that the device may still be computing: `losses[j]` is that of candidate `order[j]`, all cases joined."""

    losses: Float[Tensor, "scored"]
    order: list[int]
    counts: list[int]
    case_tokens: tuple[int, ...]
    batch_size: int

    def result(self) -> ScoredCandidates:
        """Waits for them."""
        joined = self.losses.cpu()
        losses = torch.empty_like(joined)
        losses[torch.tensor(self.order, dtype=torch.long)] = joined
        return ScoredCandidates(losses.split(self.counts), self.case_tokens, self.batch_size)


class _Forward(NamedTuple):
    tails: list[int]
    batch: TailBatch
    cache: DynamicCache | None


def _forwards(
    tails: Tails, size: int, prefix: PrefixCache | None, suffix: SuffixKeys | None, pack: int | None
) -> Iterator[_Forward]:
    """Batches of `size` rows; packed ones have the same number of tokens in rows of `pack`."""
    cases, skipped = tails.cases.tolist(), tails.skipped.tolist()
    if pack is None or prefix is None:
        order = tails.by_length()
        if suffix is not None and tails.device.type == "cpu":
            size = min(size, CPU_ROWS)
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            rows = [cases[tail] for tail in chosen]
            columns = 0 if prefix is None else prefix.columns(rows)
            skip = max(skipped[tail] for tail in chosen)
            cache = None if prefix is None else prefix.rows(rows, suffix, skip)
            yield _Forward(chosen, tails.batch(chosen, columns, skip), cache)
        return
    budget = size * int(tails.lengths.max())
    packs = tails.packs(min(pack, budget))
    many = max(1, budget // pack)
    for start in range(0, len(packs), many):
        some = packs[start : start + many]
        chosen = [tail for row in some for tail in row]
        rows = [cases[row[0]] for row in some]
        columns, skip = prefix.columns(rows), max(skipped[tail] for tail in chosen)
        cache = prefix.rows(rows, suffix, skip)
        yield _Forward(chosen, tails.packed(some, columns, skip, prefix.keys[0].dtype), cache)


@torch.no_grad()
def start_scoring(
    loaded: LoadedModel,
    layouts: Sequence[PromptLayout],
    candidates: Sequence[Int[Tensor, "_ _"]],
    *,
    batch_size: int,
    prefix: PrefixCache | None,
    scoring: Scoring = "prefix",
    suffix: SuffixKeys | None = None,
    pack_tokens: int = PACK_TOKENS,
) -> PendingScores:
    """Begin to score the candidates of several cases, `batch_size` rows at a time across cases.

    On CUDA this comes back before the device is done.

    Args:
        layouts: one per case, with its present suffix; each candidate has as many tokens.
        prefix: the cache of exactly these cases, or None for the plain forward.
        scoring: one that `usable_scoring` allows.
        suffix: keys and values of the present suffixes; computed here where they are needed and not given.
        pack_tokens: longest packed row.
    """
    counts = [len(rows) for rows in candidates]
    if sum(counts) == 0:
        return PendingScores(torch.empty(0), [], counts, tuple(0 for _ in layouts), batch_size)
    incremental = prefix is not None and scoring in ("incremental", "packed")
    computed = incremental and suffix is None
    if prefix is not None and computed:
        suffix = present_suffixes(loaded, layouts, prefix)
    tails = assemble_tails(loaded, layouts, candidates, cached=prefix is not None, incremental=incremental)
    pack = pack_tokens if scoring == "packed" else None

    def run(size: int) -> tuple[Tensor, list[int]]:
        parts, order = [], list[int]()
        for chosen, batch, cache in _forwards(tails, size, prefix, suffix if incremental else None, pack):
            logits = logits_at(
                loaded.model,
                ids=batch.ids,
                mask=batch.mask,
                positions=batch.positions,
                cache=cache,
                rows=batch.scored.rows,
                columns=batch.scored.columns,
            )
            parts.append(batch.scored.means(token_losses(logits, batch.scored.targets)))
            order += chosen
        return torch.cat(parts), order

    (losses, order), size = with_backoff(run, batch_size)
    spent = [layout.tail_length if computed else 0 for layout in layouts]
    for case, length in zip(tails.cases.tolist(), tails.lengths.tolist(), strict=True):
        spent[case] += length
    return PendingScores(losses, order, counts, tuple(spent), size)


def score_candidates(
    loaded: LoadedModel,
    layouts: Sequence[PromptLayout],
    candidates: Sequence[Int[Tensor, "_ _"]],
    **options: Any,
) -> ScoredCandidates:
    """Losses of the candidates of several cases; arguments as `start_scoring`."""
    return start_scoring(loaded, layouts, candidates, **options).result()
