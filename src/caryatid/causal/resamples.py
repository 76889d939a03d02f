"""Directions from resamples of the extraction prompts, and their scores."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..geometry.carriers import CandidateScores
from ..stats import bootstrap_indices
from .locate import CandidateScorer
from .scores import CandidateDirections

Grid = Float[Tensor, "positions layers d"]


def resampled_directions(
    scorer: CandidateScorer, count: int, seed: int
) -> Callable[[Iterable[int]], list[Grid]]:
    """Directions of resamples of the extraction prompts, by their numbers; `count` in all.

    The resamples depend on the seed and the numbers of prompts alone.
    """
    rng = np.random.default_rng(seed)
    up, down = (bootstrap_indices(len(side), count, rng) for side in (scorer.harmful, scorer.harmless))
    return lambda numbers: [scorer.directions(up[n], down[n]) for n in numbers]


def rescored(
    scorer: CandidateScorer, grids: Sequence[Grid], places: CandidateScores, *, cosmic: bool
) -> list[CandidateScores]:
    """Scores of each grid's directions at the places of some candidates; all grids share their forward passes."""
    positions, layers = places.positions.tolist(), places.layers.tolist()
    rows = [scorer.positions.index(one) for one in positions]
    columns = [scorer.layers.index(one) for one in layers]
    vectors = torch.cat([grid[rows, columns] for grid in grids])
    flat = CandidateDirections(vectors, tuple(positions * len(grids)), tuple(layers * len(grids)))
    found = scorer.score(flat, cosmic=cosmic)
    return [found.rows(range(n * len(places), (n + 1) * len(places))) for n in range(len(grids))]
