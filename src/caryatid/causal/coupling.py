"""Utility coupling: usefulness lost per refusal removed, beyond what random controls do (protocol §6)."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ..errors import InputError
from ..stats import UNDEFINED, Interval, bootstrap_indices, quantile_interval


class Coupling(NamedTuple):
    """(ΔU_carrier − ΔU_random)/(ΔR_carrier − ΔR_random) and its parts.

    The intervals contain the sampling noise of utility prompts, refusal prompts and random draws.

    Attributes:
        ratio: NaN throughout when undefined. utility, refusal: numerator and denominator, negative for a loss.
        reason: why the ratio is undefined.
    """

    ratio: Interval
    utility: Interval
    refusal: Interval
    reason: str | None


def _resampled(
    carrier: np.ndarray, random: np.ndarray, draw_index: np.ndarray, draws: int, rng: np.random.Generator
) -> tuple[float, np.ndarray]:
    """The difference carrier − mean of random controls, for all prompts and for resamples of prompts and controls."""
    if random.ndim != 2 or random.shape[1:] != carrier.shape or not len(carrier) or not len(random):
        raise InputError(
            f"carrier {carrier.shape} and random controls {random.shape} are not the same prompts",
            where="coupling",
        )
    index = bootstrap_indices(len(carrier), draws, rng)
    with np.errstate(invalid="ignore"):
        prompts = np.isfinite(carrier) & np.isfinite(random).all(axis=0)  # unscored anywhere: left out of all
        difference = np.where(prompts, carrier - random, 0.0)  # [controls, prompts]
    counts = np.zeros((draws, len(carrier)))
    np.add.at(counts, (np.arange(draws)[:, None], index), 1.0)
    used = counts @ prompts
    per_control = counts @ difference.T / np.where(used == 0, np.nan, used)[:, None]  # [draws, controls]
    sampled = np.take_along_axis(per_control, draw_index, axis=1).mean(axis=1)
    point = float(difference.sum(axis=1).mean() / prompts.sum()) if prompts.any() else math.nan
    return point, sampled


def utility_coupling(
    utility_carrier: Float[np.ndarray, "utility"],
    utility_random: Float[np.ndarray, "controls utility"],
    refusal_carrier: Float[np.ndarray, "refusal"],
    refusal_random: Float[np.ndarray, "controls refusal"],
    *,
    draws: int,
    rng: np.random.Generator,
) -> Coupling:
    """Coupling from per-prompt outcomes under the carrier's intervention and under each random control.

    Outcomes are 1 or 0 (passed; refused), or continuous scores, NaN where unscored. What the prompts did without
    intervention cancels in both differences.

    Raises:
        InputError: outcomes that do not belong to the same prompts or controls.
    """
    controls = len(utility_random)
    if len(refusal_random) != controls or controls == 0:
        raise InputError(
            f"{controls} random controls for utility, {len(refusal_random)} for refusal", where="coupling"
        )
    draw_index = bootstrap_indices(controls, draws, rng)
    u, u_draws = _resampled(utility_carrier, utility_random, draw_index, draws, rng)
    r, r_draws = _resampled(refusal_carrier, refusal_random, draw_index, draws, rng)
    utility = quantile_interval(u_draws, u)
    refusal = quantile_interval(r_draws, r)
    if not (refusal.lo > 0 or refusal.hi < 0):
        return Coupling(
            UNDEFINED,
            utility,
            refusal,
            "the carrier's effect on refusal is not distinguishable from the controls'",
        )
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(r_draws == 0, np.nan, u_draws / r_draws)
    return Coupling(quantile_interval(ratios, u / r), utility, refusal, None)
