"""The gradient of the target loss with respect to the one-hot suffix."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import DynamicCache

from ...models.batch import with_backoff
from ...models.cache import (
    PrefixCache,
    SuffixKeys,
    joined_suffixes,
    recorded_suffixes,
    recording,
)
from ...models.heads import logits_at
from ...models.load import LoadedModel
from .graphs import Replay
from .layout import PromptLayout, token_losses
from .passes import unstacked
from .recordings import recorded_gradient
from .tails import TailBatch, Tails, assemble_tails

_VOCABULARY_CHUNK = 16384


@dataclass(frozen=True)
class SuffixGradient:
    """Gradient of a case's target loss with respect to its one-hot suffix, and that loss."""

    gradient: Float[Tensor, "length vocab"]
    loss: float


@dataclass(frozen=True)
class SuffixGradients:
    """One gradient per case, the forward tokens they took, and the suffixes' keys where these were recorded."""

    cases: tuple[SuffixGradient, ...]
    tokens: int
    suffix: SuffixKeys | None = None


class GradientPass(NamedTuple):
    """One forward and backward pass: losses per row, the gradient at its embeddings, its suffixes' keys."""

    losses: Float[Tensor, "rows"]
    gradient: Float[Tensor, "rows columns d"]
    suffix: SuffixKeys | None
    vocabulary: int


def tail_logits(
    loaded: LoadedModel,
    batch: TailBatch,
    cache: DynamicCache | None,
    embeds: Float[Tensor, "rows columns d"] | None = None,
) -> Float[Tensor, "scored vocab"]:
    """Logits where a batch's targets are predicted, from its tokens or from embeddings in their place."""
    return logits_at(
        loaded.model,
        ids=batch.ids if embeds is None else None,
        embeds=embeds,
        mask=batch.mask,
        positions=batch.positions,
        cache=cache,
        rows=batch.scored.rows,
        columns=batch.scored.columns,
    )


def _pass(
    loaded: LoadedModel,
    batch: TailBatch,
    shared: DynamicCache | None,
    columns: int,
    embeds: Float[Tensor, "rows columns d"],
) -> GradientPass:
    """Keeps the keys of the first `columns` columns behind a shared prefix, unless that is 0."""
    cache = recording(shared, columns) if shared is not None and columns else shared
    embeds = embeds.detach().requires_grad_(True)
    logits = tail_logits(loaded, batch, cache, embeds)
    losses = batch.scored.means(token_losses(logits, batch.scored.targets))
    (gradient,) = torch.autograd.grad(losses.sum(), embeds)
    kept = recorded_suffixes(cache) if cache is not None and columns else None
    return GradientPass(losses.detach(), gradient, kept, logits.shape[-1])


def _launched(
    loaded: LoadedModel,
    tails: Tails,
    cases: Sequence[int],
    prefix: PrefixCache | None,
    columns: int,
    replay: Replay[GradientPass] | None,
) -> GradientPass:
    batch = tails.batch(cases, 0 if prefix is None else prefix.columns(cases), 0)
    once = partial(_pass, loaded, batch, None if prefix is None else prefix.rows(cases), columns)
    embeds = loaded.model.get_input_embeddings()(batch.ids).detach()
    return once(embeds) if replay is None else replay(once, embeds)


def _recorded(
    loaded: LoadedModel, tails: Tails, cases: Sequence[int], prefix: PrefixCache, columns: int
) -> GradientPass | None:
    """From a recording; the gradient at the first `columns` columns only."""
    found = recorded_gradient(loaded, tails.pack([[case] for case in cases]), cases, prefix, columns)
    if found is None or found.losses is None or found.gradient is None or found.keys is None:
        return None
    suffix = unstacked(found.keys, len(cases), columns)
    return GradientPass(found.losses, found.gradient, suffix, found.vocabulary)


def _onehot_gradient(
    embedding: nn.Module, gradient: Float[Tensor, "rows d"], vocabulary: int
) -> Float[Tensor, "rows vocab"]:
    """dL/d(one-hot) = dL/d(embedding) · Eᵀ, where row t of E is what the embedding module gives for token t.

    A scaled or adapted embedding is asked for its rows; a plain one is read. Products in float32 or better.
    """
    precise = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
    if type(embedding) is nn.Embedding and embedding.weight.dtype == precise.dtype:
        return precise @ embedding.weight.detach()[:vocabulary].T
    parts = []
    for start in range(0, vocabulary, _VOCABULARY_CHUNK):
        ids = torch.arange(start, min(start + _VOCABULARY_CHUNK, vocabulary), device=gradient.device)
        parts.append(precise @ embedding(ids).detach().to(precise.dtype).T)
    return torch.cat(parts, dim=1)


@torch.enable_grad()
def suffix_gradients(
    loaded: LoadedModel,
    layouts: Sequence[PromptLayout],
    *,
    prefix: PrefixCache | None,
    batch_size: int,
    record: bool = False,
    replay: Replay[GradientPass] | None = None,
    persistent: bool = False,
) -> SuffixGradients:
    """Gradients for the present suffixes of several cases, in batches; no parameter's `.grad` is touched.

    Args:
        prefix: the cache of exactly these cases, or None for the plain forward. Keys of the prefix do not depend
            on the suffix, so the gradient is exact with it.
        record: also keep the suffixes' keys and values (with a prefix cache only).
        replay: of these cases and this cache alone; used where one batch holds them all.
        persistent: as a recording that outlives these cases, where there can be one (`recordings.py`).
    """
    embedding = loaded.model.get_input_embeddings()
    suffixes = [torch.tensor([layout.suffix_ids]) for layout in layouts]
    longest = max(len(layout.suffix_ids) for layout in layouts)
    tails = assemble_tails(loaded, layouts, suffixes, cached=prefix is not None)

    def run(size: int) -> tuple[tuple[SuffixGradient, ...], SuffixKeys | None]:
        at_suffix, losses, recorded, vocabulary = [], [], list[SuffixKeys](), 0
        for start in range(0, len(layouts), size):
            cases = range(start, min(start + size, len(layouts)))
            found = (
                _recorded(loaded, tails, cases, prefix, longest)
                if persistent and prefix is not None
                else None
            )
            if found is None:
                again = replay if size >= len(layouts) else None
                found = _launched(loaded, tails, cases, prefix, longest if record else 0, again)
            if found.suffix is not None:
                recorded.append(found.suffix)
            losses += found.losses.tolist()
            vocabulary = found.vocabulary
            for row, case in enumerate(cases):
                layout = layouts[case]
                first = 0 if prefix is not None else len(layout.prefix_ids)
                at_suffix.append(found.gradient[row, first : first + len(layout.suffix_ids)])
        # Autocast is off here: its rounding would reorder near ties among the tokens to try.
        with torch.no_grad(), torch.autocast(loaded.device.type, enabled=False):
            onehot = _onehot_gradient(embedding, torch.cat(at_suffix), vocabulary)
        parts = onehot.split([len(part) for part in at_suffix])
        gradients = tuple(SuffixGradient(part, loss) for part, loss in zip(parts, losses, strict=True))
        return gradients, joined_suffixes(recorded, longest) if recorded else None

    (gradients, suffix), _ = with_backoff(run, batch_size)
    tokens = sum(layout.length if prefix is None else layout.tail_length for layout in layouts)
    return SuffixGradients(gradients, tokens, suffix)


@torch.no_grad()
def present_suffixes(loaded: LoadedModel, layouts: Sequence[PromptLayout], prefix: PrefixCache) -> SuffixKeys:
    """Keys and values of the present suffixes, from a pass of their own (a gradient pass records them anyway)."""
    suffixes = [torch.tensor([layout.suffix_ids]) for layout in layouts]
    longest = max(len(layout.suffix_ids) for layout in layouts)
    cases = range(len(layouts))
    batch = assemble_tails(loaded, layouts, suffixes, cached=True).batch(cases, prefix.columns(cases), 0)
    cache = recording(prefix.rows(cases), longest)
    tail_logits(loaded, batch, cache)
    return recorded_suffixes(cache)
