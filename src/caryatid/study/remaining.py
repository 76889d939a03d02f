"""How long a study still takes: what was forecast of the stages that are left, corrected by what the others took.

Stages of a kind are off by one factor, whose best guess is that of the kind's finished stages; with few of them it is
drawn towards the factor of all finished stages, and with few of these towards 1.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from ..data.study_prompts import StudyPrompts
from .forecast import forecast_of, kept_forecast, spoken
from .plan import Plan, Planned

PRIOR = 0.02  # weight of the forecast itself, as a share of the whole study's seconds
OWN = 1.0  # weight of all kinds in a kind's factor, in mean stages of it


@dataclass
class _Kind:
    """Stages of one kind.

    Attributes:
        left: forecast seconds of those that are left. unknown: how many of these have no forecast.
        done, taken: how many are done, and their seconds. told, told_taken: forecast and taken seconds of those that
            have a forecast; without one, or with one of nothing, they tell nothing.
    """

    left: float = 0.0
    unknown: int = 0
    done: int = 0
    taken: float = 0.0
    told: float = 0.0
    told_taken: float = 0.0

    @property
    def seconds_left(self) -> float:
        """As forecast; a stage without a forecast takes what the others took."""
        return self.left + self.unknown * (self.taken / self.done if self.done else 0.0)


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

    def __post_init__(self) -> None:
        skipped = frozenset(self.skipped)
        self._pending = {entry.id: entry for entry in self.plan if entry.id not in skipped}
        self._kinds: dict[str, _Kind] = {entry.stage.kind: _Kind() for entry in self.plan}
        for entry in self._pending.values():
            self._count_left(entry, 1)
        self._prior = PRIOR * sum(self.forecast.values())

    @classmethod
    def of(
        cls, plan: Plan, prompts: StudyPrompts | None, pending: Collection[str], *, measure: bool = True
    ) -> "Remaining":
        """Of a run of which the stages `pending` (ids) are left; where none is, no time is forecast.

        Args:
            measure: time this device where that was not done before (`forecast_of`, also for errors).
        """
        left = frozenset(pending)
        skipped = [entry.id for entry in plan if entry.id not in left]
        if not left:
            return cls(plan, {}, skipped)
        found = forecast_of(plan, prompts) if measure else kept_forecast(plan, prompts)
        return cls(plan, found.seconds if found else {}, skipped)

    def _count_left(self, entry: Planned, sign: int) -> None:
        kind = self._kinds[entry.stage.kind]
        if entry.id in self.forecast:
            kind.left += sign * self.forecast[entry.id]
        else:
            kind.unknown += sign

    def finished(self, entry: Planned, seconds: float) -> None:
        """A stage that was left took so many seconds; one that was not tells nothing."""
        if self._pending.pop(entry.id, None) is None:
            return
        self._count_left(entry, -1)
        kind, expected = self._kinds[entry.stage.kind], self.forecast.get(entry.id, 0.0)
        kind.done, kind.taken = kind.done + 1, kind.taken + seconds
        if expected > 0:
            kind.told, kind.told_taken = kind.told + expected, kind.told_taken + seconds

    @property
    def entries(self) -> list[Planned]:
        """Stages that are left."""
        return list(self._pending.values())

    @property
    def known(self) -> bool:
        """Whether something is known of every stage that is left."""
        return all(not kind.unknown or kind.done for kind in self._kinds.values())

    def left(self) -> float:
        """Seconds that the stages take that are left, the one that is running as if it had just begun."""
        expected, taken = self._totals()
        overall = (taken + self._prior) / (expected + self._prior) if expected + self._prior else 1.0
        return max(sum(_factor(kind, overall) * kind.seconds_left for kind in self._kinds.values()), 0.0)

    def pace(self) -> float:
        """What the finished stages took over what was forecast of them: 2 is half as fast as planned; 1 at first."""
        expected, taken = self._totals()
        return taken / expected if expected else 1.0

    def said(self) -> str:
        """What is left, in words: `about 3 min 20 s left`; empty where nothing is known."""
        left = self.left() if self._pending else 0.0
        return f"{'about' if self.known else 'at least'} {spoken(left)} left" if left else ""

    def _totals(self) -> tuple[float, float]:
        kinds = self._kinds.values()
        return sum(kind.told for kind in kinds), sum(kind.told_taken for kind in kinds)


def _factor(kind: _Kind, overall: float) -> float:
    """What a kind's stages take over what was forecast of them."""
    if not kind.told:
        return overall
    weight = OWN * kind.told / max(kind.done, 1)
    return (kind.told_taken + weight * overall) / (kind.told + weight)
