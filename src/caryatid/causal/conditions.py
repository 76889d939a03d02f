"""Conditions of a causal table: a carrier removed or added, and random controls (protocol §6)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError, NumericalError
from ..models import affine  # noqa: F401  # only imported so that it registers `affine`
from ..models.directional import orthonormal  # importing it registers `ablate` and `add`
from ..models.residual import Intervention, intervention_kind, stack_rows
from .grid import ConditionGroup

RANDOM = "random"
"""Control name of random subspaces that hold as much of the benign activations as the carrier."""

_TILTS = (-4.0, 4.0)
_BISECTIONS = 40
_SHRINKAGE = 1e-3


@dataclass(frozen=True, eq=False)
class Condition:
    """One row of a causal table: a model as it is, or under one intervention. Equal only to itself, and hashable.

    Attributes:
        intervention: `none`, or a registered name: `ablate` (at block inputs and sublayer outputs), `add` and `affine`
            (at one block's input), or one of another package (`models.residual.register_intervention`).
        control: what the directions are: `none`, `carrier`, `random` (matched to the carrier's energy), another kind of
            random subspace, or another direction's name.
        directions: orthonormal rows to ablate, or one unscaled vector to add; None for `none`.
        alpha: strength of the ablation, or factor of the added vector.
        layer: where to add. layers: ablate only at these blocks; None: at all.
        draw: number of a random control.
        row: the intervention, with one row; None for `none`.

    Raises:
        InputError: an unknown intervention, directions that it cannot use, or an α that is not finite.
    """

    intervention: str = "none"
    control: str = "none"
    directions: Float[Tensor, "rank d"] | None = None
    alpha: float = 1.0
    layer: int | None = None
    layers: tuple[int, ...] | None = None
    draw: int | None = None
    row: Intervention | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        if (self.intervention == "none") != (self.directions is None):
            raise InputError(
                f"{self.intervention} with directions {self.directions is not None}", where="Condition"
            )
        if not math.isfinite(self.alpha):
            raise InputError(f"α is {self.alpha}", where="Condition", remedy="Give a finite number.")
        if self.directions is not None:
            kind = intervention_kind(self.intervention)
            row = kind.build(self.directions, self.alpha, layer=self.layer, layers=self.layers)
            object.__setattr__(self, "row", row)

    @property
    def rank(self) -> int:
        """Number of directions; 0 for `none`."""
        return (
            0 if self.row is None or self.directions is None else len(self.directions) - self.row.references
        )

    @property
    def start(self) -> int:
        """The first block that is touched."""
        return 0 if self.row is None else int(self.row.first_layers().min())

    def columns(self) -> dict[str, object]:
        """The condition's columns of the `causal` table, and the draw."""
        return {
            "intervention": self.intervention,
            "rank": self.rank,
            "alpha": 0.0 if self.intervention == "none" else self.alpha,
            "control": self.control,
            "draw": self.draw,
        }


def row_interventions(conditions: Sequence[Condition]) -> tuple[Intervention, ...]:
    """Interventions with one row per condition, for one batch; each leaves the rows of other conditions untouched."""
    return tuple(stack_rows([condition.row for condition in conditions]))


def grouped(conditions: Sequence[Condition], n_layers: int) -> list[ConditionGroup]:
    """The conditions in groups of one first block, for `evaluate_grid`; kinds share batches.

    Leaving out the blocks before a group's first costs one pass of the model as it is. Where that is more than it
    saves, all conditions are one group that starts at block 0.
    """
    saves = sum(condition.start for condition in conditions) > n_layers
    starts = [condition.start if saves else 0 for condition in conditions]
    groups = []
    for start in dict.fromkeys(starts):
        members = [number for number, each in enumerate(starts) if each == start]
        rows = row_interventions([conditions[number] for number in members])
        groups.append(ConditionGroup(rows, members, start))
    return groups


@dataclass(frozen=True)
class RandomBases:
    """Random subspaces that hold as much of the benign activations as a carrier does.

    Attributes:
        bases: orthonormal rows per draw. energy: mean ‖Px‖² of each draw. target: that of the carrier.
        tilt: the exponent γ that matched each draw.
    """

    bases: Float[Tensor, "draws rank d"]
    energy: Float[Tensor, "draws"]
    target: float
    tilt: Float[Tensor, "draws"]


def mean_energy(
    activations: Float[Tensor, "rows d"], basis: Float[Tensor, "*draws rank d"]
) -> Float[Tensor, "*draws"]:
    """Mean over activations of ‖Px‖², P the projection on the basis's orthonormal rows."""
    return (activations.double() @ basis.double().mT).square().sum(dim=-1).mean(dim=-1)


def random_bases(
    activations: Float[Tensor, "rows d"],
    carrier: Float[Tensor, "rank d"],
    *,
    draws: int,
    generator: torch.Generator,
    tilt: float | None = None,
) -> RandomBases:
    """Random subspaces of the carrier's rank, orthogonal to it, matched on mean ‖Px‖² over benign activations.

    An isotropic subspace holds about rank/d of the activations' energy, a carrier usually more, so that ablating the
    former would be an easy control. A draw here is span(M^(γ/2) Z) with Z standard normal and M the (slightly shrunk)
    second moment of the activations: γ = 0 is isotropic, γ = 1 a draw from the activations' own second moment, and
    energy grows with γ. For each Z, γ is found by bisection between −4 and 4 so that mean ‖Px‖² is the carrier's;
    when it cannot be reached the nearest end is used, which `energy` shows.

    Args:
        activations: benign residual activations at the carrier's layer. carrier: orthonormal rows.
        tilt: use this γ for all draws instead of matching (0: isotropic, 1: covariance).

    Raises:
        InputError: the rank leaves no room, or widths differ. NumericalError: activations are zero or not finite.
    """
    rank, width = carrier.shape
    if activations.shape[1] != width or 2 * rank > width or draws < 1:
        raise InputError(
            f"{draws} random subspaces of rank {rank} in width {activations.shape[1]} beside a carrier of "
            f"width {width}",
            where="random controls",
            remedy=f"Use at least 1 control, and a rank up to {width // 2}, which leaves room beside the carrier.",
        )
    x = activations.double().cpu()
    if not torch.isfinite(x).all() or not bool((x != 0).any()):
        raise NumericalError("benign activations are zero or not finite", where="random_bases")
    _, singular, axes = torch.linalg.svd(x, full_matrices=False)  # axes: [r, d]
    moment = singular.square() / len(x)
    floor = _SHRINKAGE * moment.sum() / width
    own = orthonormal(carrier.double().cpu()).double()
    target = float(mean_energy(x, own))

    def tilted(z: Float[Tensor, "rank d"], gamma: float) -> Float[Tensor, "rank d"]:
        logs = torch.cat([(moment + floor).log(), floor.log()[None]]) * (gamma / 2)
        factors = (logs - logs.max()).exp()
        along = z @ axes.T  # [rank, r]
        mixed = factors[-1] * (z - along @ axes) + (along * factors[:-1]) @ axes
        mixed = mixed - (mixed @ own.T) @ own
        return torch.linalg.qr(mixed.T).Q.T

    bases, tilts = [], []
    for _ in range(draws):
        z = torch.randn(rank, width, generator=generator, dtype=torch.float64)
        low, high = _TILTS
        for _ in range(_BISECTIONS if tilt is None else 0):
            middle = (low + high) / 2
            below = float(mean_energy(x, tilted(z, middle))) < target
            low, high = (middle, high) if below else (low, middle)
        gamma = (low + high) / 2 if tilt is None else tilt
        bases.append(tilted(z, gamma))
        tilts.append(gamma)
    stacked = torch.stack(bases)
    return RandomBases(stacked.float(), mean_energy(x, stacked), target, torch.tensor(tilts))


def ablation_conditions(
    carrier: Float[Tensor, "rank d"],
    controls: Float[Tensor, "draws rank d"] | None = None,
    name: str = "carrier",
) -> list[Condition]:
    """Ablating the carrier everywhere, then each random control. All rows orthonormal."""
    return [Condition("ablate", name, carrier), *control_conditions(controls, RANDOM)]


def control_conditions(controls: Float[Tensor, "draws rank d"] | None, name: str) -> list[Condition]:
    """Ablating each random subspace everywhere."""
    bases = () if controls is None else controls
    return [Condition("ablate", name, basis, draw=draw) for draw, basis in enumerate(bases)]


def addition_conditions(
    vector: Float[Tensor, "d"],
    layer: int,
    alphas: Sequence[float],
    controls: Float[Tensor, "draws 1 d"] | None = None,
) -> list[Condition]:
    """Adding α times the vector at its layer, then α times its length along each random control."""
    conditions = []
    for alpha in alphas:
        conditions.append(Condition("add", "carrier", vector[None], float(alpha), layer=layer))
        for draw, basis in enumerate(() if controls is None else controls):
            scaled = basis.to(vector.dtype) * vector.norm()
            conditions.append(Condition("add", RANDOM, scaled, float(alpha), layer=layer, draw=draw))
    return conditions


def affine_conditions(
    vector: Float[Tensor, "d"],
    reference: Float[Tensor, "d"],
    layer: int,
    alphas: Sequence[float],
    controls: Float[Tensor, "draws 1 d"] | None = None,
) -> list[Condition]:
    """Setting the component along the vector to α of the way from the reference (ACE), then along random controls."""
    kinds: list[tuple[str, int | None, Tensor]] = [("carrier", None, vector)]
    kinds += [
        (RANDOM, draw, basis[0] * vector.norm())
        for draw, basis in enumerate(() if controls is None else controls)
    ]
    return [
        Condition("affine", name, torch.stack([one, reference.to(one)]), float(alpha), layer=layer, draw=draw)
        for alpha in alphas
        for name, draw, one in kinds
    ]


def localisation_conditions(carrier: Float[Tensor, "rank d"], layers: Sequence[int]) -> list[Condition]:
    """Ablating the carrier at the sites of one block at a time: where it acts, not only where it can be read."""
    return [Condition("ablate", "carrier", carrier, layers=(layer,)) for layer in layers]
