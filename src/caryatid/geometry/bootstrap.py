"""How sure a carrier's place is: resampling the selection prompts, from kept per-prompt scores (protocol §5)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ..stats import UNDEFINED, Interval, bootstrap_indices, quantile_interval
from .carriers import (
    MIN_GAP,
    CandidateScores,
    Means,
    Picks,
    Profile,
    admissible,
    average,
    centres_of_mass,
    effects,
    pick,
    select,
)

SHIFT_TOLERANCE = 1e-9  # depths are ratios of integers: 0.7 − 0.45 must count as 0.25


@dataclass(frozen=True)
class CarrierBootstrap:
    """The carrier's place in every resample of the selection prompts.

    The draws of `bootstrap_carrier` contain the sampling noise of the selection prompts alone, those of
    `bootstrap_reextracted` that of the extraction prompts too.

    Attributes:
        depth_draws, argmin_draws: carrier depth and arg-min depth; NaN in draws without a carrier.
        centre_draws: centre of mass of the admissible layers, see `centres_of_mass`; NaN without a carrier.
        resample: which re-extraction resample a draw belongs to; draws of one resample are no independent trials.
        best_draws: index of the best candidate, −1 without one.
        depth, argmin_depth: over all prompts, with percentile intervals over draws that have a carrier.
        layer_share, position_share: share of all draws whose best candidate is at that layer, or position; layers and
            positions that never won are left out, the shares fall short of 1 by `none_share`.
        none_share: share of draws without a carrier.
    """

    depth_draws: Float[np.ndarray, "draws"]
    argmin_draws: Float[np.ndarray, "draws"]
    centre_draws: Float[np.ndarray, "draws"]
    resample: Int[np.ndarray, "draws"]
    best_draws: Int[np.ndarray, "draws"]
    depth: Interval
    argmin_depth: Interval
    layer_share: dict[int, float]
    position_share: dict[int, float]
    none_share: float


def bootstrap_carrier(
    scores: CandidateScores,
    profile: Profile,
    *,
    draws: int,
    rng: np.random.Generator,
    min_gap: float = MIN_GAP,
) -> CarrierBootstrap:
    """Select anew in every resample of harmful and of harmless selection prompts; no forward pass.

    The directions stay as extracted. Two anchors measured on the same prompts are compared draw by draw when their
    generators have the same seed.
    """
    return bootstrap_reextracted(scores, [scores], profile, draws=draws, rng=rng, min_gap=min_gap)


def bootstrap_reextracted(
    scores: CandidateScores,
    resamples: Sequence[CandidateScores],
    profile: Profile,
    *,
    draws: int,
    rng: np.random.Generator,
    min_gap: float = MIN_GAP,
) -> CarrierBootstrap:
    """The carrier's place with directions extracted anew from resampled prompts, and selection prompts resampled too.

    The draws contain the noise of the extraction prompts, as far as `resamples` are many, and of the selection prompts.

    Args:
        scores: of the directions as extracted; the points come from these.
        resamples: scores of the directions of each resample of the extraction prompts, of any candidates.
        draws: in all, spread as evenly as can be over the resamples; of more resamples than draws the first are used.

    Two anchors with the same resamples of the same prompts are compared draw by draw when their generators have the
    same seed.
    """
    each, more = divmod(draws, len(resamples))
    sizes = [each + (number < more) for number in range(min(draws, len(resamples)))]
    found = [_draw(one, profile, size, rng, min_gap) for one, size in zip(resamples, sizes, strict=False)]
    best, depth, argmin, layer, position, centre = (
        np.concatenate([getattr(one, name) for one in found]) for name in _Draws._fields
    )
    choice = select(scores, profile, min_gap=min_gap)

    def share(places: np.ndarray) -> dict[int, float]:
        values, counts = np.unique(places[best >= 0], return_counts=True)
        return {int(value): int(count) / draws for value, count in zip(values, counts, strict=True)}

    return CarrierBootstrap(
        depth_draws=depth,
        argmin_draws=argmin,
        centre_draws=centre,
        resample=np.repeat(np.arange(len(sizes)), sizes),
        best_draws=best,
        depth=quantile_interval(depth, choice.depth),
        argmin_depth=quantile_interval(argmin, choice.argmin_depth),
        layer_share=share(layer),
        position_share=share(position),
        none_share=float((best < 0).mean()),
    )


class _Draws(NamedTuple):
    """Draws from one set of candidates: the best candidate and its place; without one −1, and NaN for the depths."""

    best: Int[np.ndarray, "draws"]
    depth: Float[np.ndarray, "draws"]
    argmin: Float[np.ndarray, "draws"]
    layer: Int[np.ndarray, "draws"]
    position: Int[np.ndarray, "draws"]
    centre: Float[np.ndarray, "draws"]


def _resamples(
    scores: CandidateScores, draws: int, rng: np.random.Generator
) -> tuple[Int[np.ndarray, "draws harmful"], Int[np.ndarray, "draws harmless"]]:
    """Resamples of the harmful and of the harmless selection prompts."""
    harmful = bootstrap_indices(len(scores.harmful), draws, rng)
    return harmful, bootstrap_indices(len(scores.harmless), draws, rng)


def _picked(
    scores: CandidateScores, profile: Profile, min_gap: float, indices: tuple[Any, Any] = (None, None)
) -> tuple[Means, Picks]:
    """Scores averaged over resamples of the prompts (None: over all prompts), and what is picked in each."""
    means = average(scores, *indices, cosmic=profile.selector == "cosmic")
    return means, pick(means, scores.layers, scores.n_layers, profile, min_gap)


def _draw(
    scores: CandidateScores, profile: Profile, draws: int, rng: np.random.Generator, min_gap: float
) -> _Draws:
    resamples = _resamples(scores, draws, rng)
    if len(scores) == 0:
        none, missing = np.full(draws, -1), np.full(draws, np.nan)
        return _Draws(none, missing, missing, none, none, missing)
    means = average(scores, *resamples, cosmic=profile.selector == "cosmic")
    where = (scores.layers, scores.n_layers, profile)
    passed = admissible(means, *where)
    picks = pick(means, *where, min_gap, passed)
    depth, argmin = (
        np.where(index >= 0, scores.layers[index] / scores.n_layers, np.nan)
        for index in (picks.earliest, picks.best)
    )
    centre = np.where(picks.best >= 0, centres_of_mass(means, *where, passed), np.nan)
    return _Draws(picks.best, depth, argmin, scores.layers[picks.best], scores.positions[picks.best], centre)


def most_likely(
    scores: CandidateScores,
    profiles: Sequence[Profile],
    count: int,
    *,
    draws: int,
    rng: np.random.Generator,
    min_gap: float = MIN_GAP,
) -> Int[np.ndarray, "kept"]:
    """The `count` candidates that a carrier may turn out to be with directions extracted anew, in their order.

    First those that are the best candidate or set the depth in most resamples of the selection prompts under the first
    profile (those over all prompts before any other), then under the next; what is left is filled with the lowest mean
    bypass below the first profile's depth cut.
    """
    resamples = _resamples(scores, draws, rng)
    if not len(scores):
        return np.arange(0)
    wins = []
    for profile in profiles:
        sampled, point = _picked(scores, profile, min_gap, resamples)[1], _picked(scores, profile, min_gap)[1]
        found = np.concatenate([*sampled, *(np.repeat(each, 2 * draws + 1) for each in point)])
        wins.append(np.bincount(found[found >= 0], minlength=len(scores)))
    bypass = average(scores).bypass[0]
    usable = (scores.layers < profiles[0].depth_cut(scores.n_layers)) & np.isfinite(bypass)
    usable |= np.any(wins, axis=0)
    order = np.lexsort((bypass, *(-each for each in reversed(wins))))  # the last key counts most
    return np.sort(order[usable[order]][:count])


def lacking_share(
    scores: CandidateScores,
    profile: Profile,
    *,
    draws: int,
    rng: np.random.Generator,
    min_gap: float = MIN_GAP,
) -> float:
    """Share of resamples of the selection prompts in which no candidate is a carrier."""
    return float((_draw(scores, profile, draws, rng, min_gap).best < 0).mean())


def covered_share(drawn: CarrierBootstrap, scores: CandidateScores, kept: CandidateScores) -> float:
    """Share of the draws with a carrier whose best candidate is one of a few; NaN where no draw has a carrier.

    Where directions extracted anew are scored at a few candidates alone, a draw in which none of these is admissible
    lacks a carrier that another candidate may be: where few draws are covered, `none_share` of `bootstrap_reextracted`
    may be too high.

    Args:
        drawn: of all candidates, with the directions as extracted. scores: of these. kept: of those scored anew.
    """
    best = drawn.best_draws[drawn.best_draws >= 0]
    if not len(best):
        return float("nan")
    few = set(zip(kept.layers.tolist(), kept.positions.tolist(), strict=True))
    return float(np.mean([(int(scores.layers[one]), int(scores.positions[one])) in few for one in best]))


def best_bypass_interval(
    scores: CandidateScores,
    profile: Profile,
    *,
    draws: int,
    rng: np.random.Generator,
    min_gap: float = MIN_GAP,
) -> Interval:
    """Gap-normalised bypass effect of the best carrier, which is selected anew in every resample of the prompts.

    A percentile interval over the draws that have a carrier; with the candidate held fixed it would leave out that the
    best of many is partly the luckiest. All NaN where there is no carrier.
    """
    found = []
    for indices in ((None, None), _resamples(scores, draws, rng)):
        means, picks = _picked(scores, profile, min_gap, indices)
        best = picks.best
        chosen = (
            np.take_along_axis(effects(means).bypass, best[:, None], axis=1)[:, 0] if len(scores) else np.nan
        )
        found.append(np.where(best >= 0, chosen, np.nan))
    if np.isnan(found[0][0]):
        return UNDEFINED
    return quantile_interval(found[1], float(found[0][0]))
