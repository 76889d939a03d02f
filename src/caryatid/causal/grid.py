"""Many conditions × many prompts in few forward tokens, for candidate scores and teacher-forced read-outs.

A condition is one row of the interventions of its group. Two things are computed once instead of for every pair of
condition and prompt: the keys and values of the tokens with which all prompts begin (once per condition, under that
condition), and, for conditions that touch nothing before a block, everything up to that block (once per prompt, without
conditions). Both are exact: the results are those of plain forwards under `intervening`, up to rounding.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from .. import keeping
from ..errors import InputError
from ..files import content_key
from ..models.batch import PaddedBatch, batch_cost, left_pad, length_sorted_batches, with_backoff
from ..models.cache import PrefixCache, prefix_cache_supported, run_prefixes
from ..models.capture import capture_block_inputs
from ..models.forward import at_rows, pad_id
from ..models.heads import contiguous_head
from ..models.hooks import Hooks, input_hook
from ..models.layout import num_layers
from ..models.load import LoadedModel
from ..models.residual import Intervention, intervening
from ..models.template import common_prefix
from ..progress import NO_PROGRESS, Progress

_PROMPTS_PER_BATCH = 4  # of similar length, so that little is spent on padding


@dataclass(frozen=True)
class ConditionGroup:
    """Conditions that share batches.

    Attributes:
        interventions: each with one row per condition, or one row for all. Empty: the model as it is.
        members: the conditions' numbers in the caller's list.
        start: no block before this one is touched.

    Raises:
        InputError: rows that are not the members, no member, or a negative block.
    """

    interventions: tuple[Intervention, ...] = ()
    members: Sequence[int] = (0,)
    start: int = 0

    def __post_init__(self) -> None:
        for each in self.interventions:
            if each.rows not in (1, len(self.members)):
                raise InputError(
                    f"{each.rows} rows for {len(self.members)} conditions", where=type(each).__name__
                )
        if not self.members or self.start < 0:
            raise InputError(
                f"{len(self.members)} conditions from block {self.start} on", where="ConditionGroup"
            )


UNTOUCHED = ConditionGroup()


class GridBatch(NamedTuple):
    """Logits of some pairs of condition and prompt.

    Attributes:
        logits: float32, at the last positions of each row.
        condition, prompt: the row's numbers in the caller's lists of conditions and of token rows.
    """

    logits: Float[Tensor, "rows keep vocab"]
    condition: Int[Tensor, "rows"]
    prompt: Int[Tensor, "rows"]


GridReduce = Callable[[GridBatch], Tensor]
"""From a batch to one value, or one row of values, per row."""


class _BaseRun(NamedTuple):
    """The prefix in the model as it is: keys and values, and block inputs by layer."""

    prefix: PrefixCache
    inputs: dict[int, Float[Tensor, "1 tokens d"]]


class _Piece(NamedTuple):
    """Prompts of similar length without the shared prefix, and the block inputs of their base run by layer."""

    prompts: list[int]
    batch: PaddedBatch
    inputs: dict[int, Float[Tensor, "prompts tokens d"]]


class _Values(NamedTuple):
    """Reduced values of one batch, on the CPU, with the condition and the prompt of each row."""

    value: Float[Tensor, "rows *value"]
    condition: Int[Tensor, "rows"]
    prompt: Int[Tensor, "rows"]


@contextmanager
def starting_at(loaded: LoadedModel, layer: int, hidden: Float[Tensor, "rows tokens d"]) -> Iterator[None]:
    """Forward passes inside begin at block `layer` with the block input `hidden`; earlier blocks do nothing.

    Open it before `intervening`, so that additions at `layer` come after.
    """
    hooks = Hooks(loaded.model)
    skipped = list(hooks.layers)[:layer]
    own = [vars(block).get("forward") for block in skipped]

    def pass_on(hidden_states: Tensor, *args: object, **kwargs: object) -> Tensor:
        return hidden_states

    try:
        for block in skipped:
            vars(block)["forward"] = pass_on
        hooks.on_input(layer, input_hook(lambda _: hidden))
        yield
    finally:
        hooks.remove()
        for block, forward in zip(skipped, own, strict=True):
            if forward is None:
                del vars(block)["forward"]
            else:
                vars(block)["forward"] = forward


class _Grid:
    """One list of token rows on one model."""

    def __init__(
        self, loaded: LoadedModel, seqs: Sequence[Sequence[int]], keep: int, batch_size: int
    ) -> None:
        if not seqs or min(map(len, seqs)) == 0:
            raise InputError("no prompts, or an empty one, to measure on", where="grid")
        self.loaded, self.seqs, self.keep, self.batch_size = loaded, seqs, keep, batch_size
        shared = min(common_prefix(seqs), min(map(len, seqs)) - keep)
        exact = prefix_cache_supported(loaded, 2 * max(map(len, seqs)))
        self.prefix_length = shared if shared > 1 and exact else 0

    def pieces(self, prompts_per_batch: int) -> list[_Piece]:
        rests = [list(seq[self.prefix_length :]) for seq in self.seqs]
        pieces = []
        cost = batch_cost(self.loaded.device)
        for prompts in length_sorted_batches([len(rest) for rest in rests], prompts_per_batch, cost):
            batch = left_pad([rests[n] for n in prompts], pad_id(self.loaded), self.loaded.device)
            pieces.append(_Piece(prompts, batch, {}))
        return pieces

    def prefix(
        self, group: ConditionGroup, index: Int[Tensor, "conditions"], base: _BaseRun | None = None
    ) -> PrefixCache | None:
        """The prefix under some conditions of a group; blocks before its `start` are taken from the base run."""
        if self.prefix_length == 0:
            return None
        if base is None or group.start == 0:
            return self._run_prefix(group, index)
        first = group.start
        with starting_at(self.loaded, first, base.inputs[first].expand(len(index), -1, -1)):
            late = self._run_prefix(group, index)
        keys, values = base.prefix.keys[:first], base.prefix.values[:first]
        return replace(late, keys=keys + late.keys[first:], values=values + late.values[first:])

    def _run_prefix(self, group: ConditionGroup, index: Int[Tensor, "conditions"]) -> PrefixCache:
        beginning = self.seqs[0][: self.prefix_length]
        with intervening(self.loaded.model, *at_rows(group.interventions, index.tolist())):
            return run_prefixes(self.loaded, [beginning] * len(index))

    def logits(
        self, batch: PaddedBatch, repeats: int, cache: DynamicCache | None
    ) -> Float[Tensor, "rows keep vocab"]:
        """Logits of the batch's prompts repeated for each of some conditions."""
        ids, mask, positions = (each.repeat(repeats, 1) for each in batch)
        if cache is not None:
            mask = torch.cat([mask.new_ones(len(mask), self.prefix_length), mask], dim=1)
            positions = positions + self.prefix_length
        with contiguous_head(self.loaded.model):
            out = self.loaded.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=cache is not None,
                logits_to_keep=min(self.keep, ids.shape[1]),
            )
        logits: Tensor = out.logits
        return logits.float()

    def capture(self, pieces: list[_Piece], layers: list[int]) -> _BaseRun | None:
        """Run the model as it is, keeping block inputs of the pieces (in them) and of the prefix (returned)."""
        base = None
        model, dtype = self.loaded.model, self.loaded.dtype
        if self.prefix_length:
            with capture_block_inputs(model, layers, self.prefix_length) as captured:
                prefix = self._run_prefix(UNTOUCHED, torch.zeros(1, dtype=torch.long))
            base = _BaseRun(prefix, {layer: captured.of_layer(layer).to(dtype) for layer in layers})
        for piece in pieces:
            cache = base.prefix.rows([0] * len(piece.prompts)) if base else None
            with capture_block_inputs(model, layers, piece.batch.ids.shape[1]) as captured:
                self.logits(piece.batch, 1, cache)
            piece.inputs.update({layer: captured.of_layer(layer).to(dtype) for layer in layers})
        return base

    def run(
        self,
        group: ConditionGroup,
        pieces: list[_Piece],
        base: _BaseRun | None,
        reduce: GridReduce,
        progress: Progress,
    ) -> Iterator[_Values]:
        """Reduced values of every pair of a condition of the group and a prompt."""
        members = torch.tensor(list(group.members))
        chunk = max(1, self.batch_size // max(len(piece.prompts) for piece in pieces))
        for index in torch.arange(len(members)).split(chunk):
            prefix = cache(partial(self.prefix, group, index, base))
            for piece in pieces:
                condition = members[index].repeat_interleave(len(piece.prompts))
                prompt = torch.tensor(piece.prompts).repeat(len(index))
                make = partial(self._reduced, group, index, piece, prefix, reduce)
                label = content_key([condition.tolist(), prompt.tolist(), self.keep, group.start])
                # The model as it is takes one pass, and what is made of it may be whole distributions.
                value = keeping.piece(label, make) if group.interventions else make()
                yield _Values(value, condition, prompt)
                progress.advance(len(condition))

    def _reduced(
        self,
        group: ConditionGroup,
        index: Int[Tensor, "conditions"],
        piece: _Piece,
        prefix: Callable[[], PrefixCache | None],
        reduce: GridReduce,
    ) -> Float[Tensor, "rows *value"]:
        """Reduced values of a piece's prompts under some conditions of a group, on the CPU."""
        row = torch.arange(len(index)).repeat_interleave(len(piece.prompts))
        shared = prefix()
        with ExitStack() as contexts:
            if group.start > 0:
                hidden = piece.inputs[group.start].repeat(len(index), 1, 1)
                contexts.enter_context(starting_at(self.loaded, group.start, hidden))
            rows = at_rows(group.interventions, index[row].tolist())
            contexts.enter_context(intervening(self.loaded.model, *rows))
            logits = self.logits(
                piece.batch, len(index), None if shared is None else shared.rows(row.tolist())
            )
        numbers = (
            torch.tensor(list(group.members))[index[row]],
            torch.tensor(piece.prompts).repeat(len(index)),
        )
        return reduce(GridBatch(logits, *(each.to(self.loaded.device) for each in numbers))).cpu()


@torch.no_grad()
def evaluate_grid(
    loaded: LoadedModel,
    seqs: Sequence[Sequence[int]],
    groups: Sequence[ConditionGroup],
    *,
    reduce: GridReduce,
    keep: int = 1,
    batch_size: int,
    progress: Progress | None = None,
) -> Float[Tensor, "conditions prompts *value"]:
    """The reduced values of each prompt under each condition, on the CPU.

    Args:
        seqs: token rows, prompts or prompts with part of an answer.
        groups: their members together are the numbers from 0 on, each once.
        reduce: what is made of the logits of the last `keep` positions. A row shorter than `keep` has padding first.
        batch_size: rows per forward, halved where memory runs out.
        progress: advances by one per pair of condition and prompt.

    Raises:
        InputError: no prompts or conditions, members that are not such numbers, interventions that do not fit the
            model, or an impossible `start`. MemoryExhaustedError: memory runs out at one row, too.
    """
    depth, members = num_layers(loaded.model), [number for group in groups for number in group.members]
    for group in groups:
        if group.start >= depth:
            raise InputError(f"layer {group.start} is not one of 0 … {depth - 1}", where="ConditionGroup")
    if not members or sorted(members) != list(range(len(members))):
        raise InputError("the groups' members are not the numbers from 0 on, each once", where="grid")
    if keep < 1 or batch_size < 1:
        raise InputError(f"keep {keep}, batch size {batch_size}: both are at least 1", where="grid")
    run = partial(_evaluated, loaded, seqs, groups, reduce, keep, progress or NO_PROGRESS)
    return with_backoff(run, batch_size).value


def _evaluated(
    loaded: LoadedModel,
    seqs: Sequence[Sequence[int]],
    groups: Sequence[ConditionGroup],
    reduce: GridReduce,
    keep: int,
    report: Progress,
    batch_size: int,
) -> Float[Tensor, "conditions prompts *value"]:
    """As `evaluate_grid`, with batches of this size."""
    grid = _Grid(loaded, seqs, keep, batch_size)
    late = [group for group in groups if group.start > 0]
    base, late_pieces = None, []
    count = sum(len(group.members) for group in groups)
    if late:
        late_pieces = grid.pieces(max(1, batch_size // max(len(group.members) for group in late)))
        base = grid.capture(late_pieces, sorted({group.start for group in late}))
    result: Tensor | None = None
    for group in groups:
        per_batch = max(1, min(batch_size, max(_PROMPTS_PER_BATCH, batch_size // len(group.members))))
        pieces = late_pieces if group.start > 0 else grid.pieces(per_batch)
        for values in grid.run(group, pieces, base if group.start > 0 else None, reduce, report):
            if result is None:
                result = values.value.new_full((count, len(seqs), *values.value.shape[1:]), torch.nan)
            result[values.condition, values.prompt] = values.value
    assert result is not None
    return result
