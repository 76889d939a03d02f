"""The verdict on planted pairs of known truth: which cells there are, what is right in each, how often it is told.

Used by benchmarks/simulate_verdict.py (all cells) and by a slow test (some of them).
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache

import numpy as np

from caryatid.stats import clopper_pearson
from caryatid.study.decision import Evidence, Thresholds, decide, rank_change
from caryatid.study.nulls import (
    Geometry,
    Planted,
    paired_null,
    planted_geometry,
    planted_places,
    planted_transfer,
)

T = Thresholds()
BASES = {
    "nothing changed": Planted(),
    "relocated": Planted(turn=45.0, move=0.5, control=0.0, pr_a=1.5, pr_b=1.5),
}
LEVELS: dict[str, Sequence[float]] = {
    "turn": (0.0, 10.0, 20.0, 30.0, 45.0, 120.0),
    "pr_b": (1.0, 1.5, 2.0, 3.0),
    "scale": (0.5, 0.8, 1.2, 2.0),
    "move": (0.0, 0.125, 0.25, 0.5),
    "control": (0.0, 0.3, 0.6, 0.9, 1.0),
    "prompts": (24, 48, 128),
    "shared": (0.0, 0.8),
}
GEOMETRY = ("turn", "pr_a", "pr_b", "scale", "prompts", "shared")


@dataclass(frozen=True)
class Cell:
    """A truth, and how often each thing was told of it: labels, wrong labels, flags, wrong flags."""

    truth: Planted
    labels: dict[str, int]
    wrong: int
    right: int
    flags: dict[str, int]
    wrong_flags: int
    draws: int

    def __add__(self, other: "Cell") -> "Cell":
        """Both cells' draws of the same truth together."""
        return Cell(
            self.truth,
            dict(Counter(self.labels) + Counter(other.labels)),
            self.wrong + other.wrong,
            self.right + other.right,
            dict(Counter(self.flags) + Counter(other.flags)),
            self.wrong_flags + other.wrong_flags,
            self.draws + other.draws,
        )

    @property
    def failed(self) -> bool:
        """Whether the 95 % lower bound of the wrong share is above 5 %."""
        return clopper_pearson(self.wrong, self.draws).lo > 0.05

    @property
    def wrong_flags_fail(self) -> bool:
        """The same of the rank flags."""
        return clopper_pearson(self.wrong_flags, self.draws).lo > 0.05


def cells(base: Planted) -> Iterator[Planted]:
    """The base, all main effects, and all two-way cells of the factors' levels; impossible ones left out."""
    seen = set()
    for one, two in itertools.combinations(LEVELS, 2):
        for first, second in itertools.product(LEVELS[one], LEVELS[two]):
            cell = replace(
                base, **{one: type(getattr(base, one))(first), two: type(getattr(base, two))(second)}
            )
            impossible = cell.turn == 0 and cell.move == 0 and cell.control < 1
            if cell not in seen and not impossible:
                seen.add(cell)
                yield cell


def right_labels(truth: Planted) -> set[str]:
    """The labels of protocol §7's table, at an exact threshold those of both sides; undetermined is never wrong."""
    found = set()
    for moved in {truth.move >= T.depth_shift, truth.move > T.depth_shift}:
        for drifted in {truth.turn >= T.angle, truth.turn > T.angle}:
            if truth.control < T.replaced_below:
                label = "relocation" if moved else "replacement in place" if drifted else None
            elif moved:
                label = "re-siting"
            elif drifted:
                label = "drift only"
            else:
                label = "no change" if truth.control > T.kept_above else None
            found |= {label} if label else set()
    return found


def right_flags(truth: Planted) -> set[str]:
    difference = truth.pr_b - truth.pr_a
    if abs(difference) < T.rank_change:
        return {"none"}
    return {"expansion" if difference > 0 else "contraction", "none"}


def powered(truth: Planted) -> bool:
    """Whether the right label is asked for in four cases of five.

    Issue and protocol ask it of a turn of 20° or more, at every length of r and with paired and independent noise, and
    of the paired null. Further pairs without a turn count where noise is paired and r did not shrink: with independent
    noise they are the redrawn null, of which no power is asked.
    """
    turned = truth.turn >= 20 or (truth.turn == 0 and truth.shared > 0 and truth.scale >= 1)
    far = truth.move in (0.0, 0.5) and truth.control in (0.0, 1.0)
    return turned and far and truth.prompts >= 128 and truth.refusals >= 64 and bool(right_labels(truth))


class Simulation:
    """Draws of a cell; geometry does not depend on move and control, and is drawn once for all cells that share it."""

    def __init__(self, draws: int, seed: int = 0) -> None:
        self.draws, self.seed = draws, seed
        self._geometry = lru_cache(maxsize=None)(self._draw_geometry)

    def _draw_geometry(self, truth: Planted) -> list[Geometry]:
        rng = np.random.default_rng([self.seed, 1])
        return [planted_geometry(truth, rng) for _ in range(self.draws)]

    def run(self, truth: Planted) -> Cell:
        geometry = self._geometry(replace(Planted(), **{name: getattr(truth, name) for name in GEOMETRY}))
        number = sum(
            (i + 1) * round(1000 * float(getattr(truth, f.name))) for i, f in enumerate(fields(Planted))
        )
        rng = np.random.default_rng([self.seed, 2, abs(number)])
        labels: dict[str, int] = {}
        flags: dict[str, int] = {}
        for each in geometry:
            evidence = Evidence(planted_places(truth, rng), planted_transfer(truth, rng), each.cosine)
            label, flag = decide(evidence, T).label, rank_change(each.rank_difference, T)
            labels[label] = labels.get(label, 0) + 1
            flags[flag] = flags.get(flag, 0) + 1
        good, fine = right_labels(truth), right_flags(truth)
        return Cell(
            truth,
            labels,
            wrong=sum(
                count for label, count in labels.items() if label not in good and label != "undetermined"
            ),
            right=sum(count for label, count in labels.items() if label in good),
            flags=flags,
            wrong_flags=sum(count for flag, count in flags.items() if flag not in fine),
            draws=self.draws,
        )


def null_cells() -> dict[str, Planted]:
    """The nulls of protocol §7, by name."""
    return {
        "paired, 128 prompts": paired_null(Planted()),
        "redrawn, 128 prompts": replace(Planted(), redrawn=True),
        "redrawn, 24 prompts": replace(Planted(prompts=24, refusals=24), redrawn=True),
    }
