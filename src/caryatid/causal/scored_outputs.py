"""Refusal scores under many conditions, with what blocks put out beside them, from the same forward passes."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..models.capture import capture_block_outputs
from ..models.load import LoadedModel
from ..progress import Progress
from .grid import ConditionGroup, GridBatch, GridReduce, evaluate_grid


class ScoredOutputs(NamedTuple):
    """What conditions do to prompts.

    Attributes:
        scores: one value per condition and prompt.
        outputs: blocks' outputs at the last position, float32; None where none were asked for.
    """

    scores: Float[Tensor, "conditions prompts"]
    outputs: Float[Tensor, "conditions prompts layers d"] | None

    def nothing(self, conditions: int, prompts: int) -> "ScoredOutputs":
        """NaN for so many conditions and prompts, with outputs where this has them."""
        outputs = self.outputs
        if outputs is not None:
            outputs = outputs.new_full((conditions, prompts, *outputs.shape[2:]), torch.nan)
        return ScoredOutputs(self.scores.new_full((conditions, prompts), torch.nan), outputs)

    def rows(self, conditions: Int[Tensor, "chosen"]) -> "ScoredOutputs":
        """Of some conditions."""
        return ScoredOutputs(
            self.scores[conditions], None if self.outputs is None else self.outputs[conditions]
        )


def score_with_outputs(
    loaded: LoadedModel,
    seqs: Sequence[Sequence[int]],
    groups: Sequence[ConditionGroup],
    *,
    reduce: GridReduce,
    layers: Sequence[int],
    batch_size: int,
    progress: Progress | None = None,
) -> ScoredOutputs:
    """`evaluate_grid` of a reduction to one value, with the outputs of blocks `layers` (empty: none).

    What a block before a group's `start` puts out is not computed under its conditions and means nothing: read the
    untouched model's there. Holds conditions × prompts × layers × d floats on the CPU.

    Raises:
        InputError: as `evaluate_grid`; an unknown layer.
    """
    if not layers:
        scores = evaluate_grid(loaded, seqs, groups, reduce=reduce, batch_size=batch_size, progress=progress)
        return ScoredOutputs(scores, None)
    with capture_block_outputs(loaded.model, layers) as captured:

        def both(batch: GridBatch) -> Tensor:
            outputs = captured.take()[
                -len(batch.logits) :
            ]  # passes over the shared prefix come before the batch's own
            beside = outputs.flatten(1).to(batch.logits.device)
            return torch.cat([reduce(batch)[:, None].float(), beside], dim=1)

        values = evaluate_grid(loaded, seqs, groups, reduce=both, batch_size=batch_size, progress=progress)
    return ScoredOutputs(values[..., 0], values[..., 1:].unflatten(-1, (len(layers), -1)))
