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

from ...errors import InputError
from ...models.batch import with_backoff
from ...models.cache import (
    PrefixCache,
    SuffixKeys,
    prefix_cache_supported,
    tree_attention_supported,
)
from ...models.load import LoadedModel
from .gradient import present_suffixes, tail_logits
from .layout import PromptLayout, longest_row, token_losses
from .recordings import recorded_losses
from .settings import Scoring
from .tails import Packed, Tails, assemble_tails

SCORINGS: tuple[Scoring, ...] = get_args(Scoring)
CPU_ROWS = 8  # per incremental forward on the CPU: enough to keep it busy, and rows of nearly one length
PACK_TOKENS = 256  # per packed row: attention within a row grows with its square
FEW = 128  # tails in a forward: few fill rows of several badly, and in numbers that change from step to step


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


@dataclass(frozen=True)
class Packing:
    """Tokens of the longest packed row, and whether packed forwards are recorded passes where they can be
    (`recordings.py`)."""

    tokens: int = PACK_TOKENS
    record: bool = False


class _Forward(NamedTuple):
    """Tails of one forward, the cases of its rows, and its packed rows where it has these."""

    tails: list[int]
    rows: list[int]
    packed: Packed | None


def _forwards(
    tails: Tails, size: int, pack: int | None, *, some_at_a_time: bool, few_alone: bool
) -> Iterator[_Forward]:
    """Batches of `size` rows; packed ones have the same number of tokens in rows of `pack`."""
    cases = tails.cases.tolist()
    if pack is None:
        order = tails.by_length()
        if some_at_a_time:
            size = min(size, CPU_ROWS)
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            yield _Forward(chosen, [cases[tail] for tail in chosen], None)
        return
    budget = size * int(tails.lengths.max())
    packs, many = tails.packs(min(pack, budget)), max(1, budget // pack)
    if few_alone and (alone := _alone(tails, packs)):
        packs, many = alone, size
    for start in range(0, len(packs), many):
        some = packs[start : start + many]
        chosen = [tail for row in some for tail in row]
        yield _Forward(chosen, [cases[row[0]] for row in some], tails.pack(some))


def _alone(tails: Tails, packs: list[list[int]]) -> list[list[int]] | None:
    """A row for each tail, where there are few and that takes hardly more tokens: always as many rows of one width."""
    lengths = tails.lengths.tolist()
    widest = max(sum(lengths[tail] for tail in pack) for pack in packs)
    few = len(lengths) <= FEW and len(lengths) * max(lengths) <= 1.25 * len(packs) * widest
    return [[tail] for tail in tails.by_length()] if few else None


def _plain_losses(
    loaded: LoadedModel,
    tails: Tails,
    forward: _Forward,
    prefix: PrefixCache | None,
    suffix: SuffixKeys | None,
) -> Float[Tensor, "tails"]:
    """Of one forward, launched one by one."""
    columns = 0 if prefix is None else prefix.columns(forward.rows)
    skip = max(tails.skipped[forward.tails].tolist())
    cache = None if prefix is None else prefix.rows(forward.rows, suffix, skip)
    if forward.packed is None or prefix is None:
        batch = tails.batch(forward.tails, columns, skip)
    else:
        batch = tails.packed(forward.packed, columns, skip, prefix.keys[0].dtype)
    logits = tail_logits(loaded, batch, cache)
    return batch.scored.means(token_losses(logits, batch.scored.targets))


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
    packing: Packing = Packing(),
) -> PendingScores:
    """Begin to score the candidates of several cases, `batch_size` rows at a time across cases.

    On CUDA this comes back before the device is done.

    Args:
        layouts: one per case, with its present suffix; each candidate has as many tokens.
        prefix: the cache of exactly these cases, or None for the plain forward.
        scoring: one that `usable_scoring` allows.
        suffix: keys and values of the present suffixes; computed here where they are needed and not given.
        packing: how packed forwards are made.
    """
    counts = [len(rows) for rows in candidates]
    if sum(counts) == 0:
        return PendingScores(torch.empty(0), [], counts, tuple(0 for _ in layouts), batch_size)
    incremental = prefix is not None and scoring in ("incremental", "packed")
    computed = incremental and suffix is None
    if prefix is not None and computed:
        suffix = present_suffixes(loaded, layouts, prefix)
    tails = assemble_tails(loaded, layouts, candidates, cached=prefix is not None, incremental=incremental)
    pack = packing.tokens if scoring == "packed" and prefix is not None else None
    read = suffix if incremental else None

    def run(size: int) -> tuple[Tensor, list[int]]:
        parts, order = [], list[int]()
        on_cpu = read is not None and tails.device.type == "cpu"
        for forward in _forwards(tails, size, pack, some_at_a_time=on_cpu, few_alone=packing.record):
            losses = None
            if packing.record and forward.packed is not None and prefix is not None:
                losses = recorded_losses(loaded, forward.packed, forward.rows, prefix, read)
            parts.append(_plain_losses(loaded, tails, forward, prefix, read) if losses is None else losses)
            order += forward.tails
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
