"""What a chart is, apart from how it is drawn: `plot.py` draws it to a file, `assets/charts.js` in the browser."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

Row = Mapping[str, Any]
Tables = Mapping[str, Sequence[Row]]
Mark = str  # line: points joined, with bars; dots: points alone; path: a thin line without points

# Okabe and Ito's palette, which colour-blind readers can tell apart; every arm also has a symbol of its own.
COLOURS: Mapping[str, str] = {
    "base": "#767676",
    "sft": "#0072B2",
    "r2d2": "#D55E00",
    "refusal_sft": "#009E73",
}
OTHERS = ("#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "triangle-down")
NEUTRAL = "#8a949e"
LONGEST_NAME = 18


@dataclass(frozen=True)
class Line:
    """Points in one colour.

    Attributes:
        x, y: coordinates; NaN: no point. lo, hi: ends of the intervals of y; empty or NaN: none. tips: a text a point,
            shown where the pointer is. mark: see `Mark`. labels: a short text beside each point; empty: none.
    """

    name: str
    colour: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    lo: tuple[float, ...] = ()
    hi: tuple[float, ...] = ()
    tips: tuple[str, ...] = ()
    mark: Mark = "line"
    symbol: str = "circle"
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Panel:
    """Axes with lines in them.

    Attributes:
        x, y: titles of the axes. y_range: None: what the lines need. level: a horizontal line that means something.
        bands: shaded ranges of y, each with its name. steps: x is optimizer steps, so that the page's slider marks one.
        step: the one step that it shows; None: all, or none in particular. empty: what is said where there is no point.
        x_names: words for x = 0, 1, …, where x is no number.
    """

    title: str
    lines: tuple[Line, ...]
    x: str = "step"
    y: str = ""
    y_range: tuple[float, float] | None = None
    level: float | None = None
    bands: tuple[tuple[str, float, float], ...] = ()
    steps: bool = True
    step: int | None = None
    empty: str = "nothing to show"
    x_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Grid:
    """A matrix of numbers between 0 and 1, row 0 at the top.

    Attributes:
        columns, rows: their names. values: rows of columns; NaN: none. tips: a text a cell. framed: cells with a frame
            (row, column); marked: cells with a disc; ringed: cells with a ring. column_steps: the step of each column.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]
    tips: tuple[tuple[str, ...], ...]
    x: str = ""
    y: str = ""
    framed: tuple[tuple[int, int], ...] = ()
    marked: tuple[tuple[int, int], ...] = ()
    ringed: tuple[tuple[int, int], ...] = ()
    column_steps: tuple[int, ...] = ()


@dataclass(frozen=True)
class Chart:
    """Panels that belong together."""

    title: str
    panels: tuple[Panel | Grid, ...]
    columns: int = 3


def plain(chart: Chart) -> dict[str, Any]:
    """A chart as values that JSON has: NaN becomes null, and what is as by default is left out."""
    panels = [
        {"kind": "grid" if isinstance(panel, Grid) else "panel", **_plain(asdict(panel))}
        for panel in chart.panels
    ]
    return {"title": chart.title, "panels": panels}


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        kept = {key: _plain(item) for key, item in value.items()}
        return {key: item for key, item in kept.items() if item not in (None, [], "")}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def colour(arm: str, arms: Sequence[str]) -> str:
    """An arm's colour, the same in every chart of a report."""
    unknown = [name for name in arms if name not in COLOURS]
    return COLOURS.get(arm) or OTHERS[unknown.index(arm) % len(OTHERS)]


def symbol(arm: str, arms: Sequence[str]) -> str:
    """An arm's symbol, which tells it apart without colour."""
    return SYMBOLS[list(arms).index(arm) % len(SYMBOLS)] if arm in arms else "circle"


def shortened(name: str) -> str:
    """A name that leaves room for the drawing; the tables have it whole."""
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def value_of(row: Row | None, key: str = "value") -> float:
    """A cell as a number; null as NaN."""
    found = None if row is None else row.get(key)
    return math.nan if found is None else float(found)


def span_of(row: Row) -> tuple[float, float, float]:
    """A row's value and the ends of its interval."""
    return value_of(row), value_of(row, "lo"), value_of(row, "hi")


def words(value: float, low: float = math.nan, high: float = math.nan) -> str:
    """`0.72 [0.66, 0.77]`, for a tip."""
    interval = f" [{low:.3g}, {high:.3g}]" if math.isfinite(low) and math.isfinite(high) else ""
    return f"{value:.3g}{interval}" if math.isfinite(value) else "–"


def arms_of(tables: Tables, seed: int) -> list[str]:
    """Arms in their order, without step 0."""
    rows = [row for row in tables["behaviour"] if row["seed"] == seed and row["arm"] != "base"]
    return list(dict.fromkeys(row["arm"] for row in rows))


Values = tuple[float, ...]


def columns(spans: Sequence[tuple[float, float, float]]) -> tuple[Values, Values, Values]:
    """Values, and the lower and upper ends of their intervals, as a line takes them."""
    return tuple(s[0] for s in spans), tuple(s[1] for s in spans), tuple(s[2] for s in spans)


def trajectory_of(rows: Sequence[Row], arms: Sequence[str]) -> tuple[Line, ...]:
    """One line an arm, each starting at the shared step 0."""
    found = []
    for arm in arms:
        mine = sorted((row for row in rows if row["arm"] in ("base", arm)), key=lambda row: row["step"])
        spans = [span_of(row) for row in mine]
        found.append(
            Line(
                arm,
                colour(arm, arms),
                tuple(float(row["step"]) for row in mine),
                *columns(spans),
                tips=tuple(
                    f"{arm}, step {row['step']}: {words(*span)}, n = {row.get('n', '–')}"
                    for row, span in zip(mine, spans, strict=True)
                ),
                symbol=symbol(arm, arms),
            )
        )
    return tuple(found)
