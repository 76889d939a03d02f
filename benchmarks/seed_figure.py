"""The trajectories of several seeds in one figure: behaviour, place and turn at every anchor, with intervals."""

import math
from collections.abc import Callable, Sequence

from across_seeds import Seed, anchors_of, arms_of
from caryatid.report.charts import SYMBOLS, Chart, Line, Panel, colour, columns
from caryatid.report.plot import drawn
from compared_arms import LIMITS, Cell

SPREAD = 0.6  # from the first line's point to the last one's, in distances of anchors
Value = Callable[[Seed, str, int], Cell]


def _rate(name: str) -> Value:
    return lambda seed, arm, step: seed.rate(arm, step, name)


def _turn(seed: Seed, arm: str, step: int) -> Cell:
    return seed.angle(arm, (0, step))


def _depth(seed: Seed, arm: str, step: int) -> Cell:
    return seed.anchor(arm, step).depth


def _old(seed: Seed, arm: str, step: int) -> Cell:
    return seed.removal(arm, (0, step))


# Title, what is shown, unit; a panel without any point is left out.
PANELS: tuple[tuple[str, Value, str], ...] = (
    ("Direct: requests answered", _rate("direct answered"), "share"),
    ("Fixed-source GCG: answered", _rate("fixed-source answered"), "share"),
    ("Adaptive GCG: answered", _rate("adaptive answered"), "share"),
    ("XSTest safe: any refusal", _rate("XSTest safe refused"), "share"),
    ("Benign utility: passed", _rate("utility passed"), "share"),
    ("Turned since step 0", _turn, "degrees"),
    ("Carrier depth", _depth, "share of the layers"),
    ("Refusals that step 0's carrier removes", _old, "share"),
)


def chart(seeds: Sequence[Seed]) -> Chart:
    """A panel a quantity; an arm's colour, a seed's symbol; anchors evenly spaced, so that early ones can be read."""
    arms = arms_of(seeds)
    steps = sorted({0, *(step for arm in arms for step in anchors_of(seeds, arm))})
    panels = []
    for title, value, unit in PANELS:
        lines = tuple(_lines(seeds, arms, steps, value))
        tops = [y for line in lines for y in (*line.y, *line.hi) if math.isfinite(y)]
        if tops:
            degrees = unit == "degrees"
            panels.append(
                Panel(
                    title,
                    lines,
                    x="step (not to scale)",
                    y=unit,
                    y_range=(0.0, max(LIMITS.angle, *tops) if degrees else 1.0),
                    level=LIMITS.angle if degrees else None,
                    steps=False,
                    x_names=tuple(map(str, steps)),
                )
            )
    return Chart("The same study with other seeds", tuple(panels))


def _lines(seeds: Sequence[Seed], arms: Sequence[str], steps: Sequence[int], value: Value) -> list[Line]:
    """One line an arm and seed, side by side at each anchor."""
    found, most = [], max(1, len(arms) * len(seeds) - 1)
    for place, arm in enumerate(arms):
        for number, seed in enumerate(seeds):
            shift = SPREAD * ((place * len(seeds) + number) / most - 0.5)
            cells = [value(seed, arm, step) for step in steps]
            had = [index for index, one in enumerate(cells) if one.there]
            found.append(
                Line(
                    f"{arm}, seed {seed.number}",
                    colour(arm, arms),
                    tuple(index + shift for index in had),
                    *columns([(cells[index].value, cells[index].lo, cells[index].hi) for index in had]),
                    symbol=SYMBOLS[number % len(SYMBOLS)],
                )
            )
    return found


def svg(seeds: Sequence[Seed]) -> bytes:
    """The figure as a file's content."""
    return drawn(chart(seeds), "svg")[0]
