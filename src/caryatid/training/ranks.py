"""Several processes training one arm (`torchrun`, `accelerate launch`): who takes which rows.

Every rank holds all weights and draws the same batches; each takes every `size`-th row, however many there are. Losses
are means over all ranks' tokens, so that any number of ranks makes the same update as one, up to rounding.
"""

import atexit
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

# Ranks wait for the first one through whole stages that it does alone.
_PATIENCE = timedelta(days=14)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together: `rank` of `size`. The first one writes.

    `lockstep`: each holds a part of the weights (`shards.py`); every forward, backward and save takes all of them.
    """

    rank: int = 0
    size: int = 1
    lockstep: bool = False

    @classmethod
    def start(cls) -> "Ranks":
        """Join the processes that a launcher has started (`WORLD_SIZE` and `RANK`); alone without one."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        if not dist.is_initialized():
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend, timeout=_PATIENCE)
            atexit.register(_leave)  # threads that still run when the interpreter ends abort the process
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def main(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def mine(self, count: int) -> list[int]:
        """Of `count` rows, those of this rank; maybe none."""
        return list(range(self.rank, count, self.size))

    def gathered(self, values: Sequence[T], count: int) -> list[T]:
        """All ranks' results for `count` rows in the rows' order, from what each rank has for `mine(count)`."""
        if self.size == 1:
            return list(values)
        parts: list[list[T]] = [[] for _ in range(self.size)]
        dist.all_gather_object(parts, list(values))
        return [parts[row % self.size][row // self.size] for row in range(count)]

    def summed(self, value: float) -> float:
        """The sum over ranks, the same on each."""
        return sum(self.gathered([value], self.size))

    def shared(self, value: T) -> T:
        """The first rank's value."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    @property
    def saves(self) -> bool:
        """Whether this process takes part in measuring and saving an anchor."""
        return self.main or self.lockstep

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self.shared(None)
        self.summed(0.0)

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Add up gradients over ranks, one exchange per dtype; a parameter without one counts as zero."""
        if self.size == 1:
            return
        for kind in dict.fromkeys(parameter.dtype for parameter in parameters):
            group = [parameter for parameter in parameters if parameter.dtype == kind]
            parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in group]
            flat = torch.cat([part.flatten() for part in parts])
            dist.all_reduce(flat)
            for parameter, part in zip(group, flat.split([p.numel() for p in group]), strict=True):
                parameter.grad = part.view_as(parameter).clone()


ALONE = Ranks()
"""One process, the usual case."""
