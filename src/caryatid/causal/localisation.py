"""Localisation: where along the layers a carrier acts, by ablating it at one layer at a time (protocol §6)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from ..errors import InputError
from ..stats import paired_bootstrap

DRAWS = 1000


def layer_profile(
    layers: Sequence[int],
    scores: Float[np.ndarray, "layers prompts"],
    untouched: Float[np.ndarray, "prompts"],
    rng: np.random.Generator,
) -> list[dict[str, Any]]:
    """Rows of the `localisation` table: what ablating at one layer's three sites takes from the refusal score, in nats.

    The intervals contain the sampling noise of the prompts, which are the same at every layer.

    Raises:
        InputError: scores that do not belong to the layers or prompts.
    """
    if scores.shape != (len(layers), len(untouched)):
        raise InputError(
            f"scores {scores.shape} for {len(layers)} layers and {len(untouched)} prompts",
            where="layer_profile",
        )
    rows = []
    for layer, ablated in zip(layers, scores, strict=True):
        removed = paired_bootstrap(untouched, ablated, DRAWS, rng)
        rows.append(
            {"layer": layer, "quantity": "refusal_score_removed", **removed._asdict(), "n": len(untouched)}
        )
    return rows
