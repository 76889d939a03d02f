"""Refusal scores of a grid with what blocks put out beside them, from the same forward passes."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from caryatid.causal.grid import Conditions, GridBatch, GridReduce, evaluate
from caryatid.models.capture import capture_block_outputs
from caryatid.models.load import LoadedModel
from caryatid.progress import Progress


class Watched(NamedTuple):
    """What a group of conditions does.

    Attributes:
        scores: one value per condition and prompt.
        outputs: the watched blocks' outputs at the last position, float32; None: none watched.
    """

    scores: Float[Tensor, "conditions prompts"]
    outputs: Float[Tensor, "conditions prompts layers d"] | None


def evaluate_watched(
    loaded: LoadedModel,
    seqs: Sequence[Sequence[int]],
    groups: Sequence[Conditions],
    *,
    reduce: GridReduce,
    layers: Sequence[int],
    batch_size: int,
    progress: Progress | None = None,
) -> list[Watched]:
    """`evaluate` of a reduction to one value, with the outputs of blocks `layers` (empty: none).

    What a block before a group's `start` puts out is not computed under its conditions, and is no output of theirs:
    read the untouched model's there. Holds conditions × prompts × layers × d floats on the CPU.

    Raises:
        InputError: as `evaluate`; an unknown layer.
    """
    if not layers:
        plain = evaluate(loaded, seqs, groups, reduce=reduce, batch_size=batch_size, progress=progress)
        return [Watched(scores, None) for scores in plain]
    with capture_block_outputs(loaded.model, layers) as captured:

        def both(batch: GridBatch) -> Tensor:
            # Passes over the shared prefix come before the batch's own.
            outputs = captured.take()[-len(batch.logits) :]
            return torch.cat([reduce(batch)[:, None].float(), outputs.flatten(1)], dim=1)

        found = evaluate(loaded, seqs, groups, reduce=both, batch_size=batch_size, progress=progress)
    return [Watched(each[..., 0], each[..., 1:].unflatten(-1, (len(layers), -1))) for each in found]
