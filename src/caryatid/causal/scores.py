"""Scores of candidate directions on selection prompts: bypass, induce and KL (protocol §5)."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from caryatid.causal.answers import LAST_KL, MEAN_KL, AnswerReference
from caryatid.causal.grid import UNTOUCHED, Conditions, GridReduce, evaluate
from caryatid.causal.watched import Watched, evaluate_watched
from caryatid.errors import InputError, NumericalError
from caryatid.geometry.carriers import CandidateScores
from caryatid.geometry.cosmic import CosmicProducts, cosmic_products
from caryatid.geometry.directions import is_candidate, unit
from caryatid.models.layout import num_layers
from caryatid.models.load import LoadedModel
from caryatid.models.residual import Ablate, Add
from caryatid.models.template import ChatFormat
from caryatid.progress import Progress


def refusal_score(
    logits: Float[Tensor, "rows vocab"], tokens: Int[Tensor, "refusal_tokens"]
) -> Float[Tensor, "rows"]:
    """log P(T) − log(1 − P(T)) of the next token, T the refusal tokens.

    As logsumexp over T minus logsumexp over all other tokens, which neither overflows nor cancels.
    """
    inside = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
    inside[tokens.to(logits.device)] = True
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    refused = wide[:, inside].logsumexp(dim=-1)
    return refused - wide.masked_fill(inside, -torch.inf).logsumexp(dim=-1)


def refusal_tokens(loaded: LoadedModel, tokens: Sequence[int]) -> Int[Tensor, "refusal_tokens"]:
    """The set T as a tensor on the model's device.

    Raises:
        InputError: it is empty, holds the whole vocabulary, or holds an id that the model does not have.
    """
    chosen = sorted(set(tokens))
    vocabulary = int(loaded.model.config.get_text_config().vocab_size)
    if not chosen or len(chosen) >= vocabulary:
        raise InputError(f"{len(chosen)} refusal tokens of {vocabulary}", where="refusal tokens")
    if chosen[0] < 0 or chosen[-1] >= vocabulary:
        raise InputError(f"id {chosen[-1]} is outside the vocabulary of {vocabulary}", where="refusal tokens")
    return torch.tensor(chosen, device=loaded.device)


def score_reduce(tokens: Int[Tensor, "refusal_tokens"]) -> GridReduce:
    """Reduction of a grid to refusal scores at the last position."""
    return lambda batch: refusal_score(batch.logits[:, -1], tokens)


def ablations(directions: Float[Tensor, "candidates d"]) -> Conditions:
    """Each direction ablated at every site."""
    return Conditions((Ablate(unit(directions.double()).float().unsqueeze(1)),), count=len(directions))


def additions(
    directions: Float[Tensor, "candidates d"], layers: Sequence[int]
) -> list[tuple[list[int], Conditions]]:
    """The unscaled directions added at their layers' block inputs, grouped by layer, with their row numbers."""
    groups = []
    for layer in sorted(set(layers)):
        rows = [row for row, each in enumerate(layers) if each == layer]
        add = Add(directions[rows].float(), torch.full((len(rows),), layer))
        groups.append((rows, Conditions((add,), count=len(rows), start=layer)))
    return groups


def _require_finite(name: str, values: Tensor) -> None:
    if not torch.isfinite(values).all():
        raise NumericalError(
            f"{name} are not finite", where="candidate scores", remedy="Check the anchor's weights."
        )


class _Candidates(NamedTuple):
    """The candidates of a bank, one row each, in the order of positions, then layers."""

    vectors: Float[Tensor, "candidates d"]
    positions: list[int]
    layers: list[int]


def _candidates(
    loaded: LoadedModel,
    directions: Float[Tensor, "positions layers d"],
    positions: Sequence[int],
    layers: Sequence[int],
) -> _Candidates:
    depth = num_layers(loaded.model)
    if directions.shape[:2] != (len(positions), len(layers)):
        raise InputError(
            f"a bank of {tuple(directions.shape[:2])} for {len(positions)} positions and {len(layers)} layers",
            where="score_bank",
        )
    if any(not 0 <= layer < depth for layer in layers):
        raise InputError(f"layers {list(layers)} are not all among 0 … {depth - 1}", where="score_bank")
    places = is_candidate(directions).nonzero().tolist()
    vectors = directions[[p for p, _ in places], [i for _, i in places]].to(loaded.device)
    return _Candidates(vectors, [int(positions[p]) for p, _ in places], [int(layers[i]) for _, i in places])


def score_bank(
    loaded: LoadedModel,
    chat: ChatFormat,
    directions: Float[Tensor, "positions layers d"],
    harmful: Sequence[str],
    harmless: Sequence[str],
    tokens: Sequence[int],
    *,
    layers: Sequence[int],
    positions: Sequence[int],
    answers: Sequence[Sequence[int]],
    batch_size: int,
    answer_tokens: int = 8,
    skip_below: float | None = None,
    skip_after: int | None = None,
    cosmic_layers: Sequence[int] = (),
    progress: Progress | None = None,
) -> CandidateScores:
    """Bypass, induce and KL of every candidate of a bank, per prompt. Zero directions are no candidates.

    Args:
        directions: r[p, l], not normalised; its axes are `positions` (−1: the last prompt token) and `layers`.
        harmful, harmless: users' texts of the selection prompts. tokens: the refusal tokens T.
        answers: token ids of the base model's own greedy answers to `harmless`, at least `answer_tokens` of each unless
            the answer is shorter.
        skip_below: candidates whose gap-normalised bypass effect is below this are not scored further; their induce
            and KL stay NaN. None scores all.
        skip_after: that effect is judged on the first so many harmful prompts, and the bypass of candidates left out is
            NaN on the others. None: on all.
        cosmic_layers: blocks whose outputs the COSMIC scores compare (`geometry.cosmic.least_alike_layers`), read in
            the same forward passes. Empty: no COSMIC scores.
        progress: advances by one per pair of candidate and prompt: positions × layers × (harmful + 2 · harmless)
            in all, less where candidates are left out.

    Raises:
        InputError: axes, answers or tokens do not fit. NumericalError: a direction or the model's output is not finite.
    """
    target = score_reduce(refusal_tokens(loaded, tokens))
    bank = _candidates(loaded, directions, positions, layers)
    measure = partial(
        evaluate_watched, loaded, reduce=target, layers=tuple(cosmic_layers), batch_size=batch_size
    )
    harmful_ids, harmless_ids = chat.ids_many(harmful), chat.ids_many(harmless)
    plain = _Untouched(*(measure(ids, [UNTOUCHED])[0] for ids in (harmful_ids, harmless_ids)))
    h, s = plain.harmful.scores[0], plain.harmless.scores[0]
    _require_finite("unablated refusal scores", torch.cat([h, s]))
    measure = partial(measure, progress=progress)
    ablated, rows = _bypass_scores(measure, harmful_ids, bank.vectors, h, s, skip_below, skip_after)
    base = AnswerReference(loaded, harmless_ids, answers, answer_tokens=answer_tokens, batch_size=batch_size)
    kl = _kl_scores(loaded, base, bank.vectors, rows, batch_size, progress)
    added = _induce_scores(measure, harmless_ids, bank, rows, plain.harmless, cosmic_layers)
    return CandidateScores(
        positions=np.array(bank.positions, dtype=np.int64),
        layers=np.array(bank.layers, dtype=np.int64),
        n_layers=num_layers(loaded.model),
        harmful=h.double().numpy(),
        harmless=s.double().numpy(),
        bypass=ablated.scores.double().numpy(),
        induce=added.scores.double().numpy(),
        kl=kl[..., LAST_KL].double().numpy(),
        kl_answer=kl[..., MEAN_KL].double().numpy(),
        cosmic=_cosmic(plain, ablated, added),
    )


def _kl_scores(
    loaded: LoadedModel,
    base: AnswerReference,
    vectors: Float[Tensor, "candidates d"],
    rows: Int[Tensor, "kept"],
    batch_size: int,
    progress: Progress | None,
) -> Float[Tensor, "candidates harmless 3"]:
    """KL of the candidates `rows` ablated; NaN for the others."""
    kl = torch.full((len(vectors), len(base.seqs), 3), torch.nan)
    if len(rows):
        (kl[rows],) = evaluate(
            loaded,
            base.seqs,
            [ablations(vectors[rows])],
            reduce=base.compare,
            keep=base.keep,
            batch_size=batch_size,
            progress=progress,
        )
    return kl


class _Untouched(NamedTuple):
    """What the model as it is does on harmful and on harmless prompts."""

    harmful: Watched
    harmless: Watched


def _induce_scores(
    measure: Callable[[Sequence[Sequence[int]], list[Conditions]], list[Watched]],
    harmless_ids: Sequence[Sequence[int]],
    bank: _Candidates,
    rows: Int[Tensor, "kept"],
    untouched: Watched,
    cosmic_layers: Sequence[int],
) -> Watched:
    """Harmless prompts with each of the candidates `rows` added at its layer; NaN for the others."""
    scores = torch.full((len(bank.layers), len(harmless_ids)), torch.nan)
    own, outputs = untouched.outputs, None
    if own is not None:
        outputs = torch.full((len(bank.layers), *own.shape[1:]), torch.nan)
    groups = additions(bank.vectors[rows], [bank.layers[row] for row in rows])
    found = measure(harmless_ids, [group for _, group in groups]) if groups else []
    for (members, group), added in zip(groups, found, strict=True):
        here = rows[members]
        scores[here] = added.scores
        if outputs is not None and own is not None and added.outputs is not None:
            # Blocks before the one at whose input is added put out what they always do.
            before = torch.tensor([layer < group.start for layer in cosmic_layers])
            outputs[here] = torch.where(before[:, None], own, added.outputs)
    return Watched(scores, outputs)


def _cosmic(untouched: _Untouched, ablated: Watched, added: Watched) -> CosmicProducts | None:
    """What COSMIC's scores follow from; None where no outputs were watched, or there is no candidate."""
    harmful, harmless = untouched.harmful.outputs, untouched.harmless.outputs
    if harmful is None or harmless is None or ablated.outputs is None or added.outputs is None:
        return None
    return cosmic_products(ablated.outputs, added.outputs, harmful[0], harmless[0])


def _bypass_scores(
    measure: Callable[[Sequence[Sequence[int]], list[Conditions]], list[Watched]],
    harmful: Sequence[Sequence[int]],
    vectors: Float[Tensor, "candidates d"],
    h: Float[Tensor, "harmful"],
    s: Float[Tensor, "harmless"],
    skip_below: float | None,
    skip_after: int | None,
) -> tuple[Watched, Int[Tensor, "kept"]]:
    """Bypass of every candidate, and the numbers of those that are worth scoring further."""
    if skip_after is not None and skip_after < 1:
        raise InputError(f"skip_after is {skip_after}, at least 1 prompt is needed", where="score_bank")
    total = len(harmful)
    first = total if skip_below is None or skip_after is None else min(skip_after, total)
    if not len(vectors):
        return Watched(torch.zeros(0, total), None), torch.arange(0)
    (ablated,) = measure(harmful[:first], [ablations(vectors)])
    rows = _worth_scoring(ablated.scores, float(h[:first].mean()), float(s.mean()), skip_below)
    if first == total:
        return ablated, rows
    if len(rows):
        (rest,) = measure(harmful[first:], [ablations(vectors[rows])])
    else:
        outputs = ablated.outputs
        none = None if outputs is None else outputs.new_zeros(0, total - first, *outputs.shape[2:])
        rest = Watched(torch.zeros(0, total - first), none)
    return _joined(ablated, rest, rows), rows


def _joined(first: Watched, rest: Watched, rows: Int[Tensor, "kept"]) -> Watched:
    """Both parts of the prompts, the second measured for the candidates `rows` alone; NaN for the others."""
    scores = first.scores.new_full((len(first.scores), rest.scores.shape[1]), torch.nan)
    scores[rows] = rest.scores
    outputs = None
    if first.outputs is not None and rest.outputs is not None:
        later = rest.outputs.new_full((len(first.outputs), *rest.outputs.shape[1:]), torch.nan)
        later[rows] = rest.outputs
        outputs = torch.cat([first.outputs, later], dim=1)
    return Watched(torch.cat([first.scores, scores], dim=1), outputs)


def _worth_scoring(
    bypass: Float[Tensor, "candidates harmful"], h: float, s: float, skip_below: float | None
) -> Int[Tensor, "rows"]:
    """Which candidates to score further: all, or those that remove at least this share of a positive gap."""
    if skip_below is None or h <= s:
        return torch.arange(len(bypass))
    return ((h - bypass.mean(dim=1)) / (h - s) >= skip_below).nonzero()[:, 0]
