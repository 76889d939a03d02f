"""What a step of GCG takes on a device, apart from what happens before the first step and while steps settle."""

import itertools
import statistics
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple

import torch

from ..attacks.base import Goal
from ..attacks.gcg.settings import GcgSettings
from ..attacks.gcg.state import start_state
from ..attacks.gcg.steps import gcg_steps
from ..models.load import LoadedModel
from ..models.template import ChatFormat

SETTLED = {"cuda": 4}  # first steps that may record graphs, or compile for new lengths of rows; elsewhere one
STEPS = 3  # steps after those that count
ENOUGH = {"cuda": 20.0}  # seconds after which no further step is taken; elsewhere `FEW_SECONDS`
FEW_SECONDS = 3.0


class Stepped(NamedTuple):
    """Seconds of an attack, of one goal.

    Attributes:
        step: of a step that has settled. begin: of what comes before that, beyond as many such steps. apart: whether
            the two could be told apart; else `step` has all of it.
    """

    step: float
    begin: float
    apart: bool = True


class _EnoughSeen(Exception):
    """The steps taken so far must do."""


class Clock:
    """When an attack began and when each of its steps ended, the device's work included."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.times = device, [time.perf_counter()]
        self.settled = SETTLED.get(device.type, 1)
        self.enough = ENOUGH.get(device.type, FEW_SECONDS)

    def tick(self) -> None:
        """A step has ended.

        Raises:
            _EnoughSeen: it has been at it for long enough; inside `timed_attack`.
        """
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.times.append(time.perf_counter())
        if self.times[-1] - self.times[0] > self.enough:
            raise _EnoughSeen

    def stepped(self, goals: int) -> Stepped:
        """From the median of the steps that count; from the shortest but the first, where none of these was taken."""
        steps = [after - before for before, after in itertools.pairwise(self.times)]
        counted = steps[self.settled :]
        step = statistics.median(counted) if counted else min(steps[1:] or steps)
        before = sum(steps[: self.settled]) - step * len(steps[: self.settled])
        return Stepped(step / goals, max(before, 0.0) / goals, len(steps) > 1)


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
        settings: of which `steps` are not taken. length: tokens of the suffix. batch: rows per forward.
    """
    clock = Clock(loaded.device)
    with suppress(_EnoughSeen):
        gcg_steps(
            loaded,
            chat,
            [start_state(chat, goal, length=length) for goal in goals],
            replace(settings, steps=clock.settled + STEPS, stop_below=None),
            batch_size=batch,
            generator=[goal.generator(0) for goal in goals],
            on_step=clock.tick,
        )
    return clock.stepped(len(goals))
