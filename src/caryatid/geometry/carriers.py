"""Which candidate direction carries refusal: admissibility, the best carrier, carrier depth (protocol §5).

Reads scores only; `caryatid.causal.scores` computes them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from caryatid.errors import InputError

MIN_GAP = 1.0  # nats
TIE = 0.05  # share of the gap within which an earlier layer counts as as good as the best
NO_REFUSAL_BELOW = 0.1
UNDISCRIMINATING_ABOVE = 0.5

NoCarrier = Literal["no refusal", "undiscriminating refusal", "gap too small", "no admissible carrier"]


def depth_cut(fraction: float, n_layers: int) -> int:
    """⌊fraction · L⌋, of the fraction as it is written in decimals."""
    return math.floor(Fraction(repr(float(fraction))) * n_layers)


@dataclass(frozen=True)
class Profile:
    """Thresholds that make a candidate admissible; NaN is always inadmissible.

    Attributes:
        kl_max: largest KL(base ‖ ablated) at the last position.
        induce_min: least induce score in nats, or None.
        effects_min: least gap-normalised bypass effect and induce effect, or None.
        depth_fraction: only layers l < ⌊depth_fraction · L⌋.
    """

    name: str
    kl_max: float
    induce_min: float | None = None
    effects_min: float | None = None
    depth_fraction: float = 0.8

    def depth_cut(self, n_layers: int) -> int:
        """⌊depth_fraction · L⌋."""
        return depth_cut(self.depth_fraction, n_layers)


PUBLISHED = Profile("published", kl_max=0.1, induce_min=0.0)
CALIBRATED = Profile("calibrated", kl_max=0.35, effects_min=0.5)
PROFILES: Mapping[str, Profile] = {profile.name: profile for profile in (PUBLISHED, CALIBRATED)}


@dataclass(frozen=True)
class CandidateScores:
    """Per-prompt scores of a bank of candidates.

    Attributes:
        positions: −1 is the last prompt token. layers: the block at whose input the direction was taken.
        n_layers: L. harmful, harmless: unablated refusal scores.
        bypass: refusal score of harmful prompts with the direction ablated everywhere.
        induce: refusal score of harmless prompts with the direction added at its layer.
        kl: KL(base ‖ ablated) of the next token on harmless prompts. kl_answer: its mean over the first answer tokens.
            NaN in any of these: not scored.
        cosmic: the two cosines of COSMIC (harmful prompts with the direction ablated, harmless ones with it added),
            or None where they were not asked for.
    """

    positions: Int[np.ndarray, "candidates"]
    layers: Int[np.ndarray, "candidates"]
    n_layers: int
    harmful: Float[np.ndarray, "harmful"]
    harmless: Float[np.ndarray, "harmless"]
    bypass: Float[np.ndarray, "candidates harmful"]
    induce: Float[np.ndarray, "candidates harmless"]
    kl: Float[np.ndarray, "candidates harmless"]
    kl_answer: Float[np.ndarray, "candidates harmless"]
    cosmic: Float[np.ndarray, "candidates 2"] | None = None

    def __post_init__(self) -> None:
        candidates, up, down = len(self.layers), len(self.harmful), len(self.harmless)
        expected = {
            "positions": (candidates,),
            "bypass": (candidates, up),
            "induce": (candidates, down),
            "kl": (candidates, down),
            "kl_answer": (candidates, down),
        }
        if self.cosmic is not None:
            expected["cosmic"] = (candidates, 2)
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise InputError(
                    f"{name} has shape {getattr(self, name).shape} instead of {shape}",
                    where="CandidateScores",
                )
        if not up or not down:
            raise InputError("candidates need harmful and harmless prompts", where="CandidateScores")

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def gap(self) -> float:
        """h − s in nats."""
        return float(self.harmful.mean() - self.harmless.mean())

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything but `n_layers` and what there is not, for saving."""
        return {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], n_layers: int) -> "CandidateScores":
        """Read back what `arrays` gave."""
        return cls(n_layers=n_layers, **arrays)


class Means(NamedTuple):
    """Scores averaged over prompts, one row per sample of the prompts."""

    bypass: Float[np.ndarray, "samples candidates"]
    induce: Float[np.ndarray, "samples candidates"]
    kl: Float[np.ndarray, "samples candidates"]
    h: Float[np.ndarray, "samples"]
    s: Float[np.ndarray, "samples"]

    @property
    def gap(self) -> Float[np.ndarray, "samples 1"]:
        """h − s as a column."""
        return (self.h - self.s)[:, None]


class Effects(NamedTuple):
    """Gap-normalised effects: 1 removes, or induces, the whole gap; NaN where the gap is not positive."""

    bypass: Float[np.ndarray, "samples candidates"]
    induce: Float[np.ndarray, "samples candidates"]


def effects(means: Means) -> Effects:
    """(h − bypass)/(h − s) and (induce − s)/(h − s)."""
    gap = np.where(means.gap > 0, means.gap, np.nan)
    return Effects((means.h[:, None] - means.bypass) / gap, (means.induce - means.s[:, None]) / gap)


def average(
    scores: CandidateScores,
    harmful: Int[np.ndarray, "samples harmful"] | None = None,
    harmless: Int[np.ndarray, "samples harmless"] | None = None,
) -> Means:
    """Mean scores over all prompts, or over each row of prompt indices."""

    def weights(index: np.ndarray | None, n: int) -> np.ndarray:
        if index is None:
            return np.full((1, n), 1 / n)
        counts = np.zeros((len(index), n))
        np.add.at(counts, (np.arange(len(index))[:, None], index), 1.0)
        return counts / index.shape[1]

    up, down = weights(harmful, len(scores.harmful)), weights(harmless, len(scores.harmless))
    # In float64; an infinite or missing score makes the candidate's mean NaN in every sample, as it should.
    with np.errstate(invalid="ignore"):
        return Means(
            bypass=up @ scores.bypass.T.astype(np.float64),
            induce=down @ scores.induce.T.astype(np.float64),
            kl=down @ scores.kl.T.astype(np.float64),
            h=up @ scores.harmful.astype(np.float64),
            s=down @ scores.harmless.astype(np.float64),
        )


def admissible(
    means: Means, layers: Int[np.ndarray, "candidates"], n_layers: int, profile: Profile
) -> Bool[np.ndarray, "samples candidates"]:
    """Which candidates pass the profile's thresholds in each sample."""
    finite = np.isfinite(means.bypass) & np.isfinite(means.induce) & np.isfinite(means.kl)
    with np.errstate(invalid="ignore"):
        passed = finite & (means.kl <= profile.kl_max) & (layers < profile.depth_cut(n_layers))
        if profile.induce_min is not None:
            passed &= means.induce >= profile.induce_min
        if profile.effects_min is not None:
            size = effects(means)
            passed &= (size.bypass >= profile.effects_min) & (size.induce >= profile.effects_min)
    return passed


class Picks(NamedTuple):
    """The choice in each sample: index of the best candidate and of the carrier-depth candidate, −1 without one."""

    best: Int[np.ndarray, "samples"]
    earliest: Int[np.ndarray, "samples"]


def pick(
    means: Means,
    layers: Int[np.ndarray, "candidates"],
    n_layers: int,
    profile: Profile,
    min_gap: float = MIN_GAP,
) -> Picks:
    """Best = admissible with the lowest bypass. Earliest = the first layer within 5 % of the gap of the best.

    Of equal candidates the first listed wins; of several at the earliest layer the one with the lowest bypass.
    """
    if len(layers) == 0:
        none = np.full(len(means.h), -1)
        return Picks(none, none)
    passed = admissible(means, layers, n_layers, profile) & (means.gap >= min_gap)
    found = passed.any(axis=1)
    bypass = np.where(passed, means.bypass, np.inf)
    lowest = bypass.min(axis=1, keepdims=True)
    near = passed & (bypass <= lowest + TIE * means.gap + 1e-12)
    first_layer = np.where(near, layers, n_layers).min(axis=1, keepdims=True)
    at_first = np.where(near & (layers == first_layer), bypass, np.inf)
    return Picks(np.where(found, bypass.argmin(axis=1), -1), np.where(found, at_first.argmin(axis=1), -1))


@dataclass(frozen=True)
class CarrierChoice:
    """The carrier of refusal at one anchor, or why there is none.

    Attributes:
        best: index of the best candidate, None without a carrier; its `position` and `layer` (the arg-min layer).
        earliest: index of the candidate that sets the carrier depth.
        depth: carrier depth, the earliest layer within 5 % of the gap of the best, over L; NaN without a carrier.
        argmin_depth: `layer`/L; NaN without a carrier.
        gap: h − s in nats. admissible: how many candidates were. reason: why there is no carrier.
    """

    profile: Profile
    gap: float
    admissible: int
    best: int | None = None
    earliest: int | None = None
    position: int | None = None
    layer: int | None = None
    depth_layer: int | None = None
    depth: float = math.nan
    argmin_depth: float = math.nan
    reason: NoCarrier | None = None

    @property
    def gap_suffices(self) -> bool:
        """Whether the gap was large enough to look for a carrier."""
        return self.reason in (None, "no admissible carrier")


def select(
    scores: CandidateScores,
    profile: Profile,
    *,
    min_gap: float = MIN_GAP,
    harmful_refusal: float | None = None,
    harmless_refusal: float | None = None,
) -> CarrierChoice:
    """The best admissible carrier and the carrier depth, or the named reason why there is none.

    Args:
        min_gap: with h − s below it no carrier is looked for.
        harmful_refusal, harmless_refusal: refusal rates of the anchor's answers to the selection prompts, which tell
            a model that refuses nothing from one that refuses everything.
    """
    means = average(scores)
    gap = float(means.gap[0, 0])
    count = int(admissible(means, scores.layers, scores.n_layers, profile).sum())
    if not gap >= min_gap:
        reason: NoCarrier = "gap too small"
        if harmful_refusal is not None and harmful_refusal < NO_REFUSAL_BELOW:
            reason = "no refusal"
        elif harmless_refusal is not None and harmless_refusal > UNDISCRIMINATING_ABOVE:
            reason = "undiscriminating refusal"
        return CarrierChoice(profile, gap, count, reason=reason)
    picks = pick(means, scores.layers, scores.n_layers, profile, min_gap)
    best, earliest = int(picks.best[0]), int(picks.earliest[0])
    if best < 0:
        return CarrierChoice(profile, gap, count, reason="no admissible carrier")
    layer, depth_layer = int(scores.layers[best]), int(scores.layers[earliest])
    return CarrierChoice(
        profile=profile,
        gap=gap,
        admissible=count,
        best=best,
        earliest=earliest,
        position=int(scores.positions[best]),
        layer=layer,
        depth_layer=depth_layer,
        depth=depth_layer / scores.n_layers,
        argmin_depth=layer / scores.n_layers,
    )


def candidate_table(
    scores: CandidateScores, profile: Profile, choice: CarrierChoice | None = None
) -> list[dict[str, object]]:
    """One row per scored candidate with the columns of the contract's `carriers` table, arm and step left out.

    `best` marks the choice, by default that of `select`. Where the gap was too small to look for a carrier, effects
    (shares of that gap) are NaN. The two cosines of COSMIC are there where they were measured.
    """
    choice = choice or select(scores, profile)
    means = average(scores)
    passed = admissible(means, scores.layers, scores.n_layers, profile)[0]
    size = effects(means if choice.gap_suffices else means._replace(s=means.h))
    with np.errstate(invalid="ignore"):
        answer = scores.kl_answer.astype(np.float64).mean(axis=1)
    pairs = [] if scores.cosmic is None else scores.cosmic.tolist()
    cosines = [{"cosmic_ablated": one, "cosmic_added": other} for one, other in pairs] or [{}] * len(scores)
    return [
        {
            "position": int(scores.positions[index]),
            "layer": int(scores.layers[index]),
            "depth": int(scores.layers[index]) / scores.n_layers,
            "bypass": float(means.bypass[0, index]),
            "induce": float(means.induce[0, index]),
            "kl": float(means.kl[0, index]),
            "kl_answer": float(answer[index]),
            "bypass_effect": float(size.bypass[0, index]),
            "induce_effect": float(size.induce[0, index]),
            "profile": profile.name,
            "admissible": bool(passed[index]),
            "best": index == choice.best,
            **cosines[index],
        }
        for index in range(len(scores))
    ]


class SweepRow(NamedTuple):
    """What a KL cut leads to."""

    kl_max: float
    admissible: int
    depth: float
    argmin_depth: float
    position: int | None
    reason: NoCarrier | None


KL_CUTS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.8, 1.0)


def threshold_sweep(
    scores: CandidateScores, profile: Profile, cuts: Sequence[float] = KL_CUTS, *, min_gap: float = MIN_GAP
) -> list[SweepRow]:
    """Carrier depth against the KL cut, everything else as in `profile`."""
    rows = []
    for cut in cuts:
        choice = select(scores, replace(profile, kl_max=cut), min_gap=min_gap)
        rows.append(
            SweepRow(
                cut, choice.admissible, choice.depth, choice.argmin_depth, choice.position, choice.reason
            )
        )
    return rows


def nearest(scores: CandidateScores, profile: Profile, count: int) -> Int[np.ndarray, "kept"]:
    """The `count` candidates below the profile's depth cut with the lowest mean bypass, in the bank's order.

    These are the ones among which a carrier is found when directions are extracted anew from other prompts.
    """
    below = np.flatnonzero(scores.layers < profile.depth_cut(scores.n_layers))
    bypass = average(scores).bypass[0][below] if len(scores) else np.zeros(0)
    order = np.argsort(bypass, kind="stable")[: min(count, int(np.isfinite(bypass).sum()))]
    return np.sort(below[order])
