"""Logistic probes against an independent minimiser, their optimality, and cross-validation over prompts."""

import numpy as np
import pytest
from scipy.optimize import minimize

from caryatid.errors import InputError, NumericalError
from caryatid.geometry.probes import auc, cross_validated, fit_probe


def data(n: int = 60, d: int = 5, shift: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3 != 0
    x = rng.normal(size=(n, d)) * np.array([1.0, 5.0, 0.1, 2.0, 1.0][:d] + [1.0] * max(d - 5, 0)) + 3.0
    x[labels, 0] += shift
    return x, labels


@pytest.mark.parametrize("penalty", [0.1, 1.0, 10.0])
def test_a_probe_is_the_minimum_of_its_loss(penalty: float) -> None:
    """The loss written out in full dimensions, minimised without gradients given."""
    x, labels = data()
    z, y = (x - x.mean(0)) / x.std(0), np.where(labels, 1.0, -1.0)

    def loss(theta: np.ndarray) -> float:
        return float(
            np.log1p(np.exp(-y * (z @ theta[:-1] + theta[-1]))).sum() + penalty / 2 * theta[:-1] @ theta[:-1]
        )

    found = minimize(
        loss, np.zeros(6), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12, "maxiter": 20000}
    )
    expected = z @ found.x[:-1] + found.x[-1]
    probe = fit_probe(x, labels, penalty)
    assert probe.scores(x) == pytest.approx(expected, abs=1e-3)
    own = np.append(probe.weights * x.std(0), probe.bias + x.mean(0) @ probe.weights)
    assert loss(own) <= found.fun + 1e-6


def test_fewer_prompts_than_dimensions_are_solved_in_their_span() -> None:
    """The gradient in full dimensions is zero there."""
    x, labels = data(n=12, d=40)
    probe = fit_probe(x.astype(np.float32), labels)
    z, y = (x - x.mean(0)) / x.std(0), np.where(labels, 1.0, -1.0)
    w, b = probe.weights * x.std(0), probe.bias + x.mean(0) @ probe.weights
    pull = -y / (1 + np.exp(y * (z @ w + b)))
    assert np.abs(z.T @ pull + w).max() < 1e-4
    assert abs(pull.sum()) < 1e-4


def test_an_axis_that_never_moves_carries_no_weight() -> None:
    x, labels = data()
    x[:, 1] = 7.0
    probe = fit_probe(x, labels)
    assert probe.weights[1] == pytest.approx(0.0, abs=1e-9)
    assert np.isfinite(probe.bias)


def test_cross_validation_reads_what_is_there_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    seen = cross_validated(*data(n=150, d=20, shift=4.0), rng)
    assert seen.accuracy > 0.9
    assert seen.auc > 0.95
    blind = [cross_validated(*data(n=60, d=200, shift=0.0, seed=seed), rng) for seed in range(8)]
    assert np.mean([one.accuracy for one in blind]) == pytest.approx(0.5, abs=0.06)
    assert np.mean([one.auc for one in blind]) == pytest.approx(0.5, abs=0.08)


def test_a_prompt_s_score_is_of_a_probe_that_has_not_seen_it() -> None:
    """As many folds as the rarer kind has prompts: each of these is left out alone, with some of the others."""
    x, labels = data(n=30)
    found = cross_validated(x, labels, np.random.default_rng(3), folds=10)
    rng, fold = np.random.default_rng(3), np.empty(30, dtype=int)
    for kind in (True, False):
        members = np.flatnonzero(labels == kind)
        fold[rng.permutation(members)] = np.arange(len(members)) % 10
    for number in range(10):
        inside = fold != number
        assert sum(~labels[~inside]) == 1
        assert found.scores[~inside] == pytest.approx(fit_probe(x[inside], labels[inside]).scores(x[~inside]))


def test_area_under_the_curve_by_hand() -> None:
    scores, labels = np.array([3.0, 1.0, 2.0, 1.0]), np.array([True, True, False, False])
    assert auc(scores, labels) == pytest.approx((1 + 1 + 0 + 0.5) / 4)


def test_what_cannot_be_fitted_is_refused() -> None:
    x, labels = data(n=9)
    with pytest.raises(InputError, match="both kinds"):
        fit_probe(x, np.ones(9, dtype=bool))
    with pytest.raises(InputError, match="penalty"):
        fit_probe(x, labels, 0.0)
    with pytest.raises(InputError, match="4 folds of prompts of which one kind has 3"):
        cross_validated(x, labels, np.random.default_rng(0), folds=4)
    x[0, 0] = np.inf
    with pytest.raises(NumericalError, match="finite"):
        fit_probe(x, labels)
