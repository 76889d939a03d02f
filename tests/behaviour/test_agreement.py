"""Agreement with people: definitions by hand, published values, coverage of the corrected rate."""

import math

import numpy as np
import pytest

from caryatid.behaviour.judges.agreement import (
    JudgeErrors,
    agreement,
    cohen_kappa,
    if_the_judge_erred,
    rogan_gladen,
)
from caryatid.errors import InputError
from caryatid.stats import Rate, wilson


def test_kappa_of_a_published_table() -> None:
    # Cohen 1960, table 2: 200 cases, p_o = .70, p_e = .41
    table = np.array([[88, 14, 18], [10, 40, 10], [2, 6, 12]])
    found = np.concatenate([np.full(table[i, j], i) for i in range(3) for j in range(3)])
    labels = np.concatenate([np.full(table[i, j], j) for i in range(3) for j in range(3)])
    assert cohen_kappa(found, labels) == pytest.approx(0.492, abs=5e-4)
    assert cohen_kappa(["a"], ["a"]) != cohen_kappa(["a"], ["a"])  # one class only: undefined


def test_a_hand_counted_table() -> None:
    # 6 true positives, 2 false negatives, 1 false positive, 11 true negatives, 1 unscored
    found = [True] * 6 + [False] * 2 + [True] + [False] * 11 + [None]
    labels = [True] * 8 + [False] * 12 + [True]
    got = agreement(found, labels, range(21), rng=np.random.default_rng(0))
    assert (got.n, got.unscored) == (20, 1)
    assert got.accuracy == wilson(17, 20)
    assert got.sensitivity == wilson(6, 8)
    assert got.specificity == wilson(11, 12)
    assert got.balanced.value == pytest.approx((6 / 8 + 11 / 12) / 2)
    chance = (7 * 8 + 13 * 12) / 400
    assert got.kappa.value == pytest.approx((0.85 - chance) / (1 - chance))
    assert got.kappa.value == pytest.approx(cohen_kappa(found[:20], labels[:20]))
    assert got.balanced.lo < got.balanced.value < got.balanced.hi


def test_answers_to_one_prompt_count_as_a_cluster() -> None:
    rng = np.random.default_rng(1)
    right = rng.random(60) < 0.8
    labels = rng.random(60) < 0.5
    found = [bool(a == b) for a, b in zip(right, labels, strict=True)]
    apart = agreement(found, labels.tolist(), range(60), rng=np.random.default_rng(0))
    tripled = agreement(found * 3, labels.tolist() * 3, list(range(60)) * 3, rng=np.random.default_rng(0))
    assert tripled.kappa == pytest.approx(apart.kappa)
    assert tripled.accuracy.lo == pytest.approx(apart.accuracy.lo, abs=0.002)
    assert tripled.accuracy.lo < wilson(3 * int(right.sum()), 180).lo


def test_nothing_to_compare() -> None:
    got = agreement([None], [True], ["p"], rng=np.random.default_rng(0))
    assert (got.n, got.unscored) == (0, 1)
    assert math.isnan(got.accuracy.value)
    assert math.isnan(got.kappa.lo)
    with pytest.raises(InputError, match="differ in number"):
        agreement([True], [True, False], ["p"], rng=np.random.default_rng(0))


def _rate(value: float, n: int) -> Rate:
    return Rate(value, n, float("nan"), float("nan"))


def test_the_corrected_rate_inverts_the_judges_errors() -> None:
    for true in (0.1, 0.5, 0.9):
        seen = true * 0.9 + (1 - true) * (1 - 0.8)
        assert rogan_gladen(_rate(seen, 500), _rate(0.9, 80), _rate(0.8, 80)).value == pytest.approx(true)
    assert rogan_gladen(_rate(0.05, 100), _rate(0.9, 80), _rate(0.8, 80)).value == 0.0
    assert math.isnan(rogan_gladen(_rate(0.3, 100), _rate(0.5, 80), _rate(0.5, 80)).value)
    assert math.isnan(rogan_gladen(_rate(0.3, 0), _rate(0.9, 80), _rate(0.8, 80)).lo)


@pytest.mark.parametrize(("true", "se", "sp"), [(0.1, 0.95, 0.9), (0.4, 0.85, 0.8), (0.9, 0.98, 0.97)])
def test_the_corrected_interval_covers(true: float, se: float, sp: float) -> None:
    rng = np.random.default_rng(7)
    n, positives, negatives, runs = 200, 60, 60, 600
    covered = 0
    for _ in range(runs):
        seen = rng.binomial(n, true * se + (1 - true) * (1 - sp)) / n
        a, b = rng.binomial(positives, se) / positives, rng.binomial(negatives, sp) / negatives
        got = rogan_gladen(_rate(seen, n), _rate(a, positives), _rate(b, negatives))
        covered += got.lo <= true <= got.hi
    assert covered / runs >= 0.93


def _errors(sensitivity: float, specificity: float, n: int = 400) -> JudgeErrors:
    return JudgeErrors(_rate(sensitivity, n), _rate(specificity, n))


def test_a_rise_that_the_judges_errors_explain_does_not_survive() -> None:
    """True rate .2 on both sides; at b the judge takes a quarter of the others for refusals: judged .20 and .40."""
    a, b = wilson(80, 400), wilson(160, 400)
    erred = if_the_judge_erred(a, b, _errors(1.0, 1.0), _errors(1.0, 0.75))
    assert (erred.shown, erred.shown_if_erred, erred.survives) == ("higher", "not shown", False)
    assert erred.judged.value == pytest.approx(0.2)
    assert erred.corrected.value == pytest.approx(0.0, abs=1e-12)
    same = if_the_judge_erred(a, b, _errors(0.95, 0.95), _errors(0.95, 0.95))
    assert same.survives
    assert same.corrected.value == pytest.approx(0.2 / 0.9)
    assert if_the_judge_erred(b, a, _errors(0.95, 0.95), _errors(0.95, 0.95)).shown_if_erred == "lower"
    chance = if_the_judge_erred(a, a, _errors(0.5, 0.5), _errors(0.5, 0.5))
    assert (chance.shown, chance.shown_if_erred, chance.survives) == ("not shown", "unknown", False)


def test_the_interval_of_a_judged_difference_is_newcombes() -> None:
    """Newcombe (1998), method 10: 56/70 − 48/80 = .2, interval .0524 to .3339."""
    erred = if_the_judge_erred(wilson(48, 80), wilson(56, 70), _errors(1, 1), _errors(1, 1))
    assert erred.judged == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)


def test_a_corrected_difference_covers_the_true_one() -> None:
    """The judge errs otherwise on either side, each with 80 labels of each class."""
    rng = np.random.default_rng(3)
    true, kinds, runs, covered = (0.3, 0.5), ((0.95, 0.9), (0.85, 0.95)), 400, 0
    for _ in range(runs):
        rates, errors = [], []
        for share, (se, sp) in zip(true, kinds, strict=True):
            rates.append(wilson(rng.binomial(200, share * se + (1 - share) * (1 - sp)), 200))
            errors.append(JudgeErrors(*(wilson(rng.binomial(80, one), 80) for one in (se, sp))))
        got = if_the_judge_erred(*rates, *errors).corrected
        covered += got.lo <= true[1] - true[0] <= got.hi
    assert covered / runs >= 0.93
