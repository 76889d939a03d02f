"""The COSMIC selector in its linear form (arXiv 2506.00085; protocol §5), from activation means.

A direction is judged by what it does inside: ablating it from harmful prompts should make their activations like those
of harmless ones, adding it to harmless prompts the reverse, at layers where the two kinds differ most.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import InputError
from .profiles import COSMIC, Profile


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
    """Cosine after ablation, cosine after addition, and their sum, the score (higher is better)."""

    ablated: Float[np.ndarray, "*samples candidates"]
    added: Float[np.ndarray, "*samples candidates"]
    total: Float[np.ndarray, "*samples candidates"]


class CosmicProducts(NamedTuple):
    """Inner products of prompts' activations, from which the scores follow for any sample of the prompts.

    An activation is the mean over the compared layers of last-position block outputs: `ablated` of harmful prompts with
    the direction ablated, `added` of harmless ones with it added, `harmful` and `harmless` of the untouched model.
    """

    ablated: Float[np.ndarray, "candidates harmful harmful"]
    ablated_harmless: Float[np.ndarray, "candidates harmful harmless"]
    added: Float[np.ndarray, "candidates harmless harmless"]
    added_harmful: Float[np.ndarray, "candidates harmless harmful"]
    harmful: Float[np.ndarray, "harmful harmful"]
    harmless: Float[np.ndarray, "harmless harmless"]

    def rows(self, index: Int[np.ndarray, "kept"]) -> "CosmicProducts":
        """Those of some candidates."""
        return self._replace(
            ablated=self.ablated[index],
            ablated_harmless=self.ablated_harmless[index],
            added=self.added[index],
            added_harmful=self.added_harmful[index],
        )

    def beside(self, other: "CosmicProducts") -> "CosmicProducts":
        """With those of other candidates on the same prompts."""
        names = ("ablated", "ablated_harmless", "added", "added_harmful")
        return self._replace(
            **{name: np.concatenate([getattr(self, name), getattr(other, name)]) for name in names}
        )

    def scores(
        self,
        up: Float[np.ndarray, "samples harmful"] | None = None,
        down: Float[np.ndarray, "samples harmless"] | None = None,
    ) -> CosmicScores:
        """cos(ablated harmful, harmless) + cos(added harmless, harmful) of means with these weights; without any, of
        plain means (one sample)."""
        up = np.full((1, len(self.harmful)), 1.0) if up is None else up
        down = np.full((1, len(self.harmless)), 1.0) if down is None else down
        ablated = _cosines(up, self.ablated, self.ablated_harmless, self.harmless, down)
        added = _cosines(down, self.added, self.added_harmful, self.harmful, up)
        return CosmicScores(ablated, added, ablated + added)


def _cosines(
    weights: Float[np.ndarray, "samples prompts"],
    own: Float[np.ndarray, "candidates prompts prompts"],
    across: Float[np.ndarray, "candidates prompts others"],
    target: Float[np.ndarray, "others others"],
    other_weights: Float[np.ndarray, "samples others"],
) -> Float[np.ndarray, "samples candidates"]:
    """Cosine of Σ wᵢ xᵢ and Σ vⱼ yⱼ from ⟨xᵢ, xₖ⟩, ⟨xᵢ, yⱼ⟩ and ⟨yⱼ, yₖ⟩; NaN where one of the sums is zero."""

    def form(left: np.ndarray, matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
        return ((left @ matrix) * right).sum(axis=1)

    norms = form(other_weights, target, other_weights)
    found = np.full((len(weights), len(own)), np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        for candidate, (square, mixed) in enumerate(zip(own, across, strict=True)):
            lengths = np.sqrt(form(weights, square, weights) * norms)
            found[:, candidate] = form(weights, mixed, other_weights) / lengths
    return found


def cosmic_products(
    ablated: Float[Tensor, "candidates harmful layers d"],
    added: Float[Tensor, "candidates harmless layers d"],
    harmful: Float[Tensor, "harmful layers d"],
    harmless: Float[Tensor, "harmless layers d"],
) -> CosmicProducts:
    """Products of last-position block outputs of the selection prompts at the chosen layers."""
    up, down = harmful.double().mean(dim=1), harmless.double().mean(dim=1)
    rows = [
        (each.double().mean(dim=1), other.double().mean(dim=1))
        for each, other in zip(ablated, added, strict=True)
    ]

    def stacked(pairs: Sequence[tuple[Tensor, Tensor]], shape: tuple[int, int]) -> np.ndarray:
        products = [(one @ other.T).numpy() for one, other in pairs]
        return np.stack(products) if products else np.zeros((0, *shape))

    n_up, n_down = len(up), len(down)
    return CosmicProducts(
        ablated=stacked([(one, one) for one, _ in rows], (n_up, n_up)),
        ablated_harmless=stacked([(one, down) for one, _ in rows], (n_up, n_down)),
        added=stacked([(other, other) for _, other in rows], (n_down, n_down)),
        added_harmful=stacked([(other, up) for _, other in rows], (n_down, n_up)),
        harmful=(up @ up.T).numpy(),
        harmless=(down @ down.T).numpy(),
    )


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
