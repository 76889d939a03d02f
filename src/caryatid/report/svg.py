"""A small SVG writer: line charts with intervals, heat maps and dot plots, the same bytes for the same numbers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

# Okabe and Ito's palette, which colour-blind readers can tell apart; step 0 is grey.
COLOURS: Mapping[str, str] = {
    "base": "#666666",
    "sft": "#0072B2",
    "r2d2": "#D55E00",
    "refusal_sft": "#009E73",
}
OTHERS = ("#CC79A7", "#E69F00", "#56B4E9", "#000000")
INK, FAINT, MUTED = "#1d2733", "#d5dbe1", "#5a6672"
LONGEST_NAME = 14
FONT = "font-family='system-ui, sans-serif'"


def colour(arm: str, arms: Sequence[str]) -> str:
    """An arm's colour, the same in every figure of a report."""
    unknown = [name for name in arms if name not in COLOURS]
    return COLOURS.get(arm) or OTHERS[unknown.index(arm) % len(OTHERS)]


def shortened(name: str) -> str:
    """A name that leaves room for the drawing; the tables have it whole."""
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def number(value: float) -> str:
    """A coordinate, with two decimals at most."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


@dataclass(frozen=True)
class Point:
    """A value with its interval (NaN: none) at x."""

    x: float
    y: float
    lo: float = math.nan
    hi: float = math.nan
    note: str = ""


@dataclass(frozen=True)
class Series:
    """A line of points in one colour."""

    name: str
    colour: str
    points: Sequence[Point]


@dataclass
class Drawing:
    """Elements collected on a canvas of fixed size."""

    width: float
    height: float
    title: str
    parts: list[str] = field(default_factory=list)

    def line(
        self, x1: float, y1: float, x2: float, y2: float, stroke: str = FAINT, width: float = 1.0
    ) -> None:
        ends = " ".join(f"{k}='{number(v)}'" for k, v in (("x1", x1), ("y1", y1), ("x2", x2), ("y2", y2)))
        self.parts.append(f"<line {ends} stroke='{stroke}' stroke-width='{number(width)}'/>")

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        size: float = 12,
        anchor: str = "start",
        fill: str = INK,
        bold: bool = False,
    ) -> None:
        weight = " font-weight='600'" if bold else ""
        place = f"x='{number(x)}' y='{number(y)}' font-size='{number(size)}' text-anchor='{anchor}'"
        self.parts.append(f"<text {place} fill='{fill}'{weight}>{escape(words)}</text>")

    def rect(
        self, x: float, y: float, w: float, h: float, fill: str, stroke: str = "none", tip: str = ""
    ) -> None:
        place = f"x='{number(x)}' y='{number(y)}' width='{number(w)}' height='{number(h)}'"
        inner = f"<title>{escape(tip)}</title>" if tip else ""
        self.parts.append(f"<rect {place} fill='{fill}' stroke='{stroke}'>{inner}</rect>")

    def dot(
        self, x: float, y: float, fill: str, radius: float = 4, tip: str = "", hollow: bool = False
    ) -> None:
        paint = f"fill='white' stroke='{fill}' stroke-width='2'" if hollow else f"fill='{fill}'"
        inner = f"<title>{escape(tip)}</title>" if tip else ""
        self.parts.append(
            f"<circle cx='{number(x)}' cy='{number(y)}' r='{number(radius)}' {paint}>{inner}</circle>"
        )

    def path(self, places: Sequence[tuple[float, float]], stroke: str) -> None:
        joined = " ".join(f"{number(x)},{number(y)}" for x, y in places)
        self.parts.append(f"<polyline points='{joined}' fill='none' stroke='{stroke}' stroke-width='2'/>")

    def svg(self) -> str:
        """The finished element, which names itself to screen readers."""
        size = f"viewBox='0 0 {number(self.width)} {number(self.height)}'"
        head = (
            f"<svg xmlns='http://www.w3.org/2000/svg' {size} role='img' {FONT} width='{number(self.width)}'>"
        )
        return f"{head}<title>{escape(self.title)}</title>{''.join(self.parts)}</svg>\n"


def ticks(low: float, high: float) -> list[float]:
    """Four to six round values that span an interval."""
    span = high - low or 1.0
    step = 10 ** math.floor(math.log10(span / 4))
    step *= next(m for m in (1, 2, 2.5, 5, 10) if span / (step * m) <= 5)
    first = math.ceil(low / step - 1e-9)
    return [round((first + i) * step, 10) for i in range(int((high - first * step) / step + 1e-9) + 1)]


def _bounds(series: Sequence[Series], fixed: tuple[float, float] | None) -> tuple[float, float]:
    if fixed:
        return fixed
    values = [v for s in series for p in s.points for v in (p.y, p.lo, p.hi) if math.isfinite(v)]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    pad = 0.08 * (high - low or 1.0)
    return low - pad, high + pad


@dataclass(frozen=True)
class Frame:
    """What a chart has besides its values.

    Attributes:
        steps: places on the x axis, evenly spaced; `axis` names them: steps of anchors, or layers.
        bounds: lowest and highest value of the y axis; None: as the values ask for.
        zero: where a heavier horizontal line is drawn.
        empty: written where there is no point to draw.
    """

    title: str
    steps: Sequence[int]
    bounds: tuple[float, float] | None = None
    zero: float | None = None
    axis: str = "step"
    empty: str = "no value"


def panel(
    drawing: Drawing, box: tuple[float, float, float, float], series: Sequence[Series], frame: Frame
) -> None:
    """One chart of values over the places of a frame, in the box (x, y, width, height)."""
    steps, zero, axis = frame.steps, frame.zero, frame.axis
    x0, y0, width, height = box
    left, top, right, bottom = x0 + 40, y0 + 26, x0 + width - 12, y0 + height - 34
    low, high = _bounds(series, frame.bounds)

    def at_y(value: float) -> float:
        return bottom - (value - low) / (high - low) * (bottom - top)

    def at_x(step: float) -> float:
        index = list(steps).index(int(step))
        return left + 12 + index * (right - left - 24) / max(len(steps) - 1, 1)

    drawing.text(x0 + 6, y0 + 15, frame.title, bold=True, size=13)
    for tick in ticks(low, high):
        drawing.line(left, at_y(tick), right, at_y(tick))
        drawing.text(left - 6, at_y(tick) + 4, f"{tick:g}", anchor="end", size=11)
    if zero is not None and low < zero < high:
        drawing.line(left, at_y(zero), right, at_y(zero), "#8a949e", 1.5)
    for step in steps:
        drawing.text(at_x(step), bottom + 16, str(step), anchor="middle", size=11)
    drawing.text((left + right) / 2, bottom + 31, axis, anchor="middle", size=10, fill=MUTED)
    if not any(math.isfinite(point.y) for one in series for point in one.points):
        drawing.text((left + right) / 2, (top + bottom) / 2, frame.empty, anchor="middle", fill=MUTED)
    for offset, one in enumerate(series):
        shift = (offset - (len(series) - 1) / 2) * 5
        shown = [p for p in one.points if math.isfinite(p.y)]
        drawing.path([(at_x(p.x) + shift, at_y(p.y)) for p in shown], one.colour)
        for p in shown:
            x = at_x(p.x) + shift
            if math.isfinite(p.lo) and math.isfinite(p.hi):
                ends = [min(max(v, low), high) for v in (p.lo, p.hi)]
                drawing.line(x, at_y(ends[0]), x, at_y(ends[1]), one.colour, 1.5)
            interval = f" [{p.lo:.3g}, {p.hi:.3g}]" if math.isfinite(p.lo) and math.isfinite(p.hi) else ""
            tip = f"{one.name}, {axis} {p.x:g}: {p.y:.3g}{interval} {p.note}"
            drawing.dot(x, at_y(p.y), one.colour, tip=tip)


def legend(drawing: Drawing, x: float, y: float, entries: Sequence[tuple[str, str]]) -> None:
    """Coloured dots with names, in one row."""
    for name, fill in entries:
        drawing.dot(x, y - 4, fill)
        drawing.text(x + 9, y, name, size=12)
        x += 28 + 7.2 * len(name)


def shade(value: float) -> str:
    """From white (0 and below) to deep blue (1 and above); grey where there is no value."""
    if not math.isfinite(value):
        return "#eeeeee"
    share = min(max(value, 0.0), 1.0)
    low, high = (255, 255, 255), (8, 64, 129)
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(low, high, strict=True))


def ink_on(value: float) -> str:
    """Text colour that is legible on `shade(value)`."""
    return "#ffffff" if math.isfinite(value) and value > 0.5 else INK
