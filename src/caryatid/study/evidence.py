"""Evidence of a pair of anchors as rows of tables, and back: a verdict can be made again from a run's tables alone."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from ..errors import InputError
from ..stats import Interval
from .verdict import Evidence, Thresholds, Verdict, decide

Row = Mapping[str, Any]
Tables = Mapping[str, Sequence[Row]]
COLUMNS = ("depth_from", "depth_to", "argmin_from", "argmin_to")


def shift_rows(evidence: Evidence) -> list[dict[str, Any]]:
    """The distinct places of the carrier over the draws, with their counts; None: no carrier in these draws."""
    draws = np.column_stack([evidence.depth_a, evidence.depth_b, evidence.argmin_a, evidence.argmin_b])
    found = Counter(tuple(None if math.isnan(value) else float(value) for value in row) for row in draws)
    ordered = sorted(found.items(), key=lambda item: (-item[1], str(item[0])))
    return [{**dict(zip(COLUMNS, places, strict=True)), "draws": count} for places, count in ordered]


def _draws(rows: Sequence[Row], column: str) -> Float[np.ndarray, "draws"]:
    values = [math.nan if row[column] is None else float(row[column]) for row in rows]
    return np.repeat(np.array(values, dtype=np.float64), [int(row["draws"]) for row in rows])


def no_carrier(tables: Tables, seed: int, arm: str, step: int, profile: str) -> str:
    """Why an anchor has no carrier under a profile, from `carrier_summary`; empty where it has one."""
    wanted = {"seed": seed, "arm": arm if step else "base", "step": step, "profile": profile}
    rows = [row for row in tables["carrier_summary"] if all(row[k] == v for k, v in wanted.items())]
    return str(rows[0]["reason"]) if rows else ""


def evidence_from_tables(tables: Tables, seed: int, arm: str, start: int, end: int) -> Evidence:
    """What the tables `shifts`, `carrier_summary`, `transfer` and `drift` say about start → end of one arm and seed.

    Raises:
        InputError: the tables do not have this pair.
    """
    pair = {"seed": seed, "arm": arm, "from": start, "to": end}

    def of(table: str) -> list[Row]:
        return [row for row in tables[table] if all(row[key] == value for key, value in pair.items())]

    def interval(rows: Sequence[Row], quantity: str) -> tuple[Interval, Row]:
        for row in rows:
            if row["quantity"] == quantity:
                values = [math.nan if row[key] is None else float(row[key]) for key in ("value", "lo", "hi")]
                return Interval(*values), row
        raise InputError(f"no {quantity} for {arm} {start} → {end} of seed {seed}", where="tables")

    own = [row for row in of("transfer") if row["from_arm"] == ("base" if start == 0 else arm)]
    ratio, stored = interval(own, "ratio")
    drift, shifts = of("drift"), of("shifts")
    profile = str(of("verdict")[0]["profile"])
    return Evidence(
        depth_a=_draws(shifts, "depth_from"),
        depth_b=_draws(shifts, "depth_to"),
        argmin_a=_draws(shifts, "argmin_from"),
        argmin_b=_draws(shifts, "argmin_to"),
        transfer_ratio=ratio,
        transfer_reason=stored["reason"] or None,
        excess_angle=interval(drift, "excess_angle")[0],
        rank_difference=interval(drift, "effective_rank_difference")[0],
        no_carrier=(
            no_carrier(tables, seed, arm, start, profile),
            no_carrier(tables, seed, arm, end, profile),
        ),
    )


def verdict_from_tables(
    tables: Tables, seed: int, arm: str, start: int, end: int, thresholds: Thresholds
) -> Verdict:
    """The verdict on start → end from a run's tables alone. Errors as `evidence_from_tables`."""
    return decide(evidence_from_tables(tables, seed, arm, start, end), thresholds)
