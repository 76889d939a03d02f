"""The COSMIC selector in its linear form (arXiv 2506.00085; protocol §5), from activation means.

A direction is judged by what it does inside: ablating it from harmful prompts should make their activations like those
of harmless ones, adding it to harmless prompts the reverse, at layers where the two kinds differ most.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from caryatid.errors import InputError
from caryatid.geometry.carriers import Profile

COSMIC = Profile("cosmic", kl_max=0.1)


def _cosine(a: Float[Tensor, "*batch d"], b: Float[Tensor, "*other d"]) -> Float[Tensor, "*batch"]:
    a, b = a.double(), b.double()
    return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))  # 0/0: NaN


def least_alike_layers(harmful: Float[Tensor, "layers d"], harmless: Float[Tensor, "_ _"]) -> tuple[int, ...]:
    """The max(1, ⌊0.1·L⌋) layers where the mean last-position block outputs have the lowest cosine, ascending.

    Args:
        harmful, harmless: means over extraction prompts, one row for each of the model's L blocks.

    Raises:
        InputError: the two have different shapes.
    """
    if harmful.shape != harmless.shape:
        raise InputError(
            f"means of shapes {tuple(harmful.shape)} and {tuple(harmless.shape)}", where="least_alike_layers"
        )
    count = max(1, len(harmful) // 10)
    similarity = torch.nan_to_num(_cosine(harmful, harmless), nan=math.inf)
    return tuple(sorted(similarity.argsort(stable=True)[:count].tolist()))


class CosmicScores(NamedTuple):
    """Per candidate: cosine after ablation, cosine after addition, and their sum, the score (higher is better)."""

    ablated: Float[np.ndarray, "candidates"]
    added: Float[np.ndarray, "candidates"]
    total: Float[np.ndarray, "candidates"]


def cosmic_scores(
    ablated_harmful: Float[Tensor, "candidates layers d"],
    added_harmless: Float[Tensor, "candidates layers d"],
    harmful: Float[Tensor, "layers d"],
    harmless: Float[Tensor, "layers d"],
) -> CosmicScores:
    """cos(ablated harmful, harmless) + cos(added harmless, harmful), each of means over prompts and chosen layers.

    Args: means over selection prompts of last-position block outputs at the chosen layers.
    """
    reference, target = harmless.double().mean(dim=0), harmful.double().mean(dim=0)
    ablated = _cosine(ablated_harmful.double().mean(dim=1), reference)
    added = _cosine(added_harmless.double().mean(dim=1), target)
    return CosmicScores(ablated.numpy(), added.numpy(), (ablated + added).numpy())


def cosmic_admissible(
    scores: CosmicScores,
    kl: Sequence[float] | Float[np.ndarray, "candidates"],
    layers: Sequence[int],
    n_layers: int,
    profile: Profile = COSMIC,
) -> Bool[np.ndarray, "candidates"]:
    """Which candidates have a score and are within the profile's KL and depth cuts."""
    values, cut = np.asarray(kl, dtype=np.float64), profile.depth_cut(n_layers)
    with np.errstate(invalid="ignore"):
        return np.isfinite(scores.total) & (values <= profile.kl_max) & (np.asarray(layers) < cut)


def select_cosmic(
    scores: CosmicScores,
    kl: Sequence[float] | Float[np.ndarray, "candidates"],
    layers: Sequence[int],
    n_layers: int,
    profile: Profile = COSMIC,
) -> int | None:
    """Index of the candidate with the highest score among those within the KL and depth cuts; None without one."""
    passed = cosmic_admissible(scores, kl, layers, n_layers, profile)
    if not passed.any():
        return None
    return int(np.where(passed, scores.total, -np.inf).argmax())
