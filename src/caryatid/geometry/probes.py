"""Linear probes: where refusal, or harm, can be *read*, beside where it is causal (logistic regression, Cox 1958)."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from ..errors import InputError, NumericalError


@dataclass(frozen=True)
class Probe:
    """A logistic probe: P(label) = σ(⟨weights, x⟩ + bias)."""

    weights: Float[np.ndarray, "d"]
    bias: float

    def scores(self, activations: Float[np.ndarray, "prompts d"]) -> Float[np.ndarray, "prompts"]:
        """Log-odds of each activation."""
        found: NDArray = activations.astype(np.float64) @ self.weights + self.bias
        return found


def fit_probe(
    activations: Float[np.ndarray, "prompts d"], labels: Bool[np.ndarray, "prompts"], penalty: float = 1.0
) -> Probe:
    """The minimum of Σ log(1 + exp(−y (⟨w, z⟩ + b))) + penalty/2 ‖w‖² over w and b; z standardised, y = ±1.

    With fewer prompts than dimensions it is solved in the span of the prompts, where the minimum lies.

    Args:
        penalty: as 1/C of scikit-learn's LogisticRegression.

    Raises:
        InputError: only one kind of label, or a penalty that is not positive. NumericalError: an activation is not
            finite.
    """
    if labels.all() or not labels.any() or not penalty > 0:
        raise InputError("a probe needs prompts of both kinds and a penalty above 0", where="probe")
    if not np.isfinite(activations).all():
        raise NumericalError("an activation is not finite", where="probe")
    x = activations.astype(np.float64)
    centre, spread = x.mean(axis=0), x.std(axis=0)
    spread = np.where(spread == 0, 1.0, spread)
    z = (x - centre) / spread
    left, values, right = np.linalg.svd(z, full_matrices=False)
    kept = values > values.max(initial=0.0) * max(z.shape) * np.finfo(np.float64).eps
    inner, axes = left[:, kept] * values[kept], right[kept]  # z = inner @ axes
    signs = np.where(labels, 1.0, -1.0)

    def objective(theta: NDArray) -> tuple[float, NDArray]:
        margins = signs * (inner @ theta[:-1] + theta[-1])
        pull = -signs * expit(-margins)
        value = np.logaddexp(0.0, -margins).sum() + penalty / 2 * theta[:-1] @ theta[:-1]
        return float(value), np.append(inner.T @ pull + penalty * theta[:-1], pull.sum())

    start = np.zeros(inner.shape[1] + 1)
    limits = {"maxiter": 1000, "ftol": 1e-12, "gtol": 1e-8}
    found = minimize(objective, start, jac=True, method="L-BFGS-B", options=limits)
    weights = (found.x[:-1] @ axes) / spread
    return Probe(weights, float(found.x[-1] - centre @ weights))


@dataclass(frozen=True)
class ProbeScore:
    """How well a probe reads labels of prompts that it was not fitted to.

    Attributes:
        accuracy: balanced: the mean of both kinds' shares that are read rightly. auc: area under the ROC curve.
        scores: each prompt's log-odds by the probe of its fold.
    """

    accuracy: float
    auc: float
    scores: Float[np.ndarray, "prompts"]


def cross_validated(
    activations: Float[np.ndarray, "prompts d"],
    labels: Bool[np.ndarray, "prompts"],
    rng: np.random.Generator,
    *,
    folds: int = 5,
    penalty: float = 1.0,
) -> ProbeScore:
    """Probes fitted with one fold of prompts left out each, and read on it; folds hold both kinds in their shares.

    Raises:
        InputError: fewer than two folds, or a kind with fewer prompts than folds. NumericalError: as `fit_probe`.
    """
    fewest = int(min(labels.sum(), (~labels).sum()))
    if folds < 2 or fewest < folds:
        raise InputError(
            f"{folds} folds of prompts of which one kind has {fewest}",
            where="probe",
            remedy="Use at least 2 folds, and no more than the rarer kind has prompts.",
        )
    fold = np.empty(len(labels), dtype=np.int64)
    for kind in (True, False):
        members = np.flatnonzero(labels == kind)
        fold[rng.permutation(members)] = np.arange(len(members)) % folds
    scores = np.empty(len(labels))
    for number in range(folds):
        inside = fold != number
        scores[~inside] = fit_probe(activations[inside], labels[inside], penalty).scores(activations[~inside])
    right = (scores > 0) == labels
    return ProbeScore(float(right[labels].mean() + right[~labels].mean()) / 2, auc(scores, labels), scores)


def auc(scores: Float[np.ndarray, "prompts"], labels: Bool[np.ndarray, "prompts"]) -> float:
    """P(a positive's score is above a negative's) + half P(they are equal), over all pairs (Mann & Whitney 1947)."""
    above = scores[labels][:, None] - scores[~labels][None]
    return float(((above > 0) + 0.5 * (above == 0)).mean())
