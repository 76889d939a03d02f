"""Protocol §7: every label is reached, and each threshold decides on both of its sides."""

import math
from dataclasses import replace

import numpy as np
import pytest
from caryatid.study.evidence import COLUMNS, shift_rows
from caryatid.study.verdict import LABELS, Evidence, Thresholds, Verdict, agreement, decide, sensitivity

from caryatid.stats import Interval

T = Thresholds()


def depths(
    share_moved: float, shift: float = 0.5, missing: float = 0.0, n: int = 1000
) -> tuple[np.ndarray, np.ndarray]:
    """Draws at two anchors: `share_moved` of them `shift` apart, `missing` of them without a carrier at the second."""
    a, b = np.full(n, 0.75), np.full(n, 0.75)
    b[: round(share_moved * n)] -= shift
    b[n - round(missing * n) :] = math.nan
    return a, b


def evidence(
    moved: float = 0.0,
    argmin: float | None = None,
    shift: float = 0.5,
    missing: float = 0.0,
    ratio: tuple[float, float] = (0.9, 1.1),
    angle: tuple[float, float] = (0.0, 5.0),
    rank: tuple[float, float] = (-0.1, 0.1),
    transfer_reason: str | None = None,
) -> Evidence:
    def interval(bounds: tuple[float, float]) -> Interval:
        return Interval(sum(bounds) / 2, *bounds)

    by_depth = depths(moved, shift, missing)
    by_argmin = depths(moved if argmin is None else argmin, shift, missing)
    return Evidence(
        depth_a=by_depth[0],
        depth_b=by_depth[1],
        argmin_a=by_argmin[0],
        argmin_b=by_argmin[1],
        transfer_ratio=interval(ratio),
        transfer_reason=transfer_reason,
        excess_angle=interval(angle),
        rank_difference=interval(rank),
    )


GONE, KEPT = (0.0, 0.3), (0.9, 1.1)


@pytest.mark.parametrize(
    ("given", "label"),
    [
        (evidence(moved=1.0, ratio=GONE), "relocation"),
        (evidence(moved=0.0, ratio=GONE), "replacement in place"),
        (evidence(moved=1.0, ratio=KEPT), "re-siting"),
        (evidence(moved=0.0, ratio=KEPT, angle=(12, 20)), "drift only"),
        (evidence(moved=0.0, ratio=KEPT, angle=(0, 5)), "no change"),
        (evidence(moved=0.5, ratio=KEPT), "undetermined"),
    ],
)
def test_every_label_is_reached(given: Evidence, label: str) -> None:
    assert decide(given, T).label == label


def test_the_labels_above_are_all_there_are() -> None:
    assert set(LABELS) == {
        "relocation", "replacement in place", "re-siting", "drift only", "no change", "undetermined",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("inside", "label", "outside", "other"),
    [
        # P(|Δdepth| ≥ shift) ≥ 0.95, by depth and by arg-min
        (evidence(0.95, ratio=GONE), "relocation", evidence(0.949, ratio=GONE), "undetermined"),
        (evidence(1.0, argmin=0.95, ratio=KEPT), "re-siting", evidence(1.0, argmin=0.9, ratio=KEPT), "undetermined"),
        # P(|Δdepth| < shift) ≥ 0.95
        (evidence(0.05), "no change", evidence(0.051), "undetermined"),
        (evidence(0.0, argmin=0.05), "no change", evidence(0.0, argmin=0.2), "undetermined"),
        # a shift of exactly the threshold is a move
        (evidence(1.0, shift=0.25), "re-siting", evidence(1.0, shift=0.2), "no change"),
        # upper bound of the ratio < 0.5
        (evidence(1.0, ratio=(0.1, 0.499)), "relocation", evidence(1.0, ratio=(0.1, 0.5)), "undetermined"),
        # the old direction still controls: lower bound ≥ 0.5
        (evidence(1.0, ratio=(0.5, 0.9)), "re-siting", evidence(1.0, ratio=(0.49, 0.9)), "undetermined"),
        # lower bound of the excess angle ≥ 10°
        (evidence(angle=(10, 20)), "drift only", evidence(angle=(9.99, 20)), "undetermined"),
        # upper bound of the excess angle < 10°
        (evidence(angle=(0, 9.99)), "no change", evidence(angle=(0, 10)), "undetermined"),
        # lower bound of the ratio > 0.8
        (evidence(ratio=(0.801, 1)), "no change", evidence(ratio=(0.8, 1)), "undetermined"),
        # draws without a carrier are neither moved nor unmoved
        (evidence(missing=0.05), "no change", evidence(missing=0.06), "undetermined"),
        (evidence(0.95, missing=0.05), "re-siting", evidence(0.94, missing=0.06), "undetermined"),
    ],
)  # fmt: skip
def test_each_threshold_decides_on_both_sides(
    inside: Evidence, label: str, outside: Evidence, other: str
) -> None:
    assert decide(inside, T).label == label
    assert decide(outside, T).label == other


def test_a_move_in_either_direction_is_a_move() -> None:
    given = evidence(moved=1.0, ratio=GONE)
    back = replace(
        given, depth_a=given.depth_b, depth_b=given.depth_a, argmin_a=given.argmin_b, argmin_b=given.argmin_a
    )
    assert decide(back, T).label == "relocation"


def test_a_shift_of_a_quarter_counts_although_its_float_is_smaller() -> None:
    assert 14 / 20 - 9 / 20 < 0.25
    a, b = np.full(100, 14 / 20), np.full(100, 9 / 20)
    given = replace(evidence(ratio=GONE), depth_a=a, depth_b=b, argmin_a=a, argmin_b=b)
    assert decide(given, T).label == "relocation"


@pytest.mark.parametrize(
    ("rank", "expansion"),
    [
        ((0.001, 0.3), True),
        ((-0.3, -0.001), True),
        ((0.0, 0.3), False),
        ((-0.1, 0.1), False),
        ((math.nan, math.nan), False),
    ],
)
@pytest.mark.parametrize("label", ["no change", "relocation"])
def test_expansion_is_a_flag_beside_any_label(rank: tuple[float, float], expansion: bool, label: str) -> None:
    given = evidence(
        moved=float(label == "relocation"), ratio=GONE if label == "relocation" else KEPT, rank=rank
    )
    found = decide(given, T)
    assert (found.label, found.expansion) == (label, expansion)
    assert any("ffective rank" in reason for reason in found.reasons) == expansion


NAN = (math.nan, math.nan)


@pytest.mark.parametrize(
    "given",
    [
        evidence(missing=1.0, ratio=GONE),
        evidence(ratio=NAN, transfer_reason="the anchor refuses nothing"),
        evidence(angle=NAN),
        evidence(moved=1.0, ratio=NAN),
        replace(evidence(), **dict.fromkeys(("depth_a", "depth_b", "argmin_a", "argmin_b"), np.array([]))),
    ],
    ids=["no carrier", "no transfer", "no angle", "moved, no transfer", "no draws"],
)
def test_missing_evidence_is_undetermined_and_named(given: Evidence) -> None:
    found = decide(given, T)
    assert found.label == "undetermined"
    assert any(reason.startswith("Missing") for reason in found.reasons)


def missing(verdict: Verdict) -> str:
    return " ".join(reason for reason in verdict.reasons if reason.startswith("Missing"))


def test_what_is_missing_is_what_would_have_decided() -> None:
    assert "probability" in missing(decide(evidence(moved=0.5), T))
    assert "transfer ratio" in missing(decide(evidence(ratio=(0.3, 0.7)), T))
    assert "excess angle" in missing(decide(evidence(angle=(5, 15)), T))
    assert "0.8" in missing(decide(evidence(ratio=(0.6, 1.0)), T))
    assert missing(decide(evidence(), T)) == ""
    undefined = decide(evidence(ratio=NAN, transfer_reason="the anchor refuses nothing"), T)
    assert any("refuses nothing" in reason for reason in undefined.reasons)
    lacking = decide(evidence(missing=0.4), T)
    assert any("40%" in reason for reason in lacking.reasons)


def test_reasons_are_short_sentences() -> None:
    for given in (evidence(1.0, ratio=GONE, rank=(0.1, 0.2)), evidence(0.5), evidence(ratio=NAN)):
        for reason in decide(given, T).reasons:
            assert reason.endswith(".")
            assert "\n" not in reason
            assert len(reason) < 140


def test_every_threshold_is_a_setting() -> None:
    given = evidence(0.9, shift=0.3, ratio=(0.4, 0.55), angle=(6, 8))
    assert decide(given, T).label == "undetermined"
    assert decide(given, replace(T, probability=0.9, replaced_below=0.6)).label == "relocation"
    assert decide(given, replace(T, depth_shift=0.4, replaced_below=0.6)).label == "replacement in place"
    assert decide(given, replace(T, probability=0.9, replaced_below=0.4)).label == "re-siting"
    assert (
        decide(given, replace(T, depth_shift=0.4, replaced_below=0.4, excess_angle=5.0)).label == "drift only"
    )
    assert decide(given, replace(T, depth_shift=0.4, replaced_below=0.2, kept_above=0.3)).label == "no change"


def test_sensitivity_varies_one_threshold_at_a_time() -> None:
    given = evidence(0.92, ratio=(0.3, 0.45))
    rows = sensitivity(given, T)
    assert {row["setting"] for row in rows} == set(vars(T))
    for row in rows:
        expected = decide(given, replace(T, **{row["setting"]: row["threshold"]}))
        assert row["label"] == expected.label
        assert row["expansion"] == expected.expansion
    by_probability = {row["threshold"]: row["label"] for row in rows if row["setting"] == "probability"}
    assert by_probability[0.9] == "relocation"
    assert by_probability[0.95] == "undetermined"
    for name, default in vars(T).items():
        own = [row["label"] for row in rows if row["setting"] == name and row["threshold"] == default]
        assert own == [decide(given, T).label]


def test_the_thresholds_in_use_are_among_those_varied() -> None:
    used = Thresholds(0.22, 0.93, 0.45, 0.75, 12.0)
    rows = sensitivity(evidence(), used)
    assert {(row["setting"], row["threshold"]) for row in rows} >= set(vars(used).items())


def test_seeds_that_agree_are_counted_and_never_pooled() -> None:
    def row(seed: int, end: int, label: str, expansion: bool = False) -> dict[str, object]:
        return {"seed": seed, "arm": "r2d2", "from": 0, "to": end, "label": label, "expansion": expansion}

    found = agreement(
        [row(0, 5, "relocation"), row(1, 5, "no change", True), row(2, 5, "relocation", True), row(0, 9, "drift only")]
    )  # fmt: skip
    assert [(r["to"], r["label"], r["agree"], r["seeds"], r["which"], r["expansions"]) for r in found] == [
        (5, "relocation", 2, 3, "0, 2", 2),
        (5, "no change", 1, 3, "1", 2),
        (9, "drift only", 1, 1, "0", 0),
    ]


def test_draws_without_a_carrier_give_no_probability_and_stand_ins_their_name() -> None:
    whole = decide(evidence(missing=1.0), T)
    assert "lack a carrier" in whole.reasons[0]
    assert "P(" not in whole.reasons[0]
    assert any(reason.startswith("The old carrier removes 1.00") for reason in whole.reasons)
    stand_ins = replace(evidence(missing=1.0), no_carrier=("gap too small", "no refusal"))
    assert any(
        reason.startswith("The old stand-in for a carrier removes")
        and reason.endswith("the new stand-in does.")
        for reason in decide(stand_ins, T).reasons
    )


def test_a_negative_zero_is_a_zero() -> None:
    assert "Excess angle 0.0° [0.0°, 0.1°]." in decide(evidence(angle=(-0.04, 0.1)), T).reasons


def test_places_are_counted_and_lost_by_nothing() -> None:
    a, b, argmin = np.full(5, 0.7), np.array([0.7] * 3 + [math.nan] * 2), np.full(5, 0.8)
    given = replace(evidence(), depth_a=a, depth_b=b, argmin_a=argmin, argmin_b=np.where(np.isnan(b), b, 0.8))
    rows = shift_rows(given)
    assert [tuple(row[name] for name in (*COLUMNS, "draws")) for row in rows] == [
        (0.7, 0.7, 0.8, 0.8, 3),
        (0.7, None, 0.8, None, 2),
    ]
