"""Nulls through the same decision: planted pairs in which nothing changed get no other label, and some are told so."""

import numpy as np
import pytest
import torch

from caryatid.geometry.rank import participation_ratio
from caryatid.study.decision import Thresholds, decide, findings
from caryatid.study.nulls import (
    Planted,
    disjoint_halves,
    label_counts,
    paired_null,
    planted_evidence,
    planted_rows,
    planted_transfer,
    redrawn_null,
)

T = Thresholds()


@pytest.mark.parametrize("pr", [1.0, 1.5, 3.0])
@pytest.mark.parametrize("degrees", [0.0, 30.0, 120.0])
def test_planted_rows_are_what_they_say(pr: float, degrees: float) -> None:
    rows, plain = planted_rows(pr, degrees), planted_rows(1.0, 0.0)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1)
    assert participation_ratio(torch.tensor(rows)) == pytest.approx(pr)
    one, two = rows.mean(axis=0), plain.mean(axis=0)
    cosine = one @ two / np.linalg.norm(one) / np.linalg.norm(two)
    assert np.degrees(np.arccos(np.clip(cosine, -1, 1))) == pytest.approx(degrees, abs=1e-5)


def test_planted_control_is_the_ratio_above_random() -> None:
    counts = planted_transfer(Planted(control=0.6, refusals=40000), np.random.default_rng(0))
    star = [counts.above_random(which).value for which in ("old", "own")]
    assert star[0] / star[1] == pytest.approx(0.6, abs=0.02)
    assert counts.random.value == pytest.approx(0.05, abs=0.03)


def counted(truth: Planted, draws: int) -> dict[str, int]:
    rng = np.random.default_rng(1)
    return label_counts(decide(planted_evidence(truth, rng), T).label for _ in range(draws))


def test_the_same_prompts_and_no_change_are_told_to_be_no_change() -> None:
    found = counted(paired_null(Planted(turn=45, move=0.5, control=0)), 100)
    assert found["no change"] >= 80
    assert found["no change"] + found["undetermined"] == 100


@pytest.mark.parametrize("prompts", [24, 128])
def test_prompts_drawn_anew_show_no_change_or_nothing(prompts: int) -> None:
    found = counted(redrawn_null(Planted(prompts=prompts, refusals=64)), 100)
    assert found["no change"] + found["undetermined"] >= 95


def test_a_large_change_is_told() -> None:
    found = counted(Planted(turn=45, move=0.5, control=0), 20)
    assert found["relocation"] >= 16


def test_halves_share_no_prompt_and_have_the_same_strata_but_for_the_odd_ones() -> None:
    strata = ["a"] * 5 + ["b"] * 4 + ["c"] + ["d"]
    one, two = disjoint_halves(strata, np.random.default_rng(0))
    assert not set(one) & set(two)
    assert len(one) == len(two) == 5  # three strata are odd: one prompt is in neither
    for name in "abcd":
        assert abs(sum(strata[i] == name for i in one) - sum(strata[i] == name for i in two)) <= 1
    assert set(one) != set(disjoint_halves(strata, np.random.default_rng(1))[0])


def test_counts_name_every_label() -> None:
    found = label_counts(["no change", "no change"])
    assert found["no change"] == 2
    assert sum(found.values()) == 2
    assert len(found) == 6


def test_a_planted_pair_without_control_has_no_verdict() -> None:
    found = planted_evidence(Planted(own=0.2, control=0, move=0.5, turn=90), np.random.default_rng(3))
    assert not findings(found, T).controls
    assert decide(found, T).label == "undetermined"
