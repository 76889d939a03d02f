"""Which candidate direction carries refusal: admissibility, the best carrier, carrier depth (protocol §5).

Reads scores only; `caryatid.causal.scores` computes them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from ..errors import InputError
from .cosmic import CosmicProducts
from .profiles import CALIBRATED as CALIBRATED
from .profiles import PROFILES as PROFILES
from .profiles import PUBLISHED as PUBLISHED
from .profiles import Profile as Profile

MIN_GAP = 1.0  # nats
TIE = 0.05  # share of the gap within which an earlier layer counts as as good as the best
KL_CUTS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.8, 1.0)  # of a sensitivity sweep
NO_REFUSAL_BELOW = 0.1
UNDISCRIMINATING_ABOVE = 0.5

_COSMIC = "cosmic_"  # prefix of the names of COSMIC's arrays
_BY_CANDIDATE = ("positions", "layers", "bypass", "induce", "kl", "kl_answer")

NoCarrier = Literal["no refusal", "undiscriminating refusal", "gap too small", "no admissible carrier"]


@dataclass(frozen=True)
class CandidateScores:
    """Per-prompt scores of candidate directions.

    Attributes:
        positions: −1 is the last prompt token. layers: the block at whose input the direction was taken.
        n_layers: L. harmful, harmless: unablated refusal scores.
        bypass: refusal score of harmful prompts with the direction ablated everywhere.
        induce: refusal score of harmless prompts with the direction added at its layer.
        kl: KL(base ‖ ablated) of the next token on harmless prompts. kl_answer: its mean over the first answer tokens.
            NaN in any of these: not scored.
        cosmic: from which the cosines of COSMIC follow, or None where they were not asked for.
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
    cosmic: CosmicProducts | None = None

    def __post_init__(self) -> None:
        candidates, up, down = len(self.layers), len(self.harmful), len(self.harmless)
        expected = {
            "positions": (candidates,),
            "bypass": (candidates, up),
            "induce": (candidates, down),
            "kl": (candidates, down),
            "kl_answer": (candidates, down),
        }
        found = {name: getattr(self, name).shape for name in expected}
        if self.cosmic is not None:
            expected["cosmic"] = (candidates, up, down)
            found["cosmic"] = self.cosmic.ablated_harmless.shape
        for name, shape in expected.items():
            if found[name] != shape:
                raise InputError(
                    f"{name} has shape {found[name]} instead of {shape}", where="CandidateScores"
                )
        if not up or not down:
            raise InputError("candidates need harmful and harmless prompts", where="CandidateScores")

    def __len__(self) -> int:
        return len(self.layers)

    def rows(self, index: Sequence[int]) -> "CandidateScores":
        """Some of the candidates, by their numbers."""
        chosen = np.asarray(index, dtype=np.int64)
        cosmic = None if self.cosmic is None else self.cosmic.rows(chosen)
        return replace(self, **{name: getattr(self, name)[chosen] for name in _BY_CANDIDATE}, cosmic=cosmic)

    def beside(self, other: "CandidateScores") -> "CandidateScores":
        """These and other candidates of the same model, scored on the same prompts."""
        cosmic = None if self.cosmic is None or other.cosmic is None else self.cosmic.beside(other.cosmic)
        joined: dict[str, Any] = {
            name: np.concatenate([getattr(one, name) for one in (self, other)]) for name in _BY_CANDIDATE
        }
        return replace(self, **joined, cosmic=cosmic)

    def admitted(self, profile: Profile) -> int:
        """How many candidates a profile admits over all prompts."""
        means = average(self, cosmic=profile.selector == "cosmic")
        return int(admissible(means, self.layers, self.n_layers, profile).sum())

    @property
    def gap(self) -> float:
        """h − s in nats."""
        return float(self.harmful.mean() - self.harmless.mean())

    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays, for saving: not `n_layers`, and COSMIC's only where they were measured."""
        own = {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        products = {} if self.cosmic is None else self.cosmic._asdict()
        return {**own, **{_COSMIC + name: value for name, value in products.items()}}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], n_layers: int) -> "CandidateScores":
        """Read back what `arrays` gave."""
        own = {name: value for name, value in arrays.items() if not name.startswith(_COSMIC)}
        rest = {name.removeprefix(_COSMIC): value for name, value in arrays.items() if name not in own}
        return cls(n_layers=n_layers, cosmic=CosmicProducts(**rest) if rest else None, **own)


class Means(NamedTuple):
    """Scores averaged over prompts, one row per sample of the prompts. `cosmic`: the sum of COSMIC's cosines."""

    bypass: Float[np.ndarray, "samples candidates"]
    induce: Float[np.ndarray, "samples candidates"]
    kl: Float[np.ndarray, "samples candidates"]
    h: Float[np.ndarray, "samples"]
    s: Float[np.ndarray, "samples"]
    cosmic: Float[np.ndarray, "samples candidates"] | None = None

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
    gap = means.gap
    gap = np.where(gap > 0, gap, np.nan)
    return Effects((means.h[:, None] - means.bypass) / gap, (means.induce - means.s[:, None]) / gap)


def average(
    scores: CandidateScores,
    harmful: Int[np.ndarray, "samples harmful"] | None = None,
    harmless: Int[np.ndarray, "samples harmless"] | None = None,
    *,
    cosmic: bool = False,
) -> Means:
    """Mean scores over all prompts, or over each row of prompt indices; COSMIC's too where they are asked for.

    Raises:
        InputError: COSMIC's are asked for and the candidates have none.
    """

    def weights(index: np.ndarray | None, n: int) -> np.ndarray:
        if index is None:
            return np.full((1, n), 1 / n)
        counts = np.zeros((len(index), n))
        np.add.at(counts, (np.arange(len(index))[:, None], index), 1.0)
        return counts / index.shape[1]

    up, down = weights(harmful, len(scores.harmful)), weights(harmless, len(scores.harmless))
    total = None
    if cosmic:
        if scores.cosmic is None and len(scores):
            raise InputError("the candidates have no COSMIC scores", where="selector cosmic")
        total = np.zeros((len(up), 0)) if scores.cosmic is None else scores.cosmic.scores(up, down).total
    # In float64; an infinite or missing score makes the candidate's mean NaN in every sample, as it should.
    with np.errstate(invalid="ignore"):
        return Means(
            bypass=up @ scores.bypass.T.astype(np.float64),
            induce=down @ scores.induce.T.astype(np.float64),
            kl=down @ scores.kl.T.astype(np.float64),
            h=up @ scores.harmful.astype(np.float64),
            s=down @ scores.harmless.astype(np.float64),
            cosmic=total,
        )


def admissible(
    means: Means, layers: Int[np.ndarray, "candidates"], n_layers: int, profile: Profile
) -> Bool[np.ndarray, "samples candidates"]:
    """Which candidates pass the profile's thresholds in each sample. A score that is not finite passes none."""
    finite = np.isfinite(means.bypass) & np.isfinite(means.induce) & np.isfinite(means.kl)
    with np.errstate(invalid="ignore"):
        passed = finite & (means.kl <= profile.kl_max) & (layers < profile.depth_cut(n_layers))
        if profile.selector == "cosmic":
            return passed & np.isfinite(_merit(means, profile))
        if profile.induce_min is not None:
            passed &= means.induce >= profile.induce_min
        if profile.effects_min is not None:
            size = effects(means)
            passed &= (size.bypass >= profile.effects_min) & (size.induce >= profile.effects_min)
    return passed


def _merit(means: Means, profile: Profile) -> Float[np.ndarray, "samples candidates"]:
    """What the profile's selector picks the lowest of."""
    if profile.selector == "bypass":
        return means.bypass
    if means.cosmic is None:
        raise InputError("these means have no COSMIC scores", where="selector cosmic")
    return -means.cosmic


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
    passed: Bool[np.ndarray, "samples candidates"] | None = None,
) -> Picks:
    """Best = admissible with the lowest bypass, or with COSMIC's highest score where the profile's selector is that.
    Earliest = the first admissible layer whose bypass is within 5 % of the gap of the best's, or lower.

    Of equal candidates the first listed wins; of several at the earliest layer the one with the lowest bypass.

    Args:
        passed: what `admissible` says, where it was asked already.
    """
    if len(layers) == 0:
        none = np.full(len(means.h), -1)
        return Picks(none, none)
    gap = means.gap
    if passed is None:
        passed = admissible(means, layers, n_layers, profile)
    passed = passed & (gap >= min_gap)
    found = passed.any(axis=1)
    best = np.where(passed, _merit(means, profile), np.inf).argmin(axis=1)
    bypass = np.where(passed, means.bypass, np.inf)
    of_best = np.take_along_axis(bypass, best[:, None], axis=1)
    near = passed & (bypass <= of_best + TIE * gap + 1e-12)
    first_layer = np.where(near, layers, n_layers).min(axis=1, keepdims=True)
    at_first = np.where(near & (layers == first_layer), bypass, np.inf)
    return Picks(np.where(found, best, -1), np.where(found, at_first.argmin(axis=1), -1))


def centres_of_mass(
    means: Means,
    layers: Int[np.ndarray, "candidates"],
    n_layers: int,
    profile: Profile,
    passed: Bool[np.ndarray, "samples candidates"] | None = None,
) -> Float[np.ndarray, "samples"]:
    """Centre of mass of the admissible layers over L, in each sample; NaN where no layer has a mass.

    Each layer with an admissible candidate counts once, however many positions are admissible there; its mass is the
    gap-normalised bypass effect of its admissible candidate of lowest bypass, 0 where that removes nothing. Unlike
    the arg-min it does not jump between layers that tie, and a layer that is admissible but idle does not pull.

    Args:
        passed: what `admissible` says, where it was asked already.
    """
    if len(layers) == 0:
        return np.full(len(means.h), np.nan)
    if passed is None:
        passed = admissible(means, layers, n_layers, profile)
    strength = np.nan_to_num(effects(means).bypass).clip(min=0) * passed
    depths = np.unique(layers)
    mass = np.stack([strength[:, layers == layer].max(axis=1) for layer in depths], axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(mass @ depths / (mass.sum(axis=1) * n_layers))


def auto_profile(
    scores: CandidateScores,
    published: Profile = PUBLISHED,
    calibrated: Profile = CALIBRATED,
    *,
    min_gap: float = MIN_GAP,
) -> Profile:
    """The profile `auto` (protocol §5): *published* if it admits a carrier at step 0, else *calibrated*.

    Args:
        scores: of step 0 alone; the answer is frozen before anything is trained.
    """
    return published if select(scores, published, min_gap=min_gap).best is not None else calibrated


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
    means = average(scores, cosmic=profile.selector == "cosmic")
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
