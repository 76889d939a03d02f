"""Time, memory and disk of a study by stage, from how much work its stages are and how fast a device is."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..artifacts import RunDirectory
from ..data.study_prompts import StudyPrompts
from ..errors import CaryatidError
from .calibration import Rates, kept_rates, measured_rates
from .costs import Sizes, sizes_of
from .nominal import nominal_rates
from .plan import Plan, Planned
from .series import AnchorRef

log = logging.getLogger(__name__)

MODEL_WORK = ("loaded", "adapted", "passes", "steps", "updates", "attack_steps")  # units that take a model


@dataclass(frozen=True)
class Cost:
    """Of one stage. `memory`: of the process at its peak, bytes. `disk`: bytes that stay; `scratch`: while it runs."""

    seconds: float
    memory: float
    disk: float
    scratch: float


@dataclass(frozen=True)
class Forecast:
    """Costs by a stage's id; stages that are one (equal keys) have their cost once, the others nothing.

    Attributes:
        guessed: the device was not timed.
    """

    costs: Mapping[str, Cost]
    note: str
    guessed: bool = False

    @classmethod
    def of(cls, plan: Plan, sizes: Sizes, rates: Rates) -> "Forecast":
        """Of a plan on the device whose rates these are."""
        seen: set[str] = set()
        costs = {}
        for entry in plan:
            costs[entry.id] = Cost(0, 0, 0, 0) if entry.key in seen else _cost(entry, sizes, rates)
            seen.add(entry.key)
        return cls(costs, rates.note)

    @property
    def seconds(self) -> dict[str, float]:
        """By stage."""
        return {name: cost.seconds for name, cost in self.costs.items()}

    def rows(self, plan: Plan, run: RunDirectory | None = None) -> list[dict[str, Any]]:
        """The plan with its costs, one row a stage; with a run directory also what state each is in there."""
        found = []
        for entry in plan:
            row: dict[str, Any] = {"id": entry.id, "stage": entry.stage.kind, "size": entry.stage.size()}
            state = {} if run is None else {"state": entry.folder(run).state()}
            found.append({**row, "key": entry.key, **vars(self.costs[entry.id]), **state})
        return found

    def line(self, left: Iterable[Planned]) -> str:
        """What the stages `left` take together, in words."""
        costs = [self.costs[entry.id] for entry in left]
        time = spoken(sum(cost.seconds for cost in costs))
        disk = sum(cost.disk for cost in costs) + max((cost.scratch for cost in costs), default=0.0)
        memory = max((cost.memory for cost in costs), default=0.0)
        return f"{time}, up to {size(memory)} of memory and {size(disk)} of disk ({self.note})"


def forecast_of(
    plan: Plan, prompts: StudyPrompts | None, *, again: bool = False, refusal_rate: float = 0.5
) -> Forecast:
    """The forecast of a plan on this device, which is timed if that was not done before.

    Args:
        prompts: of the study, where they are at hand. again: time the device in any case.
        refusal_rate: share of the transfer prompts that anchors are taken to refuse.

    Raises:
        CaryatidError: as loading the backbone raises it. MemoryExhaustedError: it does not fit.
    """
    rates = measured_rates(plan.study, again=again)
    return Forecast.of(plan, sizes_of(plan.study.config, prompts, refusal_rate), rates)


def kept_forecast(plan: Plan, prompts: StudyPrompts | None) -> Forecast | None:
    """The forecast of a plan where this device was timed for its backbone before; loads no weights."""
    rates = kept_rates(plan.study)
    return Forecast.of(plan, sizes_of(plan.study.config, prompts), rates) if rates else None


def best_forecast(plan: Plan, prompts: StudyPrompts | None, *, guess: bool = True) -> Forecast | None:
    """The forecast of a plan where this device was timed before, else a guess; looks the backbone up, loads no weights.

    Returns:
        None: neither can be had; a warning says why. No run ends for want of an estimate.
    """
    try:
        found = kept_forecast(plan, prompts)
        if found or not guess:
            return found
        sizes = sizes_of(plan.study.config, prompts)
        rates = nominal_rates(plan.study, sizes.model.parameters)
        return replace(Forecast.of(plan, sizes, rates), guessed=True)
    except (CaryatidError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        log.warning("the time left cannot be estimated: %s", error)
        return None


def _cost(entry: Planned, sizes: Sizes, rates: Rates) -> Cost:
    units, facts = entry.stage.work_units(sizes), entry.stage.study.facts
    models = 0
    if any(getattr(units, name) for name in MODEL_WORK):
        place = entry.stage.place
        models = 2 if isinstance(place, AnchorRef) and place != place.base else 1  # step 0 stays open
    weights = models * sizes.model.parameters * getattr(torch, facts.dtype).itemsize
    return Cost(rates.of(units), weights + rates.working_memory(units), units.disk, units.scratch)


def spoken(seconds: float) -> str:
    """A duration with the two units that matter: `45 s`, `8 min 20 s`, `3 h 5 min`, `2 d 4 h`."""
    whole = round(seconds)
    for unit, name, part, below in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= unit:
            rest = whole % unit // part
            return f"{whole // unit} {name}" + (f" {rest} {below}" if rest else "")
    return f"{whole} s"


def size(count: float) -> str:
    """Bytes in MiB, or in GiB from one on."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
