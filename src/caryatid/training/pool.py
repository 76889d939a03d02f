"""R2D2's pool of persistent cases (protocol §3): draws, refreshed suffixes, restarts, and an exact state."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..attacks.gcg.search import drawn_length
from ..attacks.gcg.settings import SuffixLength
from ..data.prompts import Prompt
from ..errors import InputError


@dataclass(frozen=True)
class PoolEntry:
    """A persistent case: a behaviour, one of its targets, and the present suffix (empty: the initial one).

    `age` counts the optimizer updates since the case started; `length` is that of its initial suffix, in tokens.
    """

    behaviour: int
    target: str
    length: int
    suffix_ids: tuple[int, ...] = ()
    age: int = 0


class Pool:
    """N persistent cases over the training behaviours.

    Draws and restarts have generators of their own, so that arms that attack and arms that do not draw the same
    behaviours at the same updates.

    Args:
        behaviours: training prompts with at least one target each.
        size: N.
        seed: of draws and restarts.
        suffix_length: of initial suffixes, or a range from which each new case draws its own.

    Raises:
        InputError: no behaviours, or one without a target.
    """

    def __init__(
        self, behaviours: Sequence[Prompt], size: int, seed: int, suffix_length: SuffixLength
    ) -> None:
        if not behaviours:
            raise InputError(
                "no behaviours to train on", where="pool", remedy="Give the pool at least one prompt."
            )
        for row in behaviours:
            if not row.targets:
                raise InputError(
                    "a training behaviour has no target", where=f"pool: {row.id}", remedy="Add its target."
                )
        self.behaviours, self.seed, self.suffix_length = tuple(behaviours), seed, suffix_length
        self._generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.behaviours), generator=self._generator).tolist()
        self.entries = [self._fresh(order[index % len(order)]) for index in range(size)]

    def _integer(self, below: int) -> int:
        return int(torch.randint(below, (), generator=self._generator))

    def _fresh(self, behaviour: int) -> PoolEntry:
        targets = self.behaviours[behaviour].targets
        target = targets[self._integer(len(targets))]
        return PoolEntry(behaviour, target, drawn_length(self.suffix_length, self._generator))

    def draw(self, n: int) -> list[int]:
        """Indices of `n` different cases (all of them when the pool is smaller)."""
        return torch.randperm(len(self.entries), generator=self._generator)[:n].tolist()

    def prompt(self, index: int) -> Prompt:
        """The behaviour of a case."""
        return self.behaviours[self.entries[index].behaviour]

    def put(self, index: int, suffix_ids: Sequence[int]) -> None:
        """Keep a case's new suffix."""
        self.entries[index] = replace(self.entries[index], suffix_ids=tuple(suffix_ids))

    def advance(self) -> None:
        """Age every case by one optimizer update."""
        self.entries = [replace(case, age=case.age + 1) for case in self.entries]

    def restart(self, fraction: float) -> list[int]:
        """Give a random share of the pool a new behaviour, target and initial suffix; returns the indices.

        The number is rounded down, as released (arXiv 2402.04249).
        """
        count = math.floor(fraction * len(self.entries) + 1e-9)
        if count == 0:
            return []  # draws nothing, so that a frozen pool is the static arm's
        chosen = sorted(self.draw(count))
        for index in chosen:
            self.entries[index] = self._fresh(self._integer(len(self.behaviours)))
        return chosen

    @property
    def mean_age(self) -> float:
        """Mean age of the cases, in optimizer updates."""
        return sum(case.age for case in self.entries) / len(self.entries)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs, as plain JSON values."""
        return {
            "generator": self._generator.get_state().tolist(),
            "cases": [[c.behaviour, c.target, c.length, list(c.suffix_ids), c.age] for c in self.entries],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`, bit for bit."""
        self._generator.set_state(torch.tensor(state["generator"], dtype=torch.uint8))
        self.entries = [
            PoolEntry(behaviour, target, length, tuple(ids), age)
            for behaviour, target, length, ids, age in state["cases"]
        ]
