"""The verdict of protocol §7: from evidence about two anchors to a label, a flag and reasons. Pure."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from ..geometry.bootstrap import ShiftShares, shift_shares
from ..stats import Interval

Label = Literal["relocation", "replacement in place", "re-siting", "drift only", "no change", "undetermined"]
LABELS: tuple[Label, ...] = (
    "relocation",
    "replacement in place",
    "re-siting",
    "drift only",
    "no change",
    "undetermined",
)


@dataclass(frozen=True)
class Thresholds:
    """The settings of protocol §7; `excess_angle` in degrees, depths in shares of the layers."""

    depth_shift: float = 0.25
    probability: float = 0.95
    replaced_below: float = 0.5
    kept_above: float = 0.8
    excess_angle: float = 10.0


@dataclass(frozen=True)
class Evidence:
    """What is known about a pair of anchors a → b.

    Attributes:
        depth_*, argmin_*: bootstrap draws of carrier depth and arg-min depth, paired draw by draw; NaN: no carrier.
        transfer_ratio: T[a, b]/T[b, b] with one-sided 95 % bounds; NaN when undefined, `transfer_reason` says why.
        excess_angle: degrees, with its interval.
        rank_difference: paired interval of the effective-rank difference b − a.
        no_carrier: why a, and why b, has no carrier over all selection prompts; empty where it has one.
    """

    depth_a: Float[np.ndarray, "draws"]
    depth_b: Float[np.ndarray, "draws"]
    argmin_a: Float[np.ndarray, "draws"]
    argmin_b: Float[np.ndarray, "draws"]
    transfer_ratio: Interval
    transfer_reason: str | None
    excess_angle: Interval
    rank_difference: Interval
    no_carrier: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class Verdict:
    """A label, whether effective rank changed, and the reasons, one short sentence each."""

    label: Label
    expansion: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class _Findings:
    """Three-valued answers: True shown, False the opposite shown, None undetermined."""

    moved: bool | None
    replaced: bool | None
    kept: bool | None
    drifted: bool | None


def decide(evidence: Evidence, thresholds: Thresholds) -> Verdict:
    """The label for a → b.

    Moved, and not moved, both need P ≥ `probability`, by depth and by arg-min. Replaced needs the ratio's upper bound
    below `replaced_below`; “the old direction still controls” needs its lower bound at or above that. Anything that
    is neither shown nor excluded makes the verdict undetermined, and the reasons name what is missing.
    """
    depth = shift_shares(evidence.depth_a, evidence.depth_b, thresholds.depth_shift)
    argmin = shift_shares(evidence.argmin_a, evidence.argmin_b, thresholds.depth_shift)
    findings = _Findings(
        moved=_moved(depth, argmin, thresholds),
        replaced=_replaced(evidence.transfer_ratio, thresholds),
        kept=_above(evidence.transfer_ratio.lo, thresholds.kept_above),
        drifted=_drifted(evidence.excess_angle, thresholds),
    )
    reasons = (*_site_reason(depth, argmin, thresholds), *_carrier_reasons(evidence.no_carrier))
    reasons += _transfer_reason(evidence, thresholds)
    reasons += (_angle_reason(evidence.excess_angle, thresholds),)
    label = _label(findings)
    if label == "undetermined":
        reasons += tuple(_missing(findings, thresholds))
    difference = evidence.rank_difference
    expansion = difference.lo > 0 or difference.hi < 0
    if expansion:
        change = "grew" if difference.lo > 0 else "shrank"
        reasons += (
            f"Effective rank {change} by {difference.value:+.2f} [{difference.lo:+.2f}, {difference.hi:+.2f}].",
        )
    return Verdict(label, expansion, reasons)


def _label(found: _Findings) -> Label:
    if found.replaced:
        return (
            "undetermined" if found.moved is None else "relocation" if found.moved else "replacement in place"
        )
    if found.replaced is None or found.moved is None:
        return "undetermined"
    if found.moved:
        return "re-siting"
    if found.drifted:
        return "drift only"
    return "no change" if found.drifted is False and found.kept else "undetermined"


def _moved(depth: ShiftShares, argmin: ShiftShares, thresholds: Thresholds) -> bool | None:
    if min(depth.moved, argmin.moved) >= thresholds.probability:
        return True
    return False if min(depth.stayed, argmin.stayed) >= thresholds.probability else None


def _replaced(ratio: Interval, thresholds: Thresholds) -> bool | None:
    if ratio.hi < thresholds.replaced_below:
        return True
    return False if ratio.lo >= thresholds.replaced_below else None


def _above(value: float, threshold: float) -> bool | None:
    return None if math.isnan(value) else value > threshold


def _drifted(angle: Interval, thresholds: Thresholds) -> bool | None:
    if angle.lo >= thresholds.excess_angle:
        return True
    return False if angle.hi < thresholds.excess_angle else None


def _site_reason(depth: ShiftShares, argmin: ShiftShares, thresholds: Thresholds) -> tuple[str, ...]:
    shift = thresholds.depth_shift
    missing = max(depth.undefined, argmin.undefined)
    if missing == 1:
        return ("All draws lack a carrier at one of the two anchors, so that nothing is known of a move.",)
    text = f"P(|Δdepth| ≥ {shift:g}) = {depth.moved:.2f} by depth, {argmin.moved:.2f} by arg-min layer"
    return (f"{text}; {missing:.0%} of draws lack a carrier.",) if missing > 0 else (f"{text}.",)


def _carrier_reasons(no_carrier: tuple[str, str]) -> Iterator[str]:
    """Which of the two anchors has no carrier, and why."""
    for which, reason in zip(("first", "second"), no_carrier, strict=True):
        if reason:
            yield f"The {which} anchor has no carrier: {reason}."


def _transfer_reason(evidence: Evidence, thresholds: Thresholds) -> tuple[str, ...]:
    ratio = evidence.transfer_ratio
    if evidence.transfer_reason is not None or math.isnan(ratio.value):
        return (f"The transfer ratio is undefined: {evidence.transfer_reason or 'not measured'}.",)
    old, new = evidence.no_carrier
    names = "stand-in for a carrier" if old else "carrier", "stand-in" if new else "one"
    removes = f"removes {ratio.value:.2f} [{ratio.lo:.2f}, {ratio.hi:.2f}] of what the new {names[1]} does."
    return (f"The old {names[0]} {removes}",)


def _angle_reason(angle: Interval, thresholds: Thresholds) -> str:
    value, lo, hi = (f"{bound:.1f}°".replace("-0.0", "0.0") for bound in angle)
    return f"Excess angle {value} [{lo}, {hi}]."


def _missing(found: _Findings, thresholds: Thresholds) -> Iterator[str]:
    """What would have to be shown."""
    if found.moved is None:
        yield f"Missing: neither a move nor its absence has probability ≥ {thresholds.probability:g}."
    if found.replaced is None:
        yield f"Missing: the bounds of the transfer ratio do not settle {thresholds.replaced_below:g}."
    if found.moved is False and found.replaced is False:
        if found.drifted is None:
            yield f"Missing: the interval of the excess angle contains {thresholds.excess_angle:g}°."
        elif found.drifted is False and not found.kept:
            yield f"Missing: the lower bound of the transfer ratio is not above {thresholds.kept_above:g}."


def sensitivity(evidence: Evidence, thresholds: Thresholds) -> list[dict[str, Any]]:
    """The label with each threshold varied alone over a grid around its default, the value in use among them."""
    grid: dict[str, tuple[float, ...]] = {
        "depth_shift": (0.1, 0.15, 0.2, 0.25, 0.3, 0.4),
        "probability": (0.8, 0.9, 0.95, 0.99),
        "replaced_below": (0.3, 0.4, 0.5, 0.6, 0.7),
        "kept_above": (0.7, 0.8, 0.9),
        "excess_angle": (5.0, 10.0, 15.0, 20.0),
    }
    rows: list[dict[str, Any]] = []
    for name, values in grid.items():
        for value in sorted({*values, getattr(thresholds, name)}):
            found = decide(evidence, replace(thresholds, **{name: value}))
            row = {"setting": name, "threshold": value, "choice": f"{value:g}"}
            rows.append({**row, "label": found.label, "expansion": found.expansion, "note": ""})
    return rows


def agreement(verdicts: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How many seeds give each label to a pair of anchors; seeds are never pooled (protocol §7).

    Args:
        verdicts: rows of the `verdict` table.
    """
    pairs: dict[tuple[str, int, int], list[Mapping[str, Any]]] = {}
    for row in verdicts:
        pairs.setdefault((row["arm"], row["from"], row["to"]), []).append(row)
    rows: list[dict[str, Any]] = []
    for (arm, start, end), mine in pairs.items():
        for label in LABELS:
            seeds = sorted(int(row["seed"]) for row in mine if row["label"] == label)
            if seeds:
                row = {"arm": arm, "from": start, "to": end, "label": label, "agree": len(seeds)}
                named = ", ".join(map(str, seeds))
                expansions = sum(bool(row["expansion"]) for row in mine)
                rows.append({**row, "seeds": len(mine), "which": named, "expansions": expansions})
    return rows
