"""Refusal cones: orthonormal directions of which every positive mixture carries refusal (arXiv 2502.17420).

A cone is found by gradient: ablating any of its directions takes refusal from harmful prompts, adding it brings refusal
to harmless ones, and ablation leaves the next token of the latter as it is. How many dimensions refusal has is then
asked of other prompts: the weakest edge of a cone must do more than a cone of one dimension less, shared out, can do.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import softplus

from ..errors import InputError
from ..geometry.carriers import CandidateScores
from ..geometry.directions import unit
from ..models.batch import batch_cost, left_pad, length_sorted_batches, with_backoff
from ..models.directional import Ablate, Add, orthonormal
from ..models.forward import batch_logits, last_logits, pad_id
from ..models.load import LoadedModel
from ..models.residual import intervening
from ..stats import Interval, bootstrap_indices, quantile_interval
from .locate import CandidateScorer, Site
from .scores import CandidateDirections, refusal_score, refusal_token_ids

SOFTNESS = 0.05  # share of the gap over which a loss bends from its slope to flat
ADDITION, RETAIN = 0.2, 1.0  # published weights, beside 1 of ablation
MIXTURES = 2  # directions inside a cone, beside its edges
TOLERANCE = 1e-4  # of the loss and of its slope: below, it counts as flat
BOOTSTRAP = 1000
_ABLATED, _ADDED, _RETAINED = 0, 1, 2
_FLOOR = 1e-3  # of the largest singular value: what is below spans nothing


def candidate_span(directions: Float[Tensor, "*site d"], most: int) -> Float[Tensor, "m d"]:
    """Orthonormal rows of the span of candidate directions, each of unit length, strongest first; at most `most`.

    A cone is looked for in here: along axes in which no candidate lies the loss is flat, and its gradient noise.

    Raises:
        InputError: every direction is zero.
    """
    rows = directions.reshape(-1, directions.shape[-1]).double()
    norms = rows.norm(dim=1)
    if not bool((norms > 0).any()):
        raise InputError("every candidate direction is zero", where="cone")
    _, values, axes = torch.linalg.svd(unit(rows[norms > 1e-8 * norms.max()]), full_matrices=False)
    return axes[: min(most, int((values > _FLOOR * values[0]).sum()))].float()


def mixtures(dimension: int, count: int, generator: torch.Generator) -> Float[Tensor, "rows dimension"]:
    """Coordinates of directions in a cone: its edges, then `count` random ones inside (|normal|, of unit length)."""
    inside = torch.randn(count if dimension > 1 else 0, dimension, generator=generator).abs()
    return torch.cat([torch.eye(dimension), unit(inside)])


class Slope(NamedTuple):
    """A loss and its gradient with respect to each direction."""

    value: float
    gradient: Float[Tensor, "directions d"]


class ConeLoss:
    """The three published losses at the first answer token, as a mean over some directions and over prompts.

    With h and s the mean refusal scores of the harmful and of the harmless prompts, g = h − s, and
    p(x) = τ·log(1 + exp(x/τ)), τ = 0.05:

        p((score of a harmful prompt with r̂ ablated − s)/g) + 0.2·p((h − score of a harmless one with ‖r‖·r̂ added)/g)
        + KL(as it is ‖ r̂ ablated) of a harmless prompt

    Published are cross-entropies of texts. At the first token these are log(1 + e^score) and log(1 + e^−score), which
    are flat as soon as the answer has turned; here they bend where the other kind of prompts is.

    Args:
        layer: block at whose input is added. length: ‖r‖ of the mean direction, which is what is added.
        batch_size: rows per forward and backward pass, halved where memory runs out.

    Raises:
        InputError: no prompts, unusable refusal tokens, or harmful prompts that are refused no more than harmless ones.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        harmful: Sequence[Sequence[int]],
        harmless: Sequence[Sequence[int]],
        refusal_tokens: Sequence[int],
        *,
        layer: int,
        length: float,
        batch_size: int,
    ) -> None:
        self.loaded, self.layer, self.length, self.batch_size = loaded, layer, length, batch_size
        self.tokens = refusal_token_ids(loaded, refusal_tokens)
        up, down = (last_logits(loaded, rows, batch_size=batch_size) for rows in (harmful, harmless))
        self.high, self.low = (float(refusal_score(one, self.tokens).mean()) for one in (up, down))
        if not self.high > self.low:
            raise InputError("harmful prompts are refused no more than harmless ones", where="cone")
        self.logprobs = down.log_softmax(dim=-1)
        n, m = len(harmful), len(harmless)
        self.seqs = [*harmful, *harmless, *harmless]
        self.kinds = torch.tensor([_ABLATED] * n + [_ADDED] * m + [_RETAINED] * m, device=loaded.device)
        self.weights = torch.tensor([1 / n] * n + [ADDITION / m] * m + [RETAIN / m] * m, device=loaded.device)

    def __call__(self, directions: Float[Tensor, "directions d"]) -> Slope:
        """Loss and gradient at unit directions."""
        leaf = directions.detach().float().to(self.loaded.device).requires_grad_(True)
        found, self.batch_size = with_backoff(lambda size: self._summed(leaf, size), self.batch_size)
        return found

    def _summed(self, leaf: Float[Tensor, "directions d"], size: int) -> Slope:
        value, gradient, count = 0.0, torch.zeros_like(leaf), len(leaf)
        lengths = [len(seq) for seq in self.seqs for _ in range(count)]
        for jobs in length_sorted_batches(lengths, size, batch_cost(leaf.device, 3)):
            job = torch.tensor(jobs, device=leaf.device)
            loss = self._of_rows(leaf[job % count], job // count) / count
            gradient += torch.autograd.grad(loss, leaf)[0]
            value += float(loss.detach())
        return Slope(value, gradient.cpu())

    def _of_rows(self, vectors: Float[Tensor, "rows d"], case: Int[Tensor, "rows"]) -> Float[Tensor, ""]:
        """The weighted sum of some prompts' losses, each under one direction."""
        kind = self.kinds[case]
        added = (kind == _ADDED).float()
        batch = left_pad([self.seqs[n] for n in case.tolist()], pad_id(self.loaded), self.loaded.device)
        at = torch.full_like(case, self.layer)
        ablate, add = Ablate(vectors[:, None], 1 - added), Add(self.length * vectors, at, added)
        with intervening(self.loaded.model, ablate, add):
            logits = batch_logits(self.loaded, batch, 1)[:, -1]
        score = refusal_score(logits, self.tokens)
        missing = torch.where(added == 1, self.high - score, score - self.low) / (self.high - self.low)
        refusing = SOFTNESS * softplus(missing / SOFTNESS)
        whole = kind == _RETAINED
        reference = self.logprobs[case[whole] - (len(self.seqs) - len(self.logprobs))]
        kl = (reference.exp() * (reference - logits[whole].log_softmax(dim=-1))).sum(dim=-1)
        weights = self.weights[case]
        return (weights * refusing)[~whole].sum() + (weights[whole] * kl).sum()


@dataclass(frozen=True)
class FittedCone:
    """A cone and its loss. `basis`: orthonormal rows, its edges."""

    basis: Float[Tensor, "dimension d"]
    loss: float


def fit_cone(
    loss: ConeLoss,
    space: Float[Tensor, "m d"],
    start: Float[Tensor, "dimension m"],
    mixed: Float[Tensor, "rows dimension"],
    *,
    steps: int,
) -> FittedCone:
    """The cone of lowest loss on the way down from `start`, whose rows are coordinates in `space`.

    L-BFGS with a line search, which stops where the loss no longer falls. (Published is AdamW, whose steps have one
    length whatever the slope, so that it turns on where the loss is flat.)
    """
    coordinates = start.detach().float().clone().requires_grad_(True)
    best: list[FittedCone] = []
    optimizer = torch.optim.LBFGS(
        [coordinates],
        max_iter=steps,
        tolerance_grad=TOLERANCE,
        tolerance_change=TOLERANCE,
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        basis = orthonormal(coordinates) @ space
        directions = mixed @ basis
        value, gradient = loss(directions)
        (coordinates.grad,) = torch.autograd.grad(directions, coordinates, gradient)
        if not best or value < best[-1].loss:
            best.append(FittedCone(basis.detach(), value))
        return value

    optimizer.step(closure)
    return best[-1]


def split_cones(
    cone: Float[Tensor, "edges d"], space: Float[Tensor, "m d"], draws: int, generator: torch.Generator
) -> Float[Tensor, "draws _ d"]:
    """Controls of one dimension more that hold nothing new: an edge b, each in turn, gives way to (b ± w)/√2.

    w is random in `space`, orthogonal to the cone. Of a cone without edges: random directions of the space.
    """
    found = []
    for draw in range(draws):
        w = torch.randn(len(space), generator=generator) @ space
        w = unit(w - (cone @ w) @ cone)
        if len(cone):
            turn = draw % len(cone)
            halves = torch.stack([cone[turn] + w, cone[turn] - w]) / math.sqrt(2)
            found.append(torch.cat([cone[:turn], cone[turn + 1 :], halves]))
        else:
            found.append(w[None])
    return torch.stack(found)


class EdgeEffects(NamedTuple):
    """What the edges of a cone do on prompts that it was not fitted to, in shares of the gap.

    Attributes:
        weakest: bypass effect of the edge that has the least. control: of controls, or of what one dimension less can
            share out, whichever is more. excess: the difference.
    """

    weakest: Interval
    control: Interval
    excess: Interval


def edge_effects(
    scores: CandidateScores,
    controls: Float[np.ndarray, "draws dimension harmful"],
    first: Float[np.ndarray, "harmful"],
    rng: np.random.Generator,
) -> EdgeEffects:
    """Effects of the edges `scores` beside controls; intervals resample harmful prompts and controls.

    k orthonormal directions hold together at most k − 1 of the squared length of k − 1 dimensions, so that one of them
    holds at most (k − 1)/k: with a linear reader no edge set of k − 1 dimensions has a weakest effect above
    (k − 1)/k of the effect of the best single direction.

    Args:
        controls: refusal scores of the harmful prompts with each control's edges ablated. first: with the single
            direction ablated.
    """
    edges, low = scores.bypass, scores.harmless.mean()
    share = 1 - 1 / len(edges)

    def found(
        prompts: Int[np.ndarray, "samples harmful"], drawn: Int[np.ndarray, "samples draws"]
    ) -> np.ndarray:
        h = scores.harmful[prompts].mean(axis=-1)  # [samples]

        def effect(values: np.ndarray) -> np.ndarray:
            return (h - values[..., prompts].mean(axis=-1)) / (h - low)

        weakest = effect(edges).min(axis=0)
        each = effect(controls).min(axis=1)  # [draws, samples]
        control = np.maximum(np.take_along_axis(each, drawn.T, axis=0).mean(axis=0), share * effect(first))
        return np.stack([weakest, control, weakest - control])

    n, draws = len(scores.harmful), len(controls)
    point = found(np.arange(n)[None], np.arange(draws)[None])[:, 0]
    sampled = found(bootstrap_indices(n, BOOTSTRAP, rng), bootstrap_indices(draws, BOOTSTRAP, rng))
    return EdgeEffects(*(quantile_interval(row, float(one)) for row, one in zip(sampled, point, strict=True)))


@dataclass(frozen=True)
class ConeSearch:
    """How cones are looked for.

    Attributes:
        starts: beginnings of the descent, the first one from what is known, the others random. steps: of each.
        draws: controls. least_effect: excess in shares of the gap that a dimension must show.
        kl_max: an edge whose ablation changes the next token of harmless prompts more does not count.
    """

    max_dimension: int = 5
    starts: int = 3
    steps: int = 20
    draws: int = 8
    least_effect: float = 0.1
    kl_max: float = 0.1


@dataclass(frozen=True)
class FoundCone:
    """A cone of one dimension, and what it does on held-out prompts.

    Attributes:
        mixed: mean bypass effect of directions inside; NaN with one dimension. induce: mean induce effect of the edges.
        kl: largest KL of an edge. kept: whether it is within the limit.
    """

    basis: Float[Tensor, "dimension d"] = field(repr=False)
    loss: float
    effects: EdgeEffects
    mixed: float
    induce: float
    kl: float
    kept: bool


def find_cones(
    scorer: CandidateScorer,
    loss: ConeLoss,
    site: Site,
    direction: Float[Tensor, "d"],
    space: Float[Tensor, "m d"],
    search: ConeSearch,
    seed: int,
) -> list[FoundCone]:
    """Cones of 1, 2, … dimensions, up to the first that is shown not to be one.

    Args:
        scorer: of prompts that `loss` does not hold. direction: the carrier's, at `site`; where the descent begins.
    """
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    along = unit(direction.float().cpu())
    found: list[FoundCone] = []
    basis, first = along[None][:0], None
    for dimension in range(1, min(search.max_dimension, len(space)) + 1):
        mixed = mixtures(dimension, MIXTURES, generator)
        fits = []
        for number in range(search.starts):
            start = torch.randn(dimension, len(space), generator=generator)
            start *= (start @ (space @ along)).sign()[:, None]  # adding it is to add refusal
            if number == 0:
                known = basis if len(basis) else along[None]
                start[: len(known)] = known @ space.T
            fits.append(fit_cone(loss, space, start, mixed, steps=search.steps))
        best = min(fits, key=lambda fit: fit.loss)
        controls = split_cones(basis, space, search.draws, generator)
        vectors = loss.length * torch.cat([mixed @ best.basis, controls.flatten(0, 1)])
        sites = ((site.position,) * len(vectors), (site.layer,) * len(vectors))
        scores = scorer.score(CandidateDirections(vectors, *sites), cosmic=False)
        edges, inside = scores.rows(range(dimension)), scores.bypass[dimension : len(mixed)]
        split = scores.bypass[len(mixed) :].reshape(search.draws, dimension, -1)
        first = edges.bypass[0] if first is None else first
        kl = float(edges.kl.mean(axis=1).max())
        one = FoundCone(
            best.basis,
            best.loss,
            edge_effects(edges, split, first, rng),
            float((scores.harmful.mean() - inside.mean()) / scores.gap) if inside.size else math.nan,
            float((edges.induce.mean() - scores.harmless.mean()) / scores.gap),
            kl,
            kl <= search.kl_max,
        )
        found.append(one)
        if not one.kept or one.effects.excess.hi < search.least_effect:
            break
        basis = best.basis
    return found


def cone_dimension(found: Sequence[FoundCone], least_effect: float) -> Interval:
    """How many dimensions in a row have an excess of `least_effect`; by the estimate, and by its bounds."""

    def count(bound: str) -> float:
        holding = (
            one.kept and getattr(one.effects.excess, bound) >= least_effect for one in found
        )  # in order of dimension
        return float(next((number for number, holds in enumerate(holding) if not holds), len(found)))

    return Interval(count("value"), count("lo"), count("hi"))
