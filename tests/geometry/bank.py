"""Hand-made banks of candidate scores."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from caryatid.geometry.carriers import CandidateScores
from caryatid.geometry.cosmic import CosmicProducts


def bank(
    rows: list[tuple[int, int, float, float, float]],
    *,
    n_layers: int = 10,
    h: float = 4.0,
    s: float = -6.0,
    n: int = 8,
    noise: float = 0.0,
    seed: int = 0,
) -> CandidateScores:
    """Candidates (position, layer, bypass, induce, kl) whose per-prompt scores scatter around these means."""
    rng = np.random.default_rng(seed)
    values = np.array(rows, dtype=np.float64).reshape(-1, 5)
    prompt_h, prompt_s = rng.normal(size=n) * noise, rng.normal(size=n) * noise
    own = rng.normal(size=(3, len(rows), n)) * noise
    kl = np.abs(values[:, 4:] + 0.02 * own[2])
    return CandidateScores(
        positions=values[:, 0].astype(np.int64),
        layers=values[:, 1].astype(np.int64),
        n_layers=n_layers,
        harmful=h + prompt_h,
        harmless=s + prompt_s,
        bypass=values[:, 2:3] + prompt_h + own[0],
        induce=values[:, 3:4] + prompt_s + own[1],
        kl=kl,
        kl_answer=2 * kl,
    )


def with_cosines(scores: CandidateScores, cosines: Sequence[tuple[float, float]]) -> CandidateScores:
    """The bank with these cosines (ablated, added) for each candidate, the same for every sample of the prompts."""
    up, down = len(scores.harmful), len(scores.harmless)
    ablated, added = np.array(cosines, dtype=np.float64).reshape(-1, 2).T[..., None, None]
    count = len(cosines)
    products = CosmicProducts(
        ablated=np.ones((count, up, up)),
        ablated_harmless=ablated * np.ones((count, up, down)),
        added=np.ones((count, down, down)),
        added_harmful=added * np.ones((count, down, up)),
        harmful=np.ones((up, up)),
        harmless=np.ones((down, down)),
    )
    return dataclasses.replace(scores, cosmic=products)
