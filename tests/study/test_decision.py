"""Protocol §7: every label is reached, each threshold decides on both of its sides, and obstacles come first."""

import math
import re
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from caryatid.artifacts import StageFolder
from caryatid.causal.transfer import TransferCounts
from caryatid.report.reasons import PLAIN, in_plain_words
from caryatid.results import load_result, save_result
from caryatid.stats import Interval
from caryatid.study.decision import (
    LABELS,
    NOTHING,
    Evidence,
    Places,
    Thresholds,
    Verdict,
    agreement,
    decide,
    findings,
    sensitivity,
)

T = Thresholds()


def places(
    moved: int = 0,
    centre: int | None = None,
    missing: int = 0,
    n: int = 100,
    shift: float = 0.5,
    per: int = 10,
) -> Places:
    """`moved` of n resamples with a carrier `shift` earlier at b, the last `missing` ones without one there."""

    def at_b(count: int) -> np.ndarray:
        found = np.full(n, 0.75)
        found[:count] -= shift
        found[n - missing :] = math.nan
        return np.repeat(found, per)

    a, depth, mass = np.full(n * per, 0.75), at_b(moved), at_b(moved if centre is None else centre)
    return Places(a, depth, a, mass, a, depth, np.repeat(np.arange(n), per))


def cosine(lo: float, hi: float) -> Interval:
    """The interval of the cosine whose angles are these."""
    ends = [math.cos(math.radians(each)) for each in (hi, lo)]
    return Interval(sum(ends) / 2, *ends)


def counts(old: int, own: int, n: int = 100, random: float = 0.05) -> TransferCounts:
    """Of n refusals the old carrier removes some of those that the own one removes."""
    half = random / 2
    return TransferCounts(old, 0, own - old, n - own, Interval(random, random - half, random + half), 8)


KEPT, GONE, HALF = counts(93, 95), counts(5, 95), counts(48, 95)
STILL, TURNED = cosine(0, 6), cosine(20, 40)


def evidence(
    moved: int = 0,
    transfer: TransferCounts | None = KEPT,
    angle: Interval = STILL,
    rank: Interval = NOTHING,
    **other: int,
) -> Evidence:
    return Evidence(places(moved, **other), transfer, angle, rank)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "label"),
    [
        (evidence(100, GONE, TURNED), "relocation"),
        (evidence(100, GONE, STILL), "relocation"),
        (evidence(0, GONE, TURNED), "replacement in place"),
        (evidence(100, KEPT, STILL), "re-siting"),
        (evidence(100, KEPT, TURNED), "re-siting"),
        (evidence(0, KEPT, TURNED), "drift only"),
        (evidence(0, KEPT, STILL), "no change"),
        (evidence(0, GONE, STILL), "undetermined"),
        (evidence(50, KEPT, STILL), "undetermined"),
        (evidence(0, HALF, TURNED), "undetermined"),
        (evidence(0, GONE, cosine(5, 15)), "undetermined"),
        (evidence(0, KEPT, cosine(5, 15)), "undetermined"),
        (evidence(0, counts(80, 95), STILL), "undetermined"),
    ],
)
def test_every_label_is_reached_by_its_row_and_by_no_other(given: Evidence, label: str) -> None:
    assert decide(given, T).label == label


def test_the_labels_are_the_protocols() -> None:
    assert set(LABELS) == {
        "relocation", "replacement in place", "re-siting", "drift only", "no change", "undetermined",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("inside", "outside", "label"),
    [
        (evidence(96, GONE), evidence(95, GONE), "relocation"),
        (evidence(100, GONE, centre=96), evidence(100, GONE, centre=95), "relocation"),
        (evidence(4), evidence(5), "no change"),
        (evidence(0, centre=4), evidence(0, centre=5), "no change"),
        (evidence(missing=4), evidence(missing=5), "no change"),
        (evidence(96, GONE, missing=4), evidence(95, GONE, missing=5), "relocation"),
        (evidence(49, GONE, n=50), evidence(48, GONE, n=50), "relocation"),
        (evidence(100, GONE, angle=NOTHING), evidence(0, GONE, angle=NOTHING), "relocation"),
        (evidence(0, GONE, cosine(10, 20)), evidence(0, GONE, cosine(9.99, 20)), "replacement in place"),
        (evidence(0, KEPT, cosine(10, 20)), evidence(0, KEPT, cosine(9.99, 20)), "drift only"),
        (evidence(0, KEPT, cosine(0, 9.99)), evidence(0, KEPT, cosine(0, 10.01)), "no change"),
        (evidence(100, counts(40, 95)), evidence(100, counts(41, 95)), "relocation"),
        (evidence(100, counts(60, 95)), evidence(100, counts(59, 95)), "re-siting"),
        (evidence(0, counts(85, 95)), evidence(0, counts(84, 95)), "no change"),
        (evidence(0, counts(50, 50)), evidence(0, counts(49, 49)), "no change"),
    ],
)  # fmt: skip
def test_each_threshold_decides_on_both_sides(inside: Evidence, outside: Evidence, label: str) -> None:
    assert (decide(inside, T).label, decide(outside, T).label) == (label, "undetermined")


def test_a_shift_of_a_quarter_is_a_move_although_its_float_is_smaller() -> None:
    assert 14 / 20 - 9 / 20 < 0.25
    a, b = np.full(100, 14 / 20), np.full(100, 9 / 20)
    found = replace(evidence(), places=Places(a, b, a, b, a, b, np.arange(100)))
    assert findings(found, T).moved is True
    found = replace(evidence(), places=Places(b, a, b, a, b, a, np.arange(100)))
    assert findings(found, T).moved is True


def test_draws_of_one_resample_are_no_independent_trials() -> None:
    """A thousand draws of 20 resamples cannot show a probability of 0.9; of 100 resamples they can."""
    assert findings(evidence(100, n=100, per=10), T).moved is True
    assert findings(evidence(20, n=20, per=50), T).moved is None
    alone = replace(evidence(), places=replace(places(100), resample=np.zeros(1000, dtype=np.int64)))
    assert findings(alone, T).moved is None


def test_the_arg_min_decides_nothing() -> None:
    given = evidence()
    jumps = replace(given.places, argmin_b=given.places.argmin_b - 0.5)
    found = decide(replace(given, places=jumps), T)
    assert found.label == "no change"
    assert "1.00 by arg-min" in " ".join(found.reasons)


def test_without_a_carrier_there_is_no_verdict_and_that_comes_first() -> None:
    """Valid draws and a clear replacement gave a relocation before."""
    for reasons, which in ((("gap too small", ""), "first"), (("", "no refusal"), "second")):
        found = decide(replace(evidence(100, GONE), no_carrier=reasons), T)
        assert found.label == "undetermined"
        assert found.reasons[0] == f"The {which} anchor has no carrier: {max(reasons)}."
        assert not any(reason.startswith("Missing") for reason in found.reasons)


@pytest.mark.parametrize(
    ("transfer", "said"),
    [
        (
            TransferCounts(0, 0, 6, 58, Interval(0.02, 0.0, 0.06), 8),
            "removes 0.09 of its refusals, fewer than 0.5",
        ),
        (counts(5, 60, random=0.5), "more than random subspaces"),
        (counts(0, 9, n=10, random=0.6), "more than random subspaces"),
        (None, "Nothing is known of control"),
        (TransferCounts(0, 0, 0, 0, NOTHING, 8), "Nothing is known of control"),
    ],
)
def test_without_control_there_is_no_verdict_and_that_comes_first(
    transfer: TransferCounts | None, said: str
) -> None:
    """A carrier that removes 6 of 64 refusals, of which the old one removes none, gave a relocation before."""
    found = decide(evidence(100, transfer), T)
    assert found.label == "undetermined"
    assert said in found.reasons[0]


def test_replaced_without_a_move_or_a_turn_is_contradictory() -> None:
    found = decide(evidence(0, GONE, STILL), T)
    assert found.label == "undetermined"
    assert found.reasons[0].startswith("Contradictory")


def test_a_turn_of_135_degrees_is_no_turn_of_45() -> None:
    found = decide(evidence(0, KEPT, cosine(130, 140)), T)
    assert any("° [130.0°, 140.0°]" in reason for reason in found.reasons)
    assert found.label == "drift only"


def test_the_unclipped_cosine_decides() -> None:
    beyond = Interval(1.004, 0.99, 1.018)
    found = decide(evidence(angle=beyond), T)
    assert found.label == "no change"
    assert any("Corrected angle 0.0° [0.0°, 8.1°]" in reason for reason in found.reasons)


def test_a_negative_zero_is_a_zero() -> None:
    found = decide(replace(evidence(), excess_angle=Interval(-0.04, -0.3, 0.1)), T)
    assert any(reason.endswith("excess angle 0.0°.") for reason in found.reasons)


def test_a_label_that_depends_on_the_profile_is_undetermined() -> None:
    given = evidence(100, GONE)
    same, other, open_ = evidence(99, GONE), evidence(100, KEPT), evidence(50, GONE)
    assert decide(replace(given, other_profile=("published", same)), T).label == "relocation"
    assert decide(replace(given, other_profile=("published", open_)), T).label == "relocation"
    found = decide(replace(given, other_profile=("published", other)), T)
    assert found.label == "undetermined"
    assert (
        found.reasons[0] == "Depends on the profile: relocation with the one used, re-siting with published."
    )
    assert decide(replace(open_, other_profile=("published", other)), T).label == "undetermined"


@pytest.mark.parametrize(
    ("rank", "flag"),
    [
        ((0.4, 0.1, 0.7), "expansion"), ((0.24, 0.1, 0.4), "none"), ((0.4, -0.1, 0.9), "none"),
        ((-0.4, -0.7, -0.1), "contraction"), ((-0.24, -0.4, -0.1), "none"), ((0.25, 0.1, math.inf), "expansion"),
        ((math.nan, math.nan, math.nan), "none"),
    ],
)  # fmt: skip
def test_the_rank_flag_has_three_values_and_a_least_difference(
    rank: tuple[float, float, float], flag: str
) -> None:
    for given, label in ((evidence(), "no change"), (evidence(100, GONE), "relocation")):
        found = decide(replace(given, rank_difference=Interval(*rank)), T)
        assert (found.label, found.rank) == (label, flag)
        assert any("PR changed" in reason for reason in found.reasons) == (flag != "none")


def missing(verdict: Verdict) -> str:
    return " ".join(reason for reason in verdict.reasons if reason.startswith("Missing"))


def test_what_is_missing_is_what_would_have_decided() -> None:
    assert "probability of 0.9" in missing(decide(evidence(50), T))
    assert "D(0.5)" in missing(decide(evidence(100, HALF), T))
    assert "angle" in missing(decide(evidence(angle=cosine(5, 15)), T))
    assert "D(0.8)" in missing(decide(evidence(transfer=counts(80, 95)), T))
    assert "angle" in missing(decide(evidence(transfer=GONE, angle=NOTHING), T))
    assert missing(decide(evidence(), T)) == ""
    undefined = replace(
        evidence(angle=NOTHING), angle_reason="the first anchor's direction is not told from noise"
    )
    assert any("not told from noise" in reason for reason in decide(undefined, T).reasons)
    for given in (
        evidence(50),
        evidence(100, GONE),
        evidence(angle=NOTHING),
        evidence(missing=100),
        undefined,
    ):
        for reason in decide(given, T).reasons:
            assert reason.endswith(".")
            assert len(reason) < 180


def test_draws_that_all_lack_a_carrier() -> None:
    found = decide(evidence(missing=100), T)
    assert found.label == "undetermined"
    assert "All draws lack a carrier" in found.reasons[0]
    none = replace(evidence(), places=Places(*[np.array([])] * 6, np.array([], dtype=np.int64)))
    assert decide(none, T).label == "undetermined"


def test_every_threshold_is_a_setting_and_varied_alone() -> None:
    given = replace(evidence(93, counts(45, 95), cosine(6, 9)), rank_difference=Interval(0.2, 0.1, 0.3))
    rows = sensitivity(given, T)
    assert {row["setting"] for row in rows} == set(vars(T))
    labels = {(row["setting"], row["threshold"]): (row["label"], row["rank"]) for row in rows}
    for (name, value), found in labels.items():
        changed = decide(given, replace(T, **{name: value}))
        assert found == (changed.label, changed.rank)
    assert labels["rank_change", 0.1] == ("undetermined", "expansion")
    assert decide(given, replace(T, probability=0.8, replaced_below=0.7)).label == "relocation"
    assert (
        decide(given, replace(T, depth_shift=0.6, replaced_below=0.7, angle=5.0)).label
        == "replacement in place"
    )
    assert decide(given, replace(T, probability=0.8, replaced_below=0.3)).label == "re-siting"
    assert decide(given, replace(T, depth_shift=0.6, replaced_below=0.3, angle=5.0)).label == "drift only"
    assert decide(given, replace(T, depth_shift=0.6, kept_above=0.3)).label == "no change"
    strict = replace(T, depth_shift=0.6, kept_above=0.3)
    assert decide(given, replace(strict, control=0.99)).label == "undetermined"
    assert decide(given, replace(strict, control_above_random=0.95)).label == "undetermined"
    used = replace(T, depth_shift=0.22, angle=12.0)
    assert {(row["setting"], row["threshold"]) for row in sensitivity(given, used)} >= set(vars(used).items())


def test_evidence_survives_its_file(tmp_path: Path) -> None:
    """So that a verdict can be made again, with other thresholds, from a finished study."""
    given = replace(
        evidence(50, GONE, TURNED, missing=7),
        rank_difference=Interval(0.4, 0.1, math.inf),
        rank_reason="why",
        angle_reason="because",
        no_carrier=("", "no refusal"),
        excess_angle=Interval(6.8, 4.2, 9.4),
        other_profile=("published", evidence(transfer=None, angle=NOTHING)),
    )
    folder = StageFolder("verdict", "key", tmp_path, {})
    save_result(given, folder)
    back = load_result(Evidence, folder)
    assert decide(back, T) == decide(given, T)
    for each in fields(Places):
        np.testing.assert_array_equal(getattr(back.places, each.name), getattr(given.places, each.name))
    assert replace(back, places=given.places, other_profile=None) == replace(given, other_profile=None)
    assert back.other_profile is not None
    assert back.other_profile[1].transfer is None
    for changed in (replace(T, replaced_below=0.7), replace(T, depth_shift=0.6)):
        assert decide(back, changed) == decide(given, changed)


def test_seeds_that_agree_are_counted_and_never_pooled() -> None:
    def row(seed: int, end: int, label: str, rank: str = "none") -> dict[str, object]:
        return {"seed": seed, "arm": "r2d2", "from": 0, "to": end, "label": label, "rank": rank}

    found = agreement(
        [row(0, 5, "relocation"), row(1, 5, "no change", "expansion"), row(2, 5, "relocation", "contraction"),
         row(0, 9, "drift only")]
    )  # fmt: skip
    keys = ("to", "label", "agree", "seeds", "which", "expansions", "contractions")
    assert [tuple(r[key] for key in keys) for r in found] == [
        (5, "relocation", 2, 3, "0, 2", 1, 1),
        (5, "no change", 1, 3, "1", 1, 1),
        (9, "drift only", 1, 1, "0", 0, 0),
    ]


def test_every_obstacle_has_plain_words_in_the_report() -> None:
    obstructed = [
        replace(evidence(), no_carrier=("gap too small", "")),
        replace(evidence(), no_carrier=("", "no refusal")),
        evidence(transfer=None),
        evidence(transfer=counts(0, 6)),
        evidence(transfer=counts(5, 60, random=0.5)),
        evidence(0, GONE, STILL),
        replace(evidence(), other_profile=("published", evidence(0, KEPT, TURNED))),
        evidence(50, HALF, cosine(5, 15)),
        evidence(0, counts(80, 95), STILL),
    ]
    plain = []
    for given in obstructed:
        found = decide(given, T)
        assert found.label == "undetermined"
        plain.append([words for reason in found.reasons if (words := in_plain_words(reason, 0, 100))])
    assert [len(words) for words in plain] == [1, 1, 1, 1, 1, 1, 1, 3, 1]
    every = [one for words in plain for one in words]
    assert len(set(every)) == len(every) == len(PLAIN)
    assert not [one for one in every if re.search(r"anchor|carrier|profile|D\(", one)]
