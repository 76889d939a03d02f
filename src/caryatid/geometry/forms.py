"""Quadratic forms of group means, free of the noise of the means, with their sampling covariance.

Everything that compares directions between anchors is made of inner products ⟨m_g, m_h⟩ of group means. With sampled
prompts the plain product of a mean with itself holds the noise of the mean; averaged over splits of a group into
disjoint halves it does not, and that average has a closed form: a U-statistic (Hoeffding 1948).

The covariance is the delete-one jackknife's (Tukey 1958) by group, minus what the jackknife counts too much: of a
statistic with a part that is quadratic in the noise it counts that part at least twice (Efron & Stein 1981).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ..errors import InputError, NumericalError

PAIRS = ((0, 0), (0, 1), (1, 1))  # which anchors a form joins: a with a, a with b, b with b
AA, AB, BB = range(3)


class Form(NamedTuple):
    """Σ_gh A_gh ⟨m_g, m_h⟩, of groups' means at the anchors that `anchors` names (`AA`, `AB` or `BB`); A symmetric."""

    anchors: int
    weights: Float[np.ndarray, "groups groups"]


class Estimates(NamedTuple):
    """Values of several forms, and their covariance.

    Attributes:
        values: without the noise of the means. plain: with it.
        jackknife: the jackknife's covariance. corrected: the same without what the jackknife counts too much.
        second: the part of the covariance that is quadratic in the noise, counted once.
    """

    values: Float[np.ndarray, "forms"]
    plain: Float[np.ndarray, "forms"]
    jackknife: Float[np.ndarray, "forms forms"]
    corrected: Float[np.ndarray, "forms forms"]
    second: Float[np.ndarray, "forms forms"]

    def covariance(self, left: Float[np.ndarray, "forms"], right: Float[np.ndarray, "forms"]) -> float:
        """Covariance of two linear combinations of the forms."""
        return float(left @ self.corrected @ right)

    def variance(self, combination: Float[np.ndarray, "forms"]) -> float:
        """Variance of a linear combination of the forms, at least its part that is quadratic in the noise."""
        least = float(combination @ self.second @ combination)
        return max(self.covariance(combination, combination), least, 0.0)


@dataclass(frozen=True)
class Groups:
    """Items (prompts) in groups, each with a vector at anchor a and one at anchor b.

    Items that were measured at one anchor only have a zero vector at the other, and groups of their own.

    Attributes:
        index: the group of each item, 0 … G − 1; every group has at least two items.
    """

    a: Float[np.ndarray, "items d"]
    b: Float[np.ndarray, "items _"]
    index: Int[np.ndarray, "items"]

    def __post_init__(self) -> None:
        if self.a.shape != self.b.shape or len(self.index) != len(self.a) or not len(self.a):
            raise InputError("items, vectors and groups do not fit together", where="groups")
        if not (np.isfinite(self.a).all() and np.isfinite(self.b).all()):
            raise NumericalError("activations are not finite", where="groups")
        if self.counts.min() < 2:
            raise InputError("a group needs at least two items", where="groups")

    @cached_property
    def counts(self) -> Float[np.ndarray, "groups"]:
        return np.bincount(self.index).astype(np.float64)

    @cached_property
    def members(self) -> Float[np.ndarray, "groups items"]:
        return (self.index == np.arange(len(self.counts))[:, None]).astype(np.float64)

    @cached_property
    def means(self) -> list[Float[np.ndarray, "groups d"]]:
        return [self.members @ side / self.counts[:, None] for side in (self.a, self.b)]

    @cached_property
    def residuals(self) -> list[Float[np.ndarray, "items d"]]:
        return [side - mean[self.index] for side, mean in zip((self.a, self.b), self.means, strict=True)]

    def products(self, anchors: int) -> Float[np.ndarray, "groups groups"]:
        """⟨m_g, m_h⟩ without the noise of the means, symmetric in the groups (an unbiased estimate)."""
        return self._plain(anchors) - np.diag(self._scatter(anchors) / self.counts)

    def _plain(self, anchors: int) -> Float[np.ndarray, "groups groups"]:
        u, v = PAIRS[anchors]
        products = self.means[u] @ self.means[v].T
        return (products + products.T) / 2

    def _own(self, anchors: int) -> Float[np.ndarray, "items"]:
        u, v = PAIRS[anchors]
        return np.einsum("id,id->i", self.residuals[u], self.residuals[v])

    def _scatter(self, anchors: int) -> Float[np.ndarray, "groups"]:
        """Trace of the sample (cross-)covariance in each group."""
        return self.members @ self._own(anchors) / (self.counts - 1)

    def _left_out(self, form: Form) -> Float[np.ndarray, "items"]:
        """How much the form changes when one item is left out of its group's mean."""
        u, v = PAIRS[form.anchors]
        n, own = self.counts[self.index], self._own(form.anchors)
        row = form.weights[self.index]  # [items, groups]
        toward = [row @ self.means[side] for side in (v, u)]
        linear = sum(
            np.einsum("id,id->i", self.residuals[side], there)
            for side, there in zip((u, v), toward, strict=True)
        )
        scatter = self._scatter(form.anchors)[self.index]
        with np.errstate(invalid="ignore", divide="ignore"):
            without = np.where(n > 2, ((n - 1) * scatter - n * own / (n - 1)) / (n - 2), scatter)
        itself = form.weights.diagonal()[self.index]
        return -linear / (n - 1) + itself * (own / (n - 1) ** 2 - without / (n - 1) + scatter / n)

    @cached_property
    def _second(self) -> Float[np.ndarray, "3 3 groups groups"]:
        """E[κ κ'] of two items' residual products, by the groups they come from; κ joins the anchors of `PAIRS`."""
        kernels = []
        for u, v in PAIRS:
            product = self.residuals[u] @ self.residuals[v].T
            kernels.append((product + product.T) / 2)
        n = self.counts
        found = np.empty((3, 3, len(n), len(n)))
        within = (1 - 1 / n) ** 2 + 1 / n**2 - 2 / (n**2 * (n - 1))  # exact for Gaussian noise
        traces = [self._scatter(anchors) for anchors in range(3)]
        for k in range(3):
            for m in range(k, 3):
                product = kernels[k] * kernels[m]
                sums = self.members @ product @ self.members.T
                cross = sums / np.outer(n - 1, n - 1)
                same = (np.diag(sums) - self.members @ np.diag(product)) / (n * (n - 1))
                with np.errstate(invalid="ignore", divide="ignore"):
                    same = (same - traces[k] * traces[m] / n**2) / within
                others = (cross.sum(axis=1) - np.diag(cross)) / max(len(n) - 1, 1)
                np.fill_diagonal(cross, np.where(n > 2, same, others))
                found[k, m] = found[m, k] = cross
        return found

    def estimate(self, forms: Sequence[Form]) -> Estimates:
        """The forms' values without noise bias, and their sampling covariance over items within groups."""
        values, plain = (
            np.array([float((form.weights * products(form.anchors)).sum()) for form in forms])
            for products in (self.products, self._plain)
        )
        changes = np.stack([self._left_out(form) for form in forms])  # [forms, items]
        centred = changes - (changes @ self.members.T / self.counts)[:, self.index]
        scale = ((self.counts - 1) / self.counts)[self.index]
        jackknife = (centred * scale) @ centred.T
        n = self.counts
        once = 2 / np.outer(n, n)
        np.fill_diagonal(once, 2 / (n * (n - 1)))
        extra = once.copy()  # what the jackknife counts beyond once
        np.fill_diagonal(extra, once.diagonal() * np.where(n > 2, n / np.maximum(n - 2, 1), 1.0))
        second, excess = (np.empty_like(jackknife) for _ in range(2))
        for i, one in enumerate(forms):
            for j, other in enumerate(forms):
                part = one.weights * other.weights * self._second[one.anchors, other.anchors]
                second[i, j], excess[i, j] = float((once * part).sum()), float((extra * part).sum())
        return Estimates(values, plain, jackknife, jackknife - excess, second)
