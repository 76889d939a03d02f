"""Numbers of training and events of a run, sent to trackers through accelerate (TensorBoard, trackio, W&B, …).

Where they go is no content of a study: no stage's key depends on it, and runners that share a run may differ in it.
"""

import math
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import DataMissingError, UsageError
from ..files import content_key
from ..models.quiet import last_line

FOLDER = "tracking"  # in the run directory, for trackers that write files
# How a tracker is told the name of one of its runs; for the others it is part of the project's name.
_NAMED = {"mlflow": "run_name", "swanlab": "experiment_name", "trackio": "name", "wandb": "name"}
_CONTINUED = ("trackio", "wandb")  # those that can be told to go on with a run
_PACKAGES = {"comet_ml": "comet-ml"}  # what pip calls it, where that is not the tracker's name

Numbers = Callable[[int, Mapping[str, float]], None]
"""Takes a step and the numbers that belong to it."""


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that cannot be used here.

    Raises:
        UsageError: accelerate knows no such tracker. DataMissingError: its package is not installed; names it.
    """
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
    from accelerate.utils import LoggerType

    installed = {str(one) for one in get_available_trackers()}
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            known = ", ".join(LOGGER_TYPE_TO_CLASS)
            raise UsageError(f"no tracker {name!r}", where="--track", remedy=f"There are: {known}.")
        if name in LoggerType.list() and name not in installed:
            package = _PACKAGES.get(name, name)
            raise DataMissingError(
                f"the package {package!r} is not installed",
                where=f"--track {name}",
                remedy=f"Install it: pip install {package}.",
            )


class Tracking:
    """The trackers of one process.

    Training of an arm is a tracker's run named after the stage, with optimizer updates as steps; what happens outside
    training goes to a run `events HOST PID`. One run is open at a time: some trackers know no more than one.

    Args:
        names: of trackers, as accelerate names them (see `check_trackers`); none: nothing is sent.
        project: the study's name. folder: the run directory.
    """

    def __init__(self, names: Sequence[str] = (), project: str = "", folder: Path = Path()) -> None:
        self.names, self.project, self.folder = tuple(dict.fromkeys(names)), project, folder
        self._open: list[Any] = []
        self._training = False
        self._step = 0  # of the last numbers of the training that is under way
        self._events = 0

    @contextmanager
    def training(self, run: str) -> Iterator[Numbers]:
        """Context that takes the numbers of one training by step.

        Raises:
            UsageError: a tracker cannot be started.
        """
        self._begin(run)
        self._training, self._step = True, 0
        try:
            yield self._numbers
        finally:
            self._training = False
            self.close()

    def event(self, event: str, facts: Mapping[str, Any]) -> None:
        """Send an event (`Events.write`): which stage, and the numbers among its facts.

        Raises:
            UsageError: a tracker cannot be started.
        """
        if not self.names:
            return
        if not self._open:
            self._begin(f"events {socket.gethostname()} {os.getpid()}")
        self._events += 1
        said = " ".join(str(facts[key]) for key in ("stage", "part", "error") if key in facts)
        flat = {f"{event}/{key}": value for key, value in facts.items()}
        for key, inner in [(key, value) for key, value in flat.items() if isinstance(value, Mapping)]:
            flat |= {f"{key}/{name}": value for name, value in inner.items()}
        numbers = {
            key: value
            for key, value in flat.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        self._send({event: said, **numbers}, self._step if self._training else self._events)

    def close(self) -> None:
        """End the run that is open."""
        for accelerator in self._open:
            # Not end_training: that also ends the process group of processes that train together.
            for tracker in accelerator.trackers:
                tracker.finish()
        self._open = []

    def _begin(self, run: str) -> None:
        from accelerate import Accelerator

        self.close()
        for name in self.names:
            project = self.project if name in _NAMED else f"{self.project}/{run}"
            accelerator = Accelerator(log_with=name, project_dir=str(self.folder / FOLDER))
            try:
                accelerator.init_trackers(project, init_kwargs={name: self._options(name, run)})
            except Exception as error:  # a tracker's own: no account, no network, no space
                raise UsageError(
                    f"the tracker cannot be started: {last_line(error)}",
                    where=f"--track {name}",
                    remedy="See that package's documentation, or leave --track out.",
                ) from error
            self._open.append(accelerator)

    def _options(self, name: str, run: str) -> dict[str, Any]:
        options: dict[str, Any] = {_NAMED[name]: run} if name in _NAMED else {}
        if name in _CONTINUED:
            options["resume"] = "allow"
        if name == "wandb":
            options["id"] = content_key([str(self.folder.resolve()), run])
        return options

    def _numbers(self, step: int, numbers: Mapping[str, float]) -> None:
        self._step = step
        self._send({key: value for key, value in numbers.items() if math.isfinite(value)}, step)

    def _send(self, values: dict[str, Any], step: int) -> None:
        for accelerator in self._open:
            accelerator.log(values, step=step)
