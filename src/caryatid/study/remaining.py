"""How long a study still takes: what was forecast of the stages that are left, corrected by what the others took.

Where the device was not timed before, the forecast is a guess (`nominal`): its scale is corrected in the same way.
Stages of a kind are off by one factor, whose best guess is that of the kind's finished stages; with few of them it is
drawn towards the factor of all finished stages, and with few of these towards 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from .forecast import spoken
from .plan import Plan, Planned

PRIOR = 0.02  # weight of the forecast itself, as a share of the whole study's seconds
GUESS = 0.002  # the same of a guess
OWN = 0.5  # weight of all kinds in a kind's factor, in mean stages of it: kinds differ more than stages of one do
OVERRUN = 0.3  # of what a stage has taken already, the least that it is taken to take still


@dataclass
class _Kind:
    """Finished stages of one kind.

    Attributes:
        done, taken: how many, and their seconds. told, told_taken, told_done: forecast and taken seconds of those that
            have a forecast, and how many these are; without one, or with one of nothing, they tell nothing.
    """

    done: int = 0
    taken: float = 0.0
    told: float = 0.0
    told_taken: float = 0.0
    told_done: int = 0


@dataclass
class Remaining:
    """Remaining time of a plan.

    Args:
        plan: what runs. forecast: seconds by a stage's id. Of a stage that it leaves out, finished stages of its kind
            tell what they took, and nothing is known before one has finished.
        guessed: whether the forecast is a guess, which is no plan that a pace could be compared with.

    >>> remaining = Remaining(plan, forecast.seconds)
    >>> remaining.finished(entry, 12.3)
    >>> remaining.left()
    """

    plan: Plan
    forecast: Mapping[str, float] = field(default_factory=dict)
    guessed: bool = False

    def __post_init__(self) -> None:
        alike: dict[str, Planned] = {}  # stages that do not differ run once, under the first of their names
        for entry in self.plan:
            alike.setdefault(entry.key, entry)
        self._pending = {entry.id: entry for entry in alike.values()}
        self._kinds: dict[str, _Kind] = {entry.stage.kind: _Kind() for entry in self.plan}
        self._prior = (GUESS if self.guessed else PRIOR) * sum(self.forecast.values())

    def finished(self, entry: Planned, seconds: float | None) -> None:
        """A stage that was left took so many seconds; one that was not left, or whose seconds are unknown (None), tells
        nothing."""
        if self._pending.pop(entry.id, None) is None or seconds is None:
            return
        kind, expected = self._kinds[entry.stage.kind], self.forecast.get(entry.id, 0.0)
        kind.done, kind.taken = kind.done + 1, kind.taken + seconds
        if expected > 0:
            kind.told, kind.told_taken = kind.told + expected, kind.told_taken + seconds
            kind.told_done += 1

    @property
    def entries(self) -> list[Planned]:
        """Stages that are left."""
        return list(self._pending.values())

    @property
    def known(self) -> bool:
        """Whether something is known of every stage that is left."""
        return all(entry.id in self.forecast or self._of(entry).done for entry in self.entries)

    def left(self, running: Mapping[str, float] | None = None, runners: int = 1) -> float:
        """Seconds until the stages that are left are done.

        Args:
            running: seconds that stages have been running for, by id; the others are taken to begin only now.
            runners: how many work at once, each on a share of all, none on a stage before those that it needs.
        """
        begun, overall = running or {}, self._overall()
        rests = {
            entry.key: _rest(self._expected(entry, overall), begun.get(entry.id, 0.0))
            for entry in self.entries
        }
        return max(sum(rests.values()) / runners, self._longest(rests))

    def pace(self) -> float:
        """What the finished stages took over what was forecast of them: 2 is half as fast as planned; 1 at first, and
        where nothing but a guess was made."""
        expected, taken = self._totals()
        return taken / expected if expected and not self.guessed else 1.0

    def said(self, running: Mapping[str, float] | None = None, runners: int = 1) -> str:
        """What is left (`left`), in words: `about 3 min 20 s left`; empty where nothing is known."""
        left = self.left(running, runners)
        if left < (0.5 if self.guessed else 1e-9):  # of a tiny model a guess says nothing
            return ""
        how = ("roughly" if self.guessed else "about") if self.known else "at least"
        return f"{how} {spoken(left)} left"

    def _longest(self, rests: Mapping[str, float]) -> float:
        """Seconds of the longest chain of stages that are left, of which each needs the one before."""
        ends: dict[str, float] = {}

        def end(entry: Planned) -> float:
            if entry.key not in ends:
                before = (end(need) for need in entry.needs if need.key in rests)
                ends[entry.key] = rests[entry.key] + max(before, default=0.0)
            return ends[entry.key]

        return max((end(entry) for entry in self.entries), default=0.0)

    def _of(self, entry: Planned) -> _Kind:
        return self._kinds[entry.stage.kind]

    def _expected(self, entry: Planned, overall: float) -> float:
        """Seconds of a stage: its forecast, corrected; without one, or with one of nothing, those that finished stages
        of its kind took, if there are any."""
        kind, told = self._of(entry), self.forecast.get(entry.id, 0.0)
        if told > 0:
            return _factor(kind, overall) * told
        return kind.taken / kind.done if kind.done else 0.0

    def _overall(self) -> float:
        """What stages of a kind of which none has finished take over what was forecast of them."""
        expected, taken = self._totals()
        return (taken + self._prior) / (expected + self._prior) if expected + self._prior else 1.0

    def _totals(self) -> tuple[float, float]:
        kinds = self._kinds.values()
        return sum(kind.told for kind in kinds), sum(kind.told_taken for kind in kinds)


def _factor(kind: _Kind, overall: float) -> float:
    """What a kind's stages take over what was forecast of them."""
    if not kind.told:
        return overall
    weight = OWN * kind.told / kind.told_done
    return (kind.told_taken + weight * overall) / (kind.told + weight)


def _rest(expected: float, begun: float) -> float:
    """What is left of a stage that has run for `begun` seconds; one that overruns long may take long still."""
    return max(expected - begun, OVERRUN * begun)
