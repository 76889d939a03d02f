"""Evidence as a plain dictionary that JSON can hold, and back: a verdict can be made again from a table's row."""

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from ..causal.transfer import TransferCounts
from ..stats import Interval
from .decision import Evidence, Places

_INTERVALS = ("cosine", "rank_difference", "excess_angle")


def _plain(value: float) -> float | str | None:
    """A number that JSON has: None for NaN, “inf” and “-inf” for the infinite."""
    if math.isnan(value):
        return None
    return str(value) if math.isinf(value) else float(value)


def _number(value: float | str | None) -> float:
    return math.nan if value is None else float(value)


def evidence_to_dict(evidence: Evidence) -> dict[str, Any]:
    """Everything that `decide` reads, as lists, numbers, texts and None."""
    found: dict[str, Any] = {
        "places": {
            each.name: [_plain(value) for value in getattr(evidence.places, each.name).tolist()]
            for each in fields(Places)
        },
        "transfer": None,
        "no_carrier": list(evidence.no_carrier),
        "angle_reason": evidence.angle_reason,
        "rank_reason": evidence.rank_reason,
        "other_profile": None,
    }
    for name in _INTERVALS:
        found[name] = [_plain(value) for value in getattr(evidence, name)]
    if evidence.transfer is not None:
        counts = {name: value for name, value in vars(evidence.transfer).items() if name != "random"}
        found["transfer"] = {**counts, "random": [_plain(value) for value in evidence.transfer.random]}
    if evidence.other_profile is not None:
        name, other = evidence.other_profile
        found["other_profile"] = [name, evidence_to_dict(other)]
    return found


def evidence_from_dict(stored: Mapping[str, Any]) -> Evidence:
    """Read back what `evidence_to_dict` gave."""
    places = {name: np.array([_number(v) for v in values]) for name, values in stored["places"].items()}
    places["resample"] = places["resample"].astype(np.int64)
    counts, other = stored["transfer"], stored["other_profile"]
    return Evidence(
        places=Places(**places),
        transfer=None
        if counts is None
        else TransferCounts(**{**counts, "random": Interval(*map(_number, counts["random"]))}),
        **{name: Interval(*map(_number, stored[name])) for name in _INTERVALS},
        angle_reason=stored["angle_reason"],
        rank_reason=stored["rank_reason"],
        no_carrier=(stored["no_carrier"][0], stored["no_carrier"][1]),
        other_profile=None if other is None else (other[0], evidence_from_dict(other[1])),
    )
