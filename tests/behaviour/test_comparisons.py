"""Paired tests between arms at the same step."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest
from statsmodels.stats.multitest import multipletests
from test_metrics import ANSWER

from caryatid.behaviour.answers import AnswerRow
from caryatid.behaviour.comparisons import AnchorAnswers, compare_arms
from caryatid.errors import InputError
from caryatid.stats import paired_difference


def _answers(pattern: str, suite: str = "harmbench", attack: str = "direct") -> list[AnswerRow]:
    """`c` complied, `r` refused, `u` unscored."""
    verdicts = {"c": "full_compliance", "r": "full_refusal", "u": ""}
    return [
        replace(ANSWER, prompt_id=f"p{i}", verdict=verdicts[one], suite=suite, attack=attack)
        for i, one in enumerate(pattern)
    ]


def _compare(*anchors: AnchorAnswers) -> list[dict]:
    return compare_arms(anchors, draws=500, rng=np.random.default_rng(0))


def test_mcnemar_on_scored_pairs_and_holm_over_the_table() -> None:
    a = AnchorAnswers("sft", 50, 0, _answers("cccccccccru") + _answers("cccr", "xstest_safe", "none"))
    b = AnchorAnswers("r2d2", 50, 0, _answers("rrrrrrrrcrc") + _answers("crrr", "xstest_safe", "none"))
    first, second = _compare(a, b)
    assert (first["arm_a"], first["arm_b"], first["step_a"], first["metric"]) == (
        "sft",
        "r2d2",
        50,
        "compliance",
    )
    assert (first["n"], first["only_a"], first["only_b"]) == (10, 8, 0)
    assert first["difference"] == pytest.approx(0.8)
    newcombe = paired_difference(np.array([1] * 9 + [0]), np.array([0] * 8 + [1, 0]))
    assert (first["lo"], first["hi"]) == (newcombe.lo, newcombe.hi)
    assert 0.3 < first["lo"] < 0.8 < first["hi"] < 1
    assert first["p"] == pytest.approx(binomtest(8, 8, 0.5).pvalue)
    assert (second["suite"], second["metric"], second["n"]) == ("xstest_safe", "any_refusal", 4)
    assert second["difference"] == pytest.approx(-0.5)
    adjusted = multipletests([first["p"], second["p"]], method="holm")[1]
    assert [first["p_holm"], second["p_holm"]] == pytest.approx(list(adjusted))


def test_arms_that_never_differ_have_an_interval_all_the_same() -> None:
    same = _answers("ccccrrrr")
    (row,) = _compare(AnchorAnswers("a", 1, 0, same), AnchorAnswers("b", 1, 0, same))
    assert (row["difference"], row["p"]) == (0.0, 1.0)
    assert row["lo"] == pytest.approx(-row["hi"])
    assert row["hi"] > 0.05


def test_only_arms_at_the_same_step_and_seed_are_compared() -> None:
    anchors = [
        AnchorAnswers(arm, step, seed, _answers("cr"))
        for arm, step, seed in [
            ("sft", 50, 0),
            ("r2d2", 50, 0),
            ("r2d2", 100, 0),
            ("sft", 50, 1),
            ("base", 0, 0),
        ]
    ]
    rows = _compare(*anchors)
    assert [(row["arm_a"], row["arm_b"], row["step_a"], row["step_b"], row["seed"]) for row in rows] == [
        ("sft", "r2d2", 50, 50, 0)
    ]
    assert rows[0]["matched"] == "step"


def test_arms_are_also_compared_at_matched_benign_kl() -> None:
    kl = {("sft", 50): 0.010, ("sft", 100): 0.10, ("sft", 250): 0.30}
    kl |= {("r2d2", 50): 0.095, ("r2d2", 100): 0.080, ("r2d2", 250): 0.70, ("base", 0): 0.0}
    anchors = [AnchorAnswers(arm, step, 0, _answers("cr"), value) for (arm, step), value in kl.items()]
    rows = _compare(*anchors)
    found = [(row["matched"], row["arm_a"], row["step_a"], row["arm_b"], row["step_b"]) for row in rows]
    # .30 and .70 are each other's nearest, but too far apart; .080 is nearest to .10, whose nearest is .095
    assert found.count(("benign KL", "sft", 100, "r2d2", 50)) == 1
    assert [one for one in found if one[0] == "step"] == [
        ("step", "sft", s, "r2d2", s) for s in (50, 100, 250)
    ]
    assert len(found) == 4
    matched = next(row for row in rows if row["matched"] == "benign KL")
    assert (matched["benign_kl_a"], matched["benign_kl_b"]) == (0.10, 0.095)


def test_unknown_benign_kls_match_nothing() -> None:
    anchors = [AnchorAnswers(arm, step, 0, _answers("cr")) for arm, step in [("a", 1), ("b", 2)]]
    assert _compare(*anchors) == []
    assert _compare(anchors[0]._replace(benign_kl=0.0), anchors[1]._replace(benign_kl=0.0)) == []


def test_only_shared_prompts_are_paired() -> None:
    a = AnchorAnswers("a", 1, 0, _answers("cccc"))
    b = AnchorAnswers("b", 1, 0, _answers("rr"))
    assert _compare(a, b)[0]["n"] == 2
    assert _compare(a, AnchorAnswers("b", 1, 0, _answers("uuuu"))) == []
    assert _compare() == []


def test_several_answers_to_a_prompt_are_refused() -> None:
    twice = AnchorAnswers("a", 1, 0, _answers("c") * 2)
    with pytest.raises(InputError, match="several answers"):
        _compare(twice, AnchorAnswers("b", 1, 0, _answers("c")))


def test_harm_by_mcnemar_and_scores_by_the_paired_bootstrap() -> None:
    def judged(scores: list[float | None], judge: str) -> list[AnswerRow]:
        return [
            replace(row, harmful=None if one is None else int(one >= 0.5), harm_score=one, harm_judge=judge)
            for row, one in zip(_answers("c" * len(scores)), scores, strict=True)
        ]

    left = [1.0, 0.75, 0.5, 1.0, 0.25, 0.5, None, 0.5]
    right = [0.0, 0.25, 0.5, 0.5, 0.0, 0.0, 1.0, None]
    strong = "strongreject-rubric@m"
    rows = _compare(
        AnchorAnswers("a", 1, 0, judged(left, strong)), AnchorAnswers("b", 1, 0, judged(right, strong))
    )
    found = {row["metric"]: row for row in rows}
    assert list(found) == ["compliance", "harm", "score"]
    harm, score = found["harm"], found["score"]
    assert (harm["n"], harm["only_a"], harm["only_b"], harm["judge"]) == (6, 3, 0, strong)
    assert harm["p"] == pytest.approx(binomtest(3, 3, 0.5).pvalue)
    assert (score["n"], score["only_a"], score["only_b"], score["test"]) == (6, 5, 0, "paired bootstrap")
    assert score["difference"] == pytest.approx((1 + 0.5 + 0 + 0.5 + 0.25 + 0.5) / 6)
    assert score["p"] == pytest.approx(2 / 501)  # no draw of six has a mean of 0 or less but the six zeros
    adjusted = multipletests([row["p"] for row in rows], method="holm")[1]
    assert [row["p_holm"] for row in rows] == pytest.approx(list(adjusted))
    classified = [
        [
            replace(row, harm_score=None, harm_probability=row.harm_score)
            for row in judged(side, "harm-features@2")
        ]
        for side in (left, right)
    ]
    plain = _compare(AnchorAnswers("a", 1, 0, classified[0]), AnchorAnswers("b", 1, 0, classified[1]))
    assert [row["metric"] for row in plain] == ["compliance", "harm"]  # a probability is no score
