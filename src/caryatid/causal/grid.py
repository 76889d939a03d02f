"""Many conditions × many prompts in few forward tokens: the engine behind the bank and the teacher-forced read-outs.

A condition is one row of interventions. Two things are computed once instead of for every pair of condition and prompt:
the keys and values of the tokens with which all prompts begin (once per condition, under that condition), and, for
conditions that touch nothing before a block, everything up to that block (once per prompt, without conditions).
Both are exact: the results are those of plain forwards under `intervening`, up to rounding.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from caryatid.errors import InputError
from caryatid.models.batch import PaddedBatch, left_pad, length_sorted_batches
from caryatid.models.cache import PrefixCache, prefix_cache_supported, run_prefixes
from caryatid.models.forward import at_rows, pad_id
from caryatid.models.heads import contiguous_head
from caryatid.models.hooks import Hooks, input_hook
from caryatid.models.layout import num_layers
from caryatid.models.load import LoadedModel
from caryatid.models.residual import Intervention, capture_block_inputs, intervening
from caryatid.models.template import common_prefix
from caryatid.progress import NO_PROGRESS, Progress

_PROMPTS_PER_BATCH = 4  # of similar length, so that little is spent on padding


@dataclass(frozen=True)
class Conditions:
    """Conditions that are measured together.

    Attributes:
        interventions: each with one row per condition, or one row for all. Empty: the model as it is.
        count: how many conditions these are.
        start: no block before this one is touched.
    """

    interventions: tuple[Intervention, ...] = ()
    count: int = 1
    start: int = 0

    def __post_init__(self) -> None:
        for each in self.interventions:
            if each.rows not in (1, self.count):
                raise InputError(f"{each.rows} rows for {self.count} conditions", where=type(each).__name__)
        if self.count < 1 or self.start < 0:
            raise InputError(f"{self.count} conditions from block {self.start} on", where="Conditions")


UNTOUCHED = Conditions()


class GridBatch(NamedTuple):
    """Logits of some pairs of condition and prompt.

    Attributes:
        logits: float32, at the last positions of each row.
        condition, prompt: the row's numbers in its `Conditions` and in the list of token rows.
    """

    logits: Float[Tensor, "rows keep vocab"]
    condition: Int[Tensor, "rows"]
    prompt: Int[Tensor, "rows"]


GridReduce = Callable[[GridBatch], Tensor]
"""From a batch to one value, or one row of values, per row."""


class _Piece(NamedTuple):
    """Prompts of similar length without the shared prefix, and the block inputs of their base run by layer."""

    prompts: list[int]
    batch: PaddedBatch
    inputs: dict[int, Float[Tensor, "prompts tokens d"]]


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
        if keep < 1 or batch_size < 1:
            raise InputError(f"keep {keep}, batch size {batch_size}: both are at least 1", where="grid")
        self.loaded, self.seqs, self.keep, self.batch_size = loaded, seqs, keep, batch_size
        shared = min(common_prefix(seqs), min(map(len, seqs)) - keep)
        exact = prefix_cache_supported(loaded, 2 * max(map(len, seqs)))
        self.prefix_length = shared if shared > 1 and exact else 0

    def pieces(self, prompts_per_batch: int) -> list[_Piece]:
        rests = [list(seq[self.prefix_length :]) for seq in self.seqs]
        found = []
        for prompts in length_sorted_batches([len(rest) for rest in rests], prompts_per_batch):
            batch = left_pad([rests[n] for n in prompts], pad_id(self.loaded), self.loaded.device)
            found.append(_Piece(prompts, batch, {}))
        return found

    def prefix(
        self,
        conditions: Conditions,
        index: Int[Tensor, "conditions"],
        before: "tuple[PrefixCache, dict[int, Tensor]] | None" = None,
    ) -> PrefixCache | None:
        """The prefix under some conditions; blocks before `start` are taken from the base run `before`."""
        if self.prefix_length == 0:
            return None
        if before is not None and conditions.start > 0:
            hidden = before[1][conditions.start].expand(len(index), -1, -1)
            with starting_at(self.loaded, conditions.start, hidden):
                cache = self._run_prefix(conditions, index)
            first = conditions.start
            keys, values = before[0].keys[:first], before[0].values[:first]
            return replace(cache, keys=keys + cache.keys[first:], values=values + cache.values[first:])
        return self._run_prefix(conditions, index)

    def _run_prefix(self, conditions: Conditions, index: Int[Tensor, "conditions"]) -> PrefixCache:
        beginning = self.seqs[0][: self.prefix_length]
        with intervening(self.loaded.model, *at_rows(conditions.interventions, index.tolist())):
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

    def capture(
        self, pieces: list[_Piece], layers: list[int]
    ) -> "tuple[PrefixCache, dict[int, Tensor]] | None":
        """Run the base model, keeping block inputs of the pieces (in them) and of the prefix (returned)."""
        one = torch.zeros(1, dtype=torch.long)
        before = None
        model, dtype = self.loaded.model, self.loaded.dtype
        if self.prefix_length:
            with capture_block_inputs(model, layers, self.prefix_length) as captured:
                prefix = self._run_prefix(UNTOUCHED, one)
            before = prefix, {layer: captured.of_layer(layer).to(dtype) for layer in layers}
        for piece in pieces:
            cache = before[0].rows([0] * len(piece.prompts)) if before else None
            with capture_block_inputs(model, layers, piece.batch.ids.shape[1]) as captured:
                self.logits(piece.batch, 1, cache)
            piece.inputs.update({layer: captured.of_layer(layer).to(dtype) for layer in layers})
        return before

    def run(
        self,
        conditions: Conditions,
        pieces: list[_Piece],
        before: "tuple[PrefixCache, dict[int, Tensor]] | None",
        reduce: GridReduce,
        progress: Progress,
    ) -> Tensor:
        """Reduced values [conditions, prompts, …] on the CPU."""
        result: Tensor | None = None
        largest = max(len(piece.prompts) for piece in pieces)
        chunk = max(1, self.batch_size // largest)
        for first in range(0, conditions.count, chunk):
            index = torch.arange(first, min(first + chunk, conditions.count))
            prefix = self.prefix(conditions, index, before)
            for piece in pieces:
                row_condition = torch.arange(len(index)).repeat_interleave(len(piece.prompts))
                device_rows = row_condition.to(self.loaded.device)
                cache = None if prefix is None else prefix.rows(row_condition.tolist())
                rows = at_rows(conditions.interventions, (row_condition + first).tolist())
                inside = intervening(self.loaded.model, *rows)
                if conditions.start > 0:
                    hidden = piece.inputs[conditions.start].repeat(len(index), 1, 1)
                    with starting_at(self.loaded, conditions.start, hidden), inside:
                        logits = self.logits(piece.batch, len(index), cache)
                else:
                    with inside:
                        logits = self.logits(piece.batch, len(index), cache)
                prompt = torch.tensor(piece.prompts).repeat(len(index))
                device_prompt = prompt.to(self.loaded.device)
                value = reduce(GridBatch(logits, device_rows + first, device_prompt)).cpu()
                if result is None:
                    result = value.new_full((conditions.count, len(self.seqs), *value.shape[1:]), torch.nan)
                result[row_condition + first, prompt] = value
                progress.advance(len(row_condition))
        assert result is not None
        return result


@torch.no_grad()
def evaluate(
    loaded: LoadedModel,
    seqs: Sequence[Sequence[int]],
    groups: Sequence[Conditions],
    *,
    reduce: GridReduce,
    keep: int = 1,
    batch_size: int,
    progress: Progress | None = None,
) -> list[Tensor]:
    """For every group the reduced values [conditions, prompts, …] of each prompt under each condition, on the CPU.

    Args:
        seqs: token rows, prompts or prompts with part of an answer.
        reduce: what is made of the logits of the last `keep` positions. A row shorter than `keep` has padding first.
        batch_size: rows per forward. progress: advances by one per pair of condition and prompt.

    Raises:
        InputError: no prompts, interventions that do not fit the model, or an impossible `start`.
    """
    depth = num_layers(loaded.model)
    for group in groups:
        if group.start >= depth:
            raise InputError(f"layer {group.start} is not one of 0 … {depth - 1}", where="Conditions")
    grid = _Grid(loaded, seqs, keep, batch_size)
    report = progress or NO_PROGRESS
    late = [group for group in groups if group.start > 0]
    before, late_pieces = None, []
    if late:
        late_pieces = grid.pieces(max(1, batch_size // max(group.count for group in late)))
        before = grid.capture(late_pieces, sorted({group.start for group in late}))
    results = []
    for group in groups:
        if group.start > 0:
            pieces = late_pieces
        else:
            pieces = grid.pieces(max(1, min(batch_size, max(_PROMPTS_PER_BATCH, batch_size // group.count))))
        results.append(grid.run(group, pieces, before if group.start > 0 else None, reduce, report))
    return results
