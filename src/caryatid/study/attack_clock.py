"""What a step of GCG takes on a device, apart from what happens before the first step and while steps settle."""

import itertools
import statistics
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

import torch

from ..attacks.base import Goal
from ..attacks.gcg.settings import GcgSettings
from ..attacks.gcg.state import start_state
from ..attacks.gcg.steps import gcg_steps
from ..models.load import LoadedModel
from ..models.template import ChatFormat

SETTLED = 4  # steps on CUDA that may record graphs, or compile for new lengths of rows
STEPS = 3  # steps after those, or after the first one on a CPU, that count
TOO_LONG = 3.0  # seconds on a CPU, after which no further step is taken


class Stepped(NamedTuple):
    """Seconds of an attack, of one goal: of a step, and of what comes before the first one."""

    step: float
    begin: float


class _EnoughSeen(Exception):
    """The steps taken so far must do."""


class Clock:
    """When an attack began and when each of its steps ended, the device's work included."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.times = device, [time.perf_counter()]
        self.settled = SETTLED if device.type == "cuda" else 1

    def tick(self) -> None:
        """A step has ended.

        Raises:
            _EnoughSeen: on a CPU that has been at it for too long; inside `timed_attack`.
        """
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.times.append(time.perf_counter())
        if self.device.type != "cuda" and self.times[-1] - self.times[0] > TOO_LONG:
            raise _EnoughSeen

    def stepped(self, goals: int) -> Stepped:
        """From the median of the steps that count; of those there are, where it ended before."""
        steps = [after - before for before, after in itertools.pairwise(self.times)]
        step = statistics.median(steps[self.settled :] or steps[1:] or steps)
        return Stepped(step / goals, max(steps[0] - step, 0.0) / goals)


def timed_attack(
    loaded: LoadedModel,
    chat: ChatFormat,
    goals: Sequence[Goal],
    settings: GcgSettings,
    length: int,
    batch: int,
) -> Stepped:
    """Time some steps of all goals together.

    Args:
        length: tokens of the suffix. batch: rows per forward.
    """
    clock = Clock(loaded.device)
    with suppress(_EnoughSeen):
        gcg_steps(
            loaded,
            chat,
            [start_state(chat, goal, length=length) for goal in goals],
            settings,
            batch_size=batch,
            generator=[goal.generator(0) for goal in goals],
            on_step=clock.tick,
        )
    return clock.stepped(len(goals))


def all_steps(device: torch.device) -> int:
    """How many steps `timed_attack` wants."""
    return (SETTLED if device.type == "cuda" else 1) + STEPS
