"""Planted pairs of anchors with a known truth, and how often each label comes out of them (protocol §7: nulls).

A rule for verdicts is worth its rate of false labels. A planted pair has prompts with noisy activations, a carrier's
place in every resample, and refusals under ablation, all from a truth that is known; it goes through the same `decide`
as a measured pair.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import stats as scipy_stats

from ..causal.transfer import TransferCounts, transfer_counts
from ..geometry.rank import SiteActivations
from ..geometry.spread import compare_spread
from ..geometry.turn import corrected_angle
from ..stats import Interval
from .decision import LABELS, Evidence, Places

WIDTH, KINDS, LAYERS = 64, 8, 24


@dataclass(frozen=True)
class Planted:
    """The truth of a pair a → b, and how it is measured.

    Attributes:
        turn: of the mean direction, degrees. move: of the carrier, in shares of the layers (earlier at b).
        control: T*[a, b]/T*[b, b]. pr_a, pr_b: participation ratio of the categories' directions.
        scale: of all directions at b; the noise stays.
        prompts: of each kind. redrawn: other prompts, subspaces and resamples at b than at a.
        shared: correlation of a prompt's noise between the anchors, if they have the same prompts.
        noise: length of a prompt's noise over that of a category's direction at a (1.9: a small backbone).
        refusals: at b. own: T[b, b]. random: mean share that random subspaces remove.
        resamples, draws: re-extraction resamples, and draws from each.
    """

    turn: float = 0.0
    move: float = 0.0
    control: float = 1.0
    pr_a: float = 1.0
    pr_b: float = 1.0
    scale: float = 1.0
    prompts: int = 128
    redrawn: bool = False
    shared: float = 0.8
    noise: float = 1.9
    refusals: int = 96
    own: float = 0.9
    random: float = 0.05
    subspaces: int = 8
    resamples: int = 100
    draws: int = 10


@dataclass(frozen=True)
class Geometry:
    """What the activations say: the cosine of the corrected angle and the difference in PR."""

    cosine: Interval
    rank_difference: Interval


def planted_rows(pr: float, degrees: float) -> Float[np.ndarray, "categories d"]:
    """Unit rows of equal cosines with a participation ratio, whose mean is turned by an angle from the first axis."""
    cosine = math.sqrt((KINDS / pr - 1) / (KINDS - 1))
    corners = np.eye(KINDS) - 1 / KINDS  # a simplex: equal lengths, equal angles, mean zero
    corners /= np.linalg.norm(corners, axis=1, keepdims=True)
    rows = np.zeros((KINDS, WIDTH))
    along = math.sqrt((1 + (KINDS - 1) * cosine) / KINDS)  # of every row, along the mean direction
    rows[:, 0] = along * math.cos(math.radians(degrees))
    rows[:, 1] = along * math.sin(math.radians(degrees))
    rows[:, 2 : 2 + KINDS] = math.sqrt(max(0.0, 1 - along**2)) * corners
    return rows


def planted_sites(truth: Planted, rng: np.random.Generator) -> tuple[SiteActivations, SiteActivations]:
    """Activations of both anchors; the prompts' categories are `planted_labels`."""
    n, labels = truth.prompts, planted_labels(truth)
    shared = 0.0 if truth.redrawn else truth.shared
    size, common = truth.noise / math.sqrt(WIDTH), rng.normal(size=(2, n, WIDTH))
    sites = []
    for rows in (planted_rows(truth.pr_a, 0.0), truth.scale * planted_rows(truth.pr_b, truth.turn)):
        own = rng.normal(size=(2, n, WIDTH))
        found = size * (math.sqrt(shared) * common + math.sqrt(1 - shared) * own)
        found[0] += rows[labels]
        sites.append(SiteActivations(*(torch.from_numpy(side) for side in found)))
    return sites[0], sites[1]


def planted_labels(truth: Planted) -> Int[np.ndarray, "prompts"]:
    """The category of each harmful prompt: equally many in each, as far as they go."""
    return np.arange(truth.prompts) * KINDS // truth.prompts


def planted_geometry(truth: Planted, rng: np.random.Generator) -> Geometry:
    """The measured angle and difference in PR."""
    a, b = planted_sites(truth, rng)
    labels = [str(label) for label in planted_labels(truth)]
    turned = corrected_angle(a, b, None if truth.redrawn else labels, paired=not truth.redrawn)
    spread = compare_spread(a, b, labels, categories_b=labels if truth.redrawn else None)
    return Geometry(turned.cosine, spread.difference)


def planted_places(truth: Planted, rng: np.random.Generator) -> Places:
    """Draws of the carrier's place: whole layers that scatter by 1 at 24 prompts and by less with more."""
    scatter, size = math.sqrt(24 / truth.prompts), truth.resamples * truth.draws
    resample = np.repeat(np.arange(truth.resamples), truth.draws)
    base, common = 17.0, rng.normal(size=truth.resamples)

    def draw(centre: float, blur: float, step: bool) -> np.ndarray:
        again = rng.normal(size=truth.resamples)
        mixed = again if truth.redrawn else math.sqrt(0.5) * common + math.sqrt(0.5) * again
        layers = centre + blur * scatter * (rng.normal() + mixed[resample] + 0.5 * rng.normal(size=size))
        return np.asarray((np.round(layers) if step else layers) / LAYERS)

    found = []
    for moved in (0.0, truth.move * LAYERS):
        here = base - moved
        found.append((draw(here, 0.6, True), draw(here, 0.4, False), draw(here + 1, 2.0, True)))
    (depth_a, centre_a, argmin_a), (depth_b, centre_b, argmin_b) = found
    return Places(depth_a, depth_b, centre_a, centre_b, argmin_a, argmin_b, resample)


def planted_transfer(truth: Planted, rng: np.random.Generator) -> TransferCounts:
    """b's refusals under ablation; some prompts lose their refusal to any subspace, and some subspaces are stronger."""
    n = truth.refusals
    frail, strength = rng.normal(size=n), 0.4 * rng.normal(size=(truth.subspaces, 1))
    rest = rng.normal(size=(truth.subspaces, n))
    limit = float(scipy_stats.norm.ppf(1 - truth.random)) * math.sqrt(1 + 0.4**2 + 1)
    by_random = frail + strength + rest > limit
    by_own = rng.random(n) < truth.own
    stays = truth.random + truth.control * (truth.own - truth.random)  # T[a, b]
    by_old = by_own & (rng.random(n) < stays / truth.own)
    return transfer_counts(np.ones(n, dtype=bool), ~by_old, ~by_own, ~by_random)


def planted_evidence(truth: Planted, rng: np.random.Generator) -> Evidence:
    """All of it, as `decide` takes it."""
    geometry = planted_geometry(truth, rng)
    return Evidence(
        places=planted_places(truth, rng),
        transfer=planted_transfer(truth, rng),
        cosine=geometry.cosine,
        rank_difference=geometry.rank_difference,
    )


def redrawn_null(truth: Planted) -> Planted:
    """The same checkpoint against itself with all prompt roles drawn anew: nothing changed, nothing is paired."""
    return replace(paired_null(truth), redrawn=True)


def paired_null(truth: Planted) -> Planted:
    """Two anchors with the same truth and the same prompts."""
    return replace(truth, turn=0.0, move=0.0, control=1.0, pr_b=truth.pr_a, scale=1.0, redrawn=False)


def disjoint_halves(strata: Sequence[object], rng: np.random.Generator) -> list[Int[np.ndarray, "_"]]:
    """Item numbers of two disjoint halves of a role's prompts, each stratum halved, for the same-checkpoint null.

    The odd ones of strata are halved together; both halves have equally many, so that one prompt may be in neither.
    """
    members: dict[object, list[int]] = {}
    for item, label in enumerate(strata):
        members.setdefault(label, []).append(item)
    halves: tuple[list[int], list[int]] = ([], [])
    odd: list[int] = []
    for items in [*members.values(), odd]:
        mixed = rng.permutation(items).tolist()
        half = len(mixed) // 2
        halves[0].extend(mixed[:half])
        halves[1].extend(mixed[half : 2 * half])
        if items is not odd:
            odd += mixed[2 * half :]
    return [np.array(sorted(half), dtype=np.int64) for half in halves]


def label_counts(labels: Iterable[str]) -> dict[str, int]:
    """How often each label came out, in the protocol's order, those that never did included."""
    counts = Counter(labels)
    return {label: counts[label] for label in LABELS}
