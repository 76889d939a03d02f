"""How long a study still takes: what was forecast of the stages that are left, corrected by what the others took.

Stages of a kind are off by one factor, whose best guess is that of the kind's finished stages; with few of them it is
drawn towards the factor of all finished stages, and with few of these towards 1.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from ..data.study_prompts import StudyPrompts
from .forecast import forecast_of, kept_forecast, spoken
from .plan import Plan, Planned

PRIOR = 0.02  # weight of the forecast itself, as a share of the whole study's seconds
OWN = 1.0  # weight of all kinds in a kind's factor, in mean stages of it


@dataclass
class Remaining:
    """Remaining time of a plan.

    Args:
        plan: what runs. forecast: seconds by a stage's id. Of a stage that it leaves out, finished stages of its kind
            tell what they took, and nothing is known before one has finished.
        skipped: ids of stages that do not run, because they are done; nothing is learned of them.

    >>> remaining = Remaining(plan, forecast.seconds, skipped=done)
    >>> remaining.finished(entry, 12.3)
    >>> remaining.left()
    """

    plan: Plan
    forecast: Mapping[str, float] = field(default_factory=dict)
    skipped: Collection[str] = ()
    _taken: dict[str, float] = field(default_factory=dict, init=False)

    @classmethod
    def of(
        cls, plan: Plan, prompts: StudyPrompts | None, pending: Collection[str], *, measure: bool = True
    ) -> "Remaining":
        """Of a run of which the stages `pending` (ids) are left.

        Args:
            measure: time this device where that was not done before (`forecast_of`, also for errors).
        """
        found = forecast_of(plan, prompts) if measure else kept_forecast(plan, prompts)
        skipped = [entry.id for entry in plan if entry.id not in pending]
        return cls(plan, found.seconds if found else {}, skipped)

    def finished(self, entry: Planned, seconds: float) -> None:
        """A stage took so many seconds."""
        self._taken[entry.id] = seconds

    @property
    def entries(self) -> list[Planned]:
        """Stages that are left."""
        return [one for one in self.plan if one.id not in self._taken and one.id not in self.skipped]

    @property
    def known(self) -> bool:
        """Whether something is known of every stage that is left."""
        return all(entry.id in self.forecast or self._done(entry.stage.kind) for entry in self.entries)

    def left(self) -> float:
        """Seconds that the stages take that are left, the one that is running as if it had just begun."""
        kinds = dict.fromkeys(entry.stage.kind for entry in self.entries)
        factors = {kind: self._factor(kind) for kind in kinds}
        return sum(factors[entry.stage.kind] * self._forecast(entry) for entry in self.entries)

    def pace(self) -> float:
        """What the finished stages took over what was forecast of them: 2 is half as fast as planned; 1 at first."""
        expected, taken = self._totals(self._done())
        return taken / expected if expected else 1.0

    def said(self) -> str:
        """What is left, in words: `about 3 min 20 s left`; empty where nothing is known."""
        left = self.left()
        return f"{'about' if self.known else 'at least'} {spoken(left)} left" if left else ""

    def _done(self, kind: str | None = None) -> list[Planned]:
        return [one for one in self.plan if one.id in self._taken and kind in (None, one.stage.kind)]

    def _forecast(self, entry: Planned) -> float:
        if entry.id in self.forecast:
            return self.forecast[entry.id]
        alike = [self._taken[one.id] for one in self._done(entry.stage.kind)]
        return sum(alike) / len(alike) if alike else 0.0

    def _totals(self, entries: Iterable[Planned]) -> tuple[float, float]:
        """Seconds forecast and taken; stages without a forecast, or with one of nothing, tell nothing."""
        told = [entry for entry in entries if self.forecast.get(entry.id, 0.0) > 0]
        return sum(self.forecast[entry.id] for entry in told), sum(self._taken[entry.id] for entry in told)

    def _factor(self, kind: str) -> float:
        expected, taken = self._totals(self._done())
        prior = PRIOR * sum(self.forecast.values())
        overall = (taken + prior) / (expected + prior) if expected + prior else 1.0
        done = self._done(kind)
        own_expected, own_taken = self._totals(done)
        weight = OWN * own_expected / max(len(done), 1)
        return (own_taken + weight * overall) / (own_expected + weight) if own_expected else overall
