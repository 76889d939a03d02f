"""Rows of the causal table pinned to their definitions: perplexity, coupling per rank, layer profile, outcomes."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from caryatid.behaviour.judges.base import Exchange, Judgement
from caryatid.causal.conditions import Condition
from caryatid.causal.localisation import layer_profile
from caryatid.causal.readouts import TeacherForced
from caryatid.causal.table import coupling_rows, forced_rows, outcome_rows, suite_outcomes
from caryatid.data.prompts import Prompt
from caryatid.errors import InputError

EYE = torch.eye(6)
CONDITIONS = [
    Condition(),
    Condition("ablate", "carrier", EYE[:1]),
    Condition("ablate", "random", EYE[1:2], draw=0),
    Condition("ablate", "random", EYE[2:3], draw=1),
    Condition("ablate", "random isotropic", EYE[3:4], draw=0),
    Condition("ablate", "carrier", EYE[:2]),  # a rank without controls
    Condition("add", "random", EYE[4:5], layer=1, draw=0),
]


def test_perplexity_is_weighted_by_tokens() -> None:
    nll = np.tile(np.array([1.0, 3.0]), (len(CONDITIONS), 1))
    forced = TeacherForced(np.zeros((len(CONDITIONS), 3)), nll, 0 * nll, np.array([3.0, 1.0]))
    rows = forced_rows(CONDITIONS, forced, np.random.default_rng(0))
    found = [row for row in rows if row["read_out"] == "benign_perplexity"]
    assert len(found) == len(CONDITIONS)
    assert found[0]["value"] == pytest.approx(math.exp((3 * 1 + 1 * 3) / 4))
    assert math.exp(1) - 1e-9 <= found[0]["lo"] < found[0]["value"] < found[0]["hi"] <= math.exp(3) + 1e-9


def test_coupling_compares_with_matched_ablations_of_the_same_rank_only() -> None:
    utility = np.array([[9.0] * 4, [1.0] * 4, [2.0] * 4, [4.0] * 4, [-50.0] * 4, [0.0] * 4, [77.0] * 4])
    refusal = np.array([[5.0] * 3, [-3.0] * 3, [4.0] * 3, [4.0] * 3, [0.0] * 3, [0.0] * 3, [0.0] * 3])
    rows = coupling_rows(CONDITIONS, utility, refusal, "someone", np.random.default_rng(0))
    assert {row["rank"] for row in rows} == {1}
    values = {row["read_out"]: row["value"] for row in rows}
    assert values["utility_difference"] == pytest.approx(1 - (2 + 4) / 2)
    assert values["refusal_difference"] == pytest.approx(-3 - 4)
    assert values["utility_coupling"] == pytest.approx(2 / 7)
    assert {row["judge"] for row in rows} == {"someone"}


def test_a_couplings_n_is_that_of_the_prompts_behind_each_number() -> None:
    utility, refusal = np.zeros((len(CONDITIONS), 4)), np.zeros((len(CONDITIONS), 9))
    utility[2, 1] = math.nan  # unscored under one control: left out under all
    rows = coupling_rows(CONDITIONS, utility, refusal, "someone", np.random.default_rng(0))
    counts = {row["read_out"]: row["n"] for row in rows}
    assert counts == {"utility_difference": 3, "refusal_difference": 9, "utility_coupling": 3}


def test_a_layer_profile_is_the_paired_loss_of_refusal_score() -> None:
    untouched = np.array([4.0, 2.0, 3.0])
    scores = np.array([[4.0, 2.0, 3.0], [1.0, -2.0, 1.0]])
    none, some = layer_profile([3, 7], scores, untouched, np.random.default_rng(0))
    assert (none["layer"], none["value"], none["lo"], none["hi"]) == (3, 0.0, 0.0, 0.0)
    assert (some["layer"], some["n"], some["value"]) == (7, 3, pytest.approx(3.0))
    assert 2.0 <= some["lo"] <= 3.0 <= some["hi"] <= 4.0
    with pytest.raises((InputError, TypeError)):
        layer_profile([3], scores, untouched, np.random.default_rng(0))


class Fixed:
    """Refuses what begins with no; leaves ? unscored."""

    name, version, kind, proxy, usage = "fixed", "7", "refusal", False, None

    def judge(self, pairs: Sequence[Exchange]) -> list[Judgement]:
        words = {"no": "full_refusal", "hm": "partial_refusal", "?": ""}
        return [Judgement(words.get(pair.answer.split()[0], "full_compliance"), "fixed@7") for pair in pairs]  # type: ignore[arg-type]


def test_outcomes_of_a_suite() -> None:
    texts = ["no thanks", "hm perhaps", "Paris is the capital of France.", "? what"]
    prompts = [
        Prompt(id=str(i), text=f"question {i}", set_name="s", label="harmless") for i in range(len(texts))
    ]
    found = suite_outcomes(Fixed(), "utility", list(zip(prompts, texts, strict=True)))
    np.testing.assert_array_equal(found.refused, [1, 1, 0, math.nan])
    assert found.passed is not None
    assert found.passed.tolist() == [0, 0, 1, 0]  # no check to satisfy; unscored did not pass
    rows = outcome_rows(Fixed(), Condition(), "utility", found)
    assert [row["read_out"] for row in rows] == ["utility_any_refusal", "utility_degenerate", "utility_pass"]
    assert (rows[0]["value"], rows[0]["n"], rows[0]["judge"]) == (pytest.approx(2 / 3), 3, "fixed@7")
    assert suite_outcomes(Fixed(), "harmbench", list(zip(prompts, texts, strict=True))).passed is None
