"""Made-up runs that differ in their seed, for tests of what is shown and said of several."""

from collections.abc import Mapping, Sequence
from typing import Any

from across_seeds import RATES, Seed
from compared_arms import Row
from seed_claims import ADAPTIVE, DIRECT, FIXED, GAIN, SAFE, USEFUL

Rates = Mapping[tuple[str, int], float]
PROVENANCE: dict[str, Any] = {
    "device": "one card", "dtype": "float32", "note": "", "wall": 60.0, "unfinished": [],
    "seconds": {"train": {"seconds": 30.0, "stages": 2}, "null": {"seconds": 8.0, "stages": 1}},
    "seconds_by_place": {
        "study": 1.0, "seed0": 2.0, "base@0/seed0": 10.0, "sft/seed0": 5.0, "sft@50/seed0": 1.0, "r2d2/seed0": 15.0,
        "base@0-r2d2@50/seed0": 3.0, "r2d2@50-r2d2@100/seed0": 1.0,
    },
}  # fmt: skip
REASONS = (
    "Of 60 refusals the old carrier removes 0.70. Missing: neither a move nor its absence has a probability of 0.9 or "
    "more. Missing: the corrected angle's interval contains 10°."
)


def spans(value: float, half: float = 0.05) -> dict[str, float]:
    return {"value": value, "lo": value - half, "hi": value + half}


def behaviour(**rates: Rates) -> list[Row]:
    """Rows of `behaviour`; keywords as in NAMED."""
    named = {
        "direct": DIRECT, "fixed": FIXED, "adaptive": ADAPTIVE, "gain": GAIN, "safe": SAFE, "useful": USEFUL,
    }  # fmt: skip
    return [
        {"arm": arm, "step": step, "n": 100, "attack": "none", **RATES[named[name]], **spans(value)}
        for name, found in rates.items()
        for (arm, step), value in found.items()
    ]


def pair(
    arm: str,
    a: int,
    b: int,
    label: str = "drift only",
    *,
    angle: float = 30.0,
    flag: str = "none",
    place: str = "stayed",
    contrast: float = 0.2,
) -> dict[str, list[Row]]:
    """Verdict, turn, place and transfer of a pair; without a label: no verdict."""
    where = {"arm": arm, "from": a, "to": b}
    turn = {**where, "site": "first anchor"}
    own = {**where, "from": b, "from_arm": arm, "rank": 1, "n": 60}
    old = {**where, "from_arm": arm if a else "base", "rank": 1, "n": 60}
    verdict = {
        **where,
        "label": label,
        "rank_change": flag,
        "reasons": REASONS,
        "reachable": "Within reach: all.",
    }
    return {
        "verdict": [verdict] if label else [],
        "drift": [
            {**turn, "quantity": "corrected_angle", **spans(angle, 1.0)},
            {**turn, "quantity": "participation_ratio_difference", **spans(0.0, 0.1)},
            {**where, "quantity": f"p_depth_{place}", "value": 1.0, "lo": 0.97, "hi": None},
            {**where, "quantity": f"p_centre_{place}", "value": 1.0, "lo": 0.97, "hi": None},
        ],
        "transfer": [
            {**old, "quantity": "transfer", **spans(0.8)},
            {**old, "quantity": "contrast_replaced", **spans(contrast)},
            {**own, "quantity": "transfer", **spans(0.9)},
            {**own, "quantity": "transfer_above_random", **spans(0.8)},
            {**own, "quantity": "transfer_random", **spans(0.1)},
        ],
    }  # fmt: skip


def seed(
    number: int, *parts: Mapping[str, Sequence[Row]], rows: Sequence[Row] = (), **provenance: Any
) -> Seed:
    """A made-up run; what several pairs measure of one anchor is there once."""
    tables: dict[str, list[Row]] = {"behaviour": list(rows)} if rows else {}
    for part in parts:
        for name, found in part.items():
            mine = tables.setdefault(name, [])
            mine += [row for row in found if row not in mine]
    return Seed(f"run-seed{number}", number, tables, {**PROVENANCE, **provenance})
