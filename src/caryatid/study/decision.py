"""The verdict of protocol §7: from evidence about two anchors to a label, a rank flag and reasons. Pure.

Every decision is made with a bound, never with a point. Bounds are one-sided of 97.5 %; those of the probability of a
move are Clopper–Pearson's of 95 %, with which 49 of 50 or 96 of 100 resamples show a probability of 0.9 (protocol §5).
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from ..causal.transfer import TransferCounts
from ..config.thresholds import Thresholds
from ..geometry.bootstrap import SHIFT_TOLERANCE, CarrierBootstrap
from ..stats import Interval, Rate, clopper_pearson

Label = Literal["relocation", "replacement in place", "re-siting", "drift only", "no change", "undetermined"]
LABELS: tuple[Label, ...] = (
    "relocation",
    "replacement in place",
    "re-siting",
    "drift only",
    "no change",
    "undetermined",
)
RankChange = Literal["expansion", "contraction", "none"]
CONFIDENCE = 0.95  # of two-sided intervals: each bound is one-sided of 97.5 %
PLACE_CONFIDENCE = 0.95  # of the one-sided bound of a probability of a move
NOTHING = Interval(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Places:
    """Where the carrier is, draw by draw, in shares of the layers; NaN: no carrier in that draw.

    Attributes:
        depth_*, centre_*, argmin_*: carrier depth, centre of mass of the admissible layers, arg-min depth, at a and b.
        resample: the re-extraction resample of each draw: the unit of every bound.
    """

    depth_a: Float[np.ndarray, "draws"]
    depth_b: Float[np.ndarray, "draws"]
    centre_a: Float[np.ndarray, "draws"]
    centre_b: Float[np.ndarray, "draws"]
    argmin_a: Float[np.ndarray, "draws"]
    argmin_b: Float[np.ndarray, "draws"]
    resample: Int[np.ndarray, "draws"]

    @classmethod
    def between(cls, a: CarrierBootstrap, b: CarrierBootstrap) -> "Places":
        """The draws of two anchors; paired where they were taken with the same generator and the same prompts."""
        return cls(
            depth_a=a.depth_draws,
            depth_b=b.depth_draws,
            centre_a=a.centre_draws,
            centre_b=b.centre_draws,
            argmin_a=a.argmin_draws,
            argmin_b=b.argmin_draws,
            resample=a.resample,
        )

    @cached_property
    def _units(self) -> tuple[Int[np.ndarray, "draws"], Int[np.ndarray, "resamples"]]:
        """The number of each draw's resample, from 0 on, and how many draws each has."""
        numbers = np.unique(self.resample, return_inverse=True)[1]
        return numbers, np.bincount(numbers)

    @property
    def resamples(self) -> int:
        """How many independent resamples the draws come from."""
        return len(self._units[1])

    def shares(self, quantity: str, shift: float) -> "Shares":
        """How often a place (`depth`, `centre` or `argmin`) changed by at least a shift, and by less, with bounds."""
        with np.errstate(invalid="ignore"):
            distance = np.abs(getattr(self, f"{quantity}_b") - getattr(self, f"{quantity}_a"))
            answers = distance >= shift - SHIFT_TOLERANCE, distance < shift - SHIFT_TOLERANCE
        numbers, sizes = self._units
        found = []
        for answer in answers:
            sums = np.bincount(numbers, weights=answer, minlength=len(sizes))
            bound = _place_bound(min(float((sums / sizes).sum()), len(sizes)), len(sizes))
            found += [0.0, 0.0] if math.isnan(bound.value) else [bound.value, bound.lo]
        return Shares(*found)


@lru_cache(maxsize=4096)
def _place_bound(resamples: float, of: int) -> Rate:
    return clopper_pearson(resamples, of, PLACE_CONFIDENCE)


@dataclass(frozen=True)
class Shares:
    """P(|Δ| ≥ shift) and P(|Δ| < shift) with lower bounds; draws without a carrier count against both."""

    moved: float
    moved_lo: float
    stayed: float
    stayed_lo: float


@dataclass(frozen=True)
class Evidence:
    """What is known about a pair of anchors a → b; intervals are two-sided of 95 %.

    Attributes:
        places: draws of the carrier's place at both.
        transfer: what b's refusals do under a's carrier, b's own and random subspaces. None: not measured.
        cosine: unclipped, of the noise-corrected angle; NaN where undefined, `angle_reason` says why.
        rank_difference: of PR, b − a; NaN where undefined, `rank_reason` says why.
        excess_angle: in degrees, shown beside the corrected one; decides nothing.
        no_carrier: why a, and why b, has no carrier over all selection prompts; empty where it has one.
        other_profile: name of, and the evidence under, the profile that is not used; None: the label does not
            depend on it (a profile that was asked for by name).
    """

    places: Places
    transfer: TransferCounts | None
    cosine: Interval
    rank_difference: Interval = NOTHING
    excess_angle: Interval = NOTHING
    angle_reason: str = ""
    rank_reason: str = ""
    no_carrier: tuple[str, str] = ("", "")
    other_profile: "tuple[str, Evidence] | None" = None


@dataclass(frozen=True)
class Verdict:
    """A label, how the spread over dimensions changed, and the reasons, one short sentence each."""

    label: Label
    rank: RankChange
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Findings:
    """Three-valued answers: True shown, False the opposite shown, None neither.

    `replaced` False: the old direction still controls. `kept` False: not shown to be kept.
    """

    carriers: bool
    controls: bool
    moved: bool | None
    replaced: bool | None
    kept: bool
    drifted: bool | None


def findings(evidence: Evidence, thresholds: Thresholds) -> Findings:
    """What the evidence shows."""
    shares = [evidence.places.shares(name, thresholds.depth_shift) for name in ("depth", "centre")]
    moved = stayed = False
    if not np.isnan(evidence.places.depth_a).all() and not np.isnan(evidence.places.depth_b).all():
        moved = min(each.moved_lo for each in shares) >= thresholds.probability
        stayed = min(each.stayed_lo for each in shares) >= thresholds.probability
    half, most, own = NOTHING, NOTHING, NOTHING
    if evidence.transfer is not None:
        half = evidence.transfer.contrast(thresholds.replaced_below, CONFIDENCE)
        most = evidence.transfer.contrast(thresholds.kept_above, CONFIDENCE)
        own = evidence.transfer.above_random("own", CONFIDENCE)
    controls = evidence.transfer is not None and evidence.transfer.own >= thresholds.control
    limit = math.cos(math.radians(thresholds.angle))
    return Findings(
        carriers=not any(evidence.no_carrier),
        controls=controls and own.lo >= thresholds.control_above_random,
        moved=True if moved else False if stayed else None,
        replaced=True if half.hi < 0 else False if half.lo >= 0 else None,
        kept=most.lo > 0,
        drifted=True if evidence.cosine.hi <= limit else False if evidence.cosine.lo > limit else None,
    )


def rank_change(difference: Interval, thresholds: Thresholds) -> RankChange:
    """Expansion or contraction where the interval excludes 0 and the difference is large enough, else none shown."""
    if difference.lo > 0 and difference.value >= thresholds.rank_change:
        return "expansion"
    if difference.hi < 0 and difference.value <= -thresholds.rank_change:
        return "contraction"
    return "none"


def decide(evidence: Evidence, thresholds: Thresholds) -> Verdict:
    """The label for a → b (protocol §7).

    Undetermined without a carrier at both anchors, and where b's own carrier does not control refusal, with that
    reason first; where a label needs something that is not shown, with what is missing; and where the other profile
    gives another label that is not undetermined.
    """
    found = findings(evidence, thresholds)
    label = _label(found)
    first: tuple[str, ...] = tuple(_obstacles(evidence, found, thresholds))
    if label != "undetermined" and evidence.other_profile is not None:
        name, changed = evidence.other_profile
        other = _label(findings(changed, thresholds))
        if other not in ("undetermined", label):
            first += (f"Depends on the profile: {label} with the one used, {other} with {name}.",)
            label = "undetermined"
    measured = (
        *_place_reason(evidence.places, thresholds),
        *_transfer_reasons(evidence.transfer, thresholds),
        _angle_reason(evidence),
    )
    missing = tuple(_missing(found, thresholds)) if label == "undetermined" and not first else ()
    rank = rank_change(evidence.rank_difference, thresholds)
    return Verdict(label, rank, (*first, *measured, *missing, *_rank_reason(evidence, rank)))


def _label(found: Findings) -> Label:
    if not found.carriers or not found.controls or found.moved is None:
        return "undetermined"
    if found.moved:
        return "relocation" if found.replaced else "re-siting" if found.replaced is False else "undetermined"
    if found.replaced:
        return "replacement in place" if found.drifted else "undetermined"
    if found.drifted:
        return "drift only" if found.replaced is False else "undetermined"
    return "no change" if found.drifted is False and found.kept else "undetermined"


def _obstacles(evidence: Evidence, found: Findings, thresholds: Thresholds) -> Iterator[str]:
    """Why nothing can be said at all, or why what was found contradicts itself."""
    for which, reason in zip(("first", "second"), evidence.no_carrier, strict=True):
        if reason:
            yield f"The {which} anchor has no carrier: {reason}."
    if found.carriers and not found.controls:
        if evidence.transfer is None or not evidence.transfer.refusals:
            yield "Nothing is known of control: the second anchor's refusals were not measured under ablation."
        elif evidence.transfer.own < thresholds.control:
            yield (
                f"The second anchor's own carrier removes {evidence.transfer.own:.2f} of its refusals, fewer than "
                f"{thresholds.control:g}: it does not control them."
            )
        else:
            star = evidence.transfer.above_random("own", CONFIDENCE)
            yield (
                f"The second anchor's own carrier removes {star.value:.2f} [{star.lo:.2f}, {star.hi:.2f}] more than "
                f"random subspaces; control takes a lower bound of {thresholds.control_above_random:g}."
            )
    elif found.carriers and found.replaced and found.moved is False and found.drifted is False:
        yield "Contradictory: replaced, but neither moved nor turned."


def _place_reason(places: Places, thresholds: Thresholds) -> Iterator[str]:
    lacking = (
        float(np.mean(np.isnan(places.depth_a) | np.isnan(places.depth_b))) if len(places.depth_a) else 1.0
    )
    if lacking == 1:
        yield "All draws lack a carrier at one of the two anchors, so that nothing is known of a move."
        return
    shares = {name: places.shares(name, thresholds.depth_shift) for name in ("depth", "centre", "argmin")}
    said = ", ".join(
        f"{shares[name].moved:.2f} by {words}"
        for name, words in (("depth", "depth"), ("centre", "centre of mass"), ("argmin", "arg-min"))
    )
    end = f"; {lacking:.0%} of draws lack a carrier." if lacking > 0 else "."
    yield f"P(|Δ| ≥ {thresholds.depth_shift:g}) = {said}, {places.resamples} resamples{end}"


def _transfer_reasons(counts: TransferCounts | None, thresholds: Thresholds) -> Iterator[str]:
    if counts is None or not counts.refusals:
        yield "No refusal of the second anchor was looked at under the old carrier."
        return
    yield (
        f"Of {counts.refusals} refusals the old carrier removes {counts.old:.2f}, the new one {counts.own:.2f}, "
        f"random subspaces {counts.random.value:.2f}."
    )
    said = []
    for factor in (thresholds.replaced_below, thresholds.kept_above):
        value, lo, hi = counts.contrast(factor, CONFIDENCE)
        said.append(f"D({factor:g}) = {value:+.2f} [{lo:+.2f}, {hi:+.2f}]")
    yield f"{', '.join(said)}."


def _angle_reason(evidence: Evidence) -> str:
    if math.isnan(evidence.cosine.value):
        return f"The corrected angle is undefined: {evidence.angle_reason or 'not measured'}."
    value, hi, lo = (math.degrees(math.acos(min(1.0, max(-1.0, each)))) for each in evidence.cosine)
    text = f"Corrected angle {value:.1f}° [{lo:.1f}°, {hi:.1f}°]"
    beside = evidence.excess_angle.value
    return f"{text}." if math.isnan(beside) else f"{text}, excess angle {beside:.1f}°.".replace("-0.0", "0.0")


def _rank_reason(evidence: Evidence, rank: RankChange) -> Iterator[str]:
    if rank != "none":
        value, lo, hi = evidence.rank_difference
        yield f"{rank.capitalize()}: PR changed by {value:+.2f} [{lo:+.2f}, {hi:+.2f}]."


def _missing(found: Findings, thresholds: Thresholds) -> Iterator[str]:
    """What would have to be shown."""
    if found.moved is None:
        yield f"Missing: neither a move nor its absence has a probability of {thresholds.probability:g} or more."
    if found.replaced is None and (found.moved is not False or found.drifted is not False):
        yield f"Missing: the bounds of D({thresholds.replaced_below:g}) lie on both sides of 0."
    if not found.moved and found.drifted is None:
        yield f"Missing: the corrected angle's interval contains {thresholds.angle:g}°."
    if found.moved is False and found.drifted is False and not found.kept and not found.replaced:
        yield f"Missing: the lower bound of D({thresholds.kept_above:g}) is not above 0."


GRID: Mapping[str, tuple[float, ...]] = {
    "depth_shift": (0.1, 0.15, 0.2, 0.25, 0.3, 0.4),
    "probability": (0.8, 0.9, 0.95),
    "replaced_below": (0.3, 0.4, 0.5, 0.6, 0.7),
    "kept_above": (0.7, 0.8, 0.9),
    "angle": (5.0, 10.0, 15.0, 20.0),
    "control": (0.3, 0.5, 0.7),
    "control_above_random": (0.1, 0.25, 0.4),
    "rank_change": (0.1, 0.25, 0.5),
}


def sensitivity(evidence: Evidence, thresholds: Thresholds) -> list[dict[str, Any]]:
    """The label with each threshold varied alone over a grid around its default, the value in use among them.

    The KL cut changes which candidates are admissible and so the places themselves: the caller makes these anew.
    """
    rows: list[dict[str, Any]] = []
    for name, values in GRID.items():
        for value in sorted({*values, getattr(thresholds, name)}):
            found = decide(evidence, replace(thresholds, **{name: value}))
            row = {"setting": name, "threshold": value, "choice": f"{value:g}"}
            rows.append({**row, "label": found.label, "rank": found.rank, "note": ""})
    return rows


def agreement(verdicts: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How many seeds give each label to a pair of anchors; seeds are never pooled (protocol §7).

    Args:
        verdicts: rows of the `verdict` table: arm, from, to, seed, label, rank.
    """
    pairs: dict[tuple[str, int, int], list[Mapping[str, Any]]] = {}
    for row in verdicts:
        pairs.setdefault((row["arm"], row["from"], row["to"]), []).append(row)
    rows: list[dict[str, Any]] = []
    for (arm, start, end), mine in pairs.items():
        flags = {
            f"{name}s": sum(row["rank"] == name for row in mine) for name in ("expansion", "contraction")
        }
        for label in LABELS:
            seeds = sorted(int(row["seed"]) for row in mine if row["label"] == label)
            if seeds:
                row = {"arm": arm, "from": start, "to": end, "label": label, "agree": len(seeds)}
                rows.append({**row, "seeds": len(mine), "which": ", ".join(map(str, seeds)), **flags})
    return rows
