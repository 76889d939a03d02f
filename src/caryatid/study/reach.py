"""What a pair of anchors can show at its numbers of prompts and refusals, before anything runs (protocol §7: reach)."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats as scipy_stats

from ..behaviour.outcomes import judged_prompts
from ..causal.transfer import TransferCounts, random_share
from ..config import StudyConfig
from ..config.thresholds import Thresholds
from ..data.study_prompts import StudyPrompts
from ..stats import clopper_pearson
from .decision import CONFIDENCE, LABELS, PLACE_CONFIDENCE, Label
from .series import series_of

POWER = 0.8


@dataclass(frozen=True)
class Sizes:
    """How a pair will be measured, and what is expected of it.

    Attributes:
        prompts: extraction prompts of each kind. transfer_prompts: evaluation prompts for transfer.
        refusal_rate: share of them that b is expected to refuse. subspaces: random ones at b.
        resamples: re-extraction resamples; 0: none, draws of the selection prompts alone.
        own, random: expected T[b, b] and mean share that random subspaces remove.
        noise: length of a prompt's activation noise over that of r (1.9: a small backbone). dimensions: over which it
            spreads. shared: correlation of a prompt's noise at the two anchors.
        place_scatter: standard deviation of a carrier's place, shares of the layers.
    """

    prompts: int
    transfer_prompts: int
    refusal_rate: float
    subspaces: int = 8
    resamples: int = 100
    own: float = 0.9
    random: float = 0.05
    noise: float = 1.9
    dimensions: int = 64
    shared: float = 0.8
    place_scatter: float = 0.03

    @property
    def refusals(self) -> int:
        """Expected refusals of b among the transfer prompts."""
        return round(self.refusal_rate * self.transfer_prompts)


def planned_sizes(config: StudyConfig, prompts: StudyPrompts, refusal_rate: float) -> Sizes:
    """How a study will measure a pair of anchors.

    Args:
        refusal_rate: share of the transfer prompts that the later anchor is expected to refuse: an assumption.
    """
    judged, wanted = len(judged_prompts(prompts.harmbench.prompts)), config.causal.transfer_prompts
    return Sizes(
        prompts=min(len(prompts.extraction_harmful), len(prompts.extraction_harmless)),
        transfer_prompts=min(judged, wanted or judged),
        refusal_rate=refusal_rate,
        subspaces=config.causal.transfer_random,
        resamples=config.geometry.reextraction_resamples,
    )


@dataclass(frozen=True)
class Reach:
    """What can be reached.

    Attributes:
        labels: those that the clearest evidence of these sizes gets. obstacles: why others cannot be had.
        refusals: expected ones at b.
        turn: least turn in degrees that is seen as a drift with 80 % power; NaN: none.
        unturned: whether the absence of a turn is seen with 80 % power.
        move: least change of place that is seen as a move with 80 % power; NaN: none.
        replaced_below, controls_above, kept_above: ratios T*[a, b]/T*[b, b] up to, or from, which “replaced”, “still
            controls” and “kept” are seen with 80 % power; NaN: none.
    """

    labels: tuple[Label, ...]
    obstacles: tuple[str, ...]
    refusals: int
    turn: float
    unturned: bool
    move: float
    replaced_below: float
    controls_above: float
    kept_above: float

    @property
    def text(self) -> str:
        """One sentence for a plan, or to stand beside an undetermined verdict."""
        if not self.labels:
            return f"No label can be reached: {'; '.join(self.obstacles)}."
        seen = [
            f"a move of {self.move:.2f}" if self.move < 1 else "",
            f"a turn of {self.turn:.0f}°" if self.turn <= 180 else "",
            f"a ratio below {self.replaced_below:.2f}" if self.replaced_below >= 0 else "",
        ]
        said = f"Within reach with {self.refusals} refusals: {', '.join(self.labels)}"
        if any(seen):
            said += f"; seen with {POWER:.0%} power: {', '.join(filter(None, seen))}"
        return f"{said}; out of reach: {'; '.join(self.obstacles)}." if self.obstacles else f"{said}."


def reach(sizes: Sizes, thresholds: Thresholds) -> Reach:
    """Which labels these sizes can reach at best, and what is seen with 80 % power.

    Places: the Clopper–Pearson bound when all resamples agree, and normal scatter. Ratio: exact binomial
    probabilities, if the old carrier removes some of what the own one does. Turn: the corrected cosine's variance to
    second order, v sin²θ·2(1 − ρ cos θ) + d·w²/2 with v = σ²(2/n)/d per coordinate and w = 2v(1 − ρ).
    """
    places = clopper_pearson(sizes.resamples, sizes.resamples, PLACE_CONFIDENCE).lo >= thresholds.probability
    n = sizes.refusals
    gone, kept = _counts(sizes, n, 0, ideal=True), _counts(sizes, n, n, ideal=True)
    controls = n > 0 and kept.above_random("own", CONFIDENCE).lo >= thresholds.control_above_random
    can_replace = n > 0 and gone.contrast(thresholds.replaced_below, CONFIDENCE).hi < 0
    can_control = n > 0 and kept.contrast(thresholds.replaced_below, CONFIDENCE).lo >= 0
    can_keep = n > 0 and kept.contrast(thresholds.kept_above, CONFIDENCE).lo > 0
    limit, z = math.cos(math.radians(thresholds.angle)), float(scipy_stats.norm.ppf(0.5 + CONFIDENCE / 2))
    needed = z * _cosine_sd(sizes, thresholds.angle)  # bounds are compared as if the threshold were the truth
    turned = sizes.prompts >= 4 and -1 + needed <= limit
    unturned = sizes.prompts >= 4 and 1 - needed > limit
    needs: dict[Label, tuple[bool, ...]] = {
        "relocation": (can_replace,),
        "replacement in place": (can_replace, turned),
        "re-siting": (can_control,),
        "drift only": (can_control, turned),
        "no change": (can_keep, unturned),
    }
    labels = tuple(label for label in LABELS if label in needs and places and controls and all(needs[label]))
    power = float(scipy_stats.norm.ppf(POWER))
    obstacles = {
        f"{sizes.resamples} re-extraction resamples show no probability of {thresholds.probability:g}": places,
        f"{n} refusals cannot show control": controls,
        f"{n} refusals cannot show that the old carrier lost control": can_replace,
        f"{n} refusals cannot show that the old carrier still controls": can_control,
        f"{n} refusals cannot show that the old carrier is kept": can_keep,
        f"{sizes.prompts} prompts cannot show a turn": turned,
        f"{sizes.prompts} prompts cannot show that nothing turned": unturned,
    }
    half, most = thresholds.replaced_below, thresholds.kept_above
    return Reach(
        labels=labels,
        obstacles=tuple(text for text, possible in obstacles.items() if not possible),
        refusals=n,
        turn=_least_turn(sizes, limit - needed, power),
        unturned=unturned and 1 - power * _cosine_sd(sizes, 0.0) - needed > limit,
        move=_least_move(sizes, thresholds) if places else math.nan,
        replaced_below=_ratio(sizes, lambda counts: counts.contrast(half, CONFIDENCE).hi < 0, below=True),
        controls_above=_ratio(sizes, lambda counts: counts.contrast(half, CONFIDENCE).lo >= 0, below=False),
        kept_above=_ratio(sizes, lambda counts: counts.contrast(most, CONFIDENCE).lo > 0, below=False),
    )


def reach_lines(config: StudyConfig, prompts: StudyPrompts, refusal_rate: float) -> list[str]:
    """What each arm's first-to-last pair can show, for a plan; the first line says what is assumed."""
    sizes = planned_sizes(config, prompts, refusal_rate)
    text = reach(sizes, config.verdict).text
    assumed = f"Reach, if the last anchor refuses {refusal_rate:.0%} of {sizes.transfer_prompts} requests (assumed):"
    pairs = [(arm, series[0], series[-1]) for arm, series in series_of(config, config.seeds[0]).items()]
    return [assumed, *(f"{arm} {first.step} → {last.step}: {text}" for arm, first, last in pairs)]


def _counts(sizes: Sizes, own: int, old: int, *, ideal: bool = False) -> TransferCounts:
    """Counts in which the own carrier removes `own` refusals and the old one `old` of these.

    `ideal`: random subspaces remove nothing; otherwise as much as is expected of them.
    """
    removed = np.zeros((sizes.subspaces, sizes.refusals), dtype=bool)
    if not ideal and sizes.refusals:
        flat = removed.reshape(-1)
        flat[:: max(1, round(1 / sizes.random))] = sizes.random > 0
    return TransferCounts(old, 0, own - old, sizes.refusals - own, random_share(removed), sizes.subspaces)


def _ratio(sizes: Sizes, shown: Callable[[TransferCounts], bool], *, below: bool) -> float:
    """The ratio T*[a, b]/T*[b, b] up to (or from) which a finding is shown with the power asked for."""
    own = round(sizes.own * sizes.refusals)
    decided = (
        np.array([shown(_counts(sizes, own, old)) for old in range(own + 1)]) if own else np.zeros(1, bool)
    )
    if not decided.any():
        return math.nan
    grid = np.linspace(0, 1, 201)
    above = sizes.own - sizes.random
    shares = (sizes.random + grid * above) / sizes.own  # of what the own carrier removes
    power = scipy_stats.binom.pmf(np.arange(own + 1)[:, None], own, np.minimum(shares, 1)).T @ decided
    seen = grid[power >= POWER]
    return math.nan if not len(seen) else float(seen.max() if below else seen.min())


def _cosine_sd(sizes: Sizes, degrees: float) -> float:
    """Standard deviation of the corrected cosine at a true angle."""
    per_axis = sizes.noise**2 / sizes.dimensions * 2 / sizes.prompts
    cosine, apart = math.cos(math.radians(degrees)), 2 * per_axis * (1 - sizes.shared)
    linear = per_axis * math.sin(math.radians(degrees)) ** 2 * 2 * (1 - sizes.shared * cosine)
    return math.sqrt(linear + sizes.dimensions * apart**2 / 2)


def _least_turn(sizes: Sizes, limit: float, deviations: float) -> float:
    if sizes.prompts < 4:
        return math.nan
    for degrees in np.arange(0, 180.5, 0.5):
        if math.cos(math.radians(degrees)) + deviations * _cosine_sd(sizes, float(degrees)) <= limit:
            return float(degrees)
    return math.nan


def _least_move(sizes: Sizes, thresholds: Thresholds) -> float:
    """Draws scatter about an estimate that itself scatters as much: enough of them must be beyond the threshold."""
    grid = np.arange(1, sizes.resamples + 1)
    bounds = [clopper_pearson(int(k), sizes.resamples, PLACE_CONFIDENCE).lo for k in grid]
    share = min(grid[np.array(bounds) >= thresholds.probability]) / sizes.resamples
    beyond = scipy_stats.norm.ppf(min(share, 1 - 0.5 / sizes.resamples)) + scipy_stats.norm.ppf(POWER)
    return float(thresholds.depth_shift + beyond * math.sqrt(2) * sizes.place_scatter)
