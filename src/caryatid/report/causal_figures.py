"""Figures of causality: the dose response, the layer profile, and what is left of an old carrier's control."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from .figures import arms_of, steps_of, trajectory_of, value_of
from .svg import MUTED, Drawing, Frame, Point, Series, colour, legend, panel, shortened, ticks

Row = Mapping[str, Any]
Tables = Mapping[str, Sequence[Row]]
DOSES = (
    ("untouched", "#1d2733"),
    ("carrier ablated, rank 1 … k", "#D55E00"),
    ("carrier added, α", "#0072B2"),
    ("other directions", "#009E73"),
    ("random, ablated", "#b8c0c8"),
)
RATES = ("_any_refusal", "_degenerate", "_pass")  # endings of read-outs between 0 and 1


class Kind(NamedTuple):
    """Conditions that are drawn alike."""

    name: str
    fill: str
    holds: Callable[[Row], bool]


def _is(intervention: str, control: str, rank: int | None = None, alpha: float | None = None) -> Any:
    def holds(row: Row) -> bool:
        same = row["intervention"] == intervention and row["control"] == control
        return same and rank in (None, row["rank"]) and alpha in (None, row["alpha"])

    return holds


def kinds_of(rows: Sequence[Row]) -> list[Kind]:
    """The conditions of a read-out that are shown: nothing, the carrier ablated at rank 1 and at the largest rank that
    has random controls (or else that there is), the carrier added at α = 1, and these controls."""
    ablated = [row for row in rows if row["intervention"] == "ablate" and row["rank"] > 1]
    ranks = {row["rank"] for row in ablated if row["control"] == "random"} or {r["rank"] for r in ablated}
    k = max(ranks, default=0)
    kinds = [
        Kind("no intervention", "#666666", _is("none", "none")),
        Kind("carrier ablated, rank 1", "#D55E00", _is("ablate", "carrier", 1)),
        Kind(f"carrier ablated, rank {k}", "#CC79A7", _is("ablate", "carrier", k)),
        Kind("carrier added, α = 1", "#0072B2", _is("add", "carrier", None, 1.0)),
        Kind("random, rank 1", "#c3cad1", _is("ablate", "random", 1)),
        Kind(f"random, rank {k}", "#8d99a6", _is("ablate", "random", k)),
    ]
    return [kind for kind in kinds if any(kind.holds(row) for row in rows)]


def causal_figure(tables: Tables, seed: int, read_out: str, words: str) -> str:
    """A read-out under nothing, the carrier and random controls, anchor by anchor."""
    rows = [r for r in tables["causal"] if r["seed"] == seed and r["read_out"] == read_out]
    anchors = list(dict.fromkeys((row["arm"], row["step"]) for row in rows))
    kinds = kinds_of(rows)
    lane, top = 7, 40
    height = lane * len(kinds) + 8
    shown = [row for row in rows if any(kind.holds(row) for kind in kinds)]
    low, high = _range(shown, read_out)
    drawing = Drawing(960, top + height * len(anchors) + 44, f"{words} under interventions")
    legend(drawing, 14, 20, [(kind.name, kind.fill) for kind in kinds])
    labels = [f"{shortened(arm)}, step {step}" for arm, step in anchors]
    left, right, foot = 24 + 6.8 * max(map(len, labels), default=0), 930, top + height * len(anchors)

    def at(value: float) -> float:
        return left + (value - low) / (high - low) * (right - left)

    for tick in ticks(low, high):
        drawing.line(at(tick), top, at(tick), foot)
        drawing.text(at(tick), foot + 16, f"{tick:g}", anchor="middle", size=11)
    drawing.text((left + right) / 2, foot + 33, words, anchor="middle", size=11, fill=MUTED)
    for y, (arm, step) in enumerate(anchors):
        drawing.line(left, top + height * y, right, top + height * y)
        middle = top + height * (y + 0.5) + 4
        drawing.text(left - 10, middle, labels[y], anchor="end")
        for number, kind in enumerate(kinds):
            place = top + height * y + 4 + lane * (number + 0.5)
            for row in shown:
                if (row["arm"], row["step"]) == (arm, step) and kind.holds(row):
                    _reading(drawing, at, place, kind, row)
    return drawing.svg()


def _reading(drawing: Drawing, at: Callable[[float], float], y: float, kind: Kind, row: Row) -> None:
    """A value and its interval; the spread of random controls speaks for itself."""
    value, low, high = _with_interval(row)
    if not math.isfinite(value):
        return
    if not kind.name.startswith("random") and math.isfinite(low) and math.isfinite(high):
        drawing.line(at(low), y, at(high), y, kind.fill, 1.5)
    tip = f"{kind.name}: {value:.3g} [{low:.3g}, {high:.3g}], n = {row.get('n', '–')}"
    drawing.dot(at(value), y, kind.fill, 3.5, tip)


def _range(rows: Sequence[Row], read_out: str) -> tuple[float, float]:
    if read_out.endswith(RATES):
        return 0.0, 1.0
    values = [v for row in rows for v in _with_interval(row) if math.isfinite(v)]
    return _span([0.0, *values]) if values else (0.0, 1.0)


class Dose(NamedTuple):
    """A condition's place: what it costs (x) and what refusal is left (y)."""

    kind: str
    name: str
    x: float
    y: float
    order: float


def doses(rows: Sequence[Row]) -> list[Dose]:
    """Teacher-forced cost (NLL of benign answers) and refusal score of every condition of one anchor."""
    keys = ("intervention", "rank", "alpha", "control", "draw")
    by_read_out: dict[str, dict[tuple[Any, ...], Row]] = {"benign_nll": {}, "refusal_score": {}}
    for row in rows:
        if row["read_out"] in by_read_out:
            by_read_out[row["read_out"]][tuple(row.get(key) for key in keys)] = row
    found = []
    for key, row in by_read_out["refusal_score"].items():
        cost = by_read_out["benign_nll"].get(key)
        x, y = (value_of(cost), value_of(row)) if cost else (math.nan, math.nan)
        if math.isfinite(x) and math.isfinite(y):
            found.append(Dose(*_kind(row), x, y, float(row["alpha" if key[0] == "add" else "rank"])))
    return found


def _kind(row: Row) -> tuple[str, str]:
    names = [name for name, _ in DOSES]
    if row["intervention"] == "none":
        return names[0], names[0]
    if row["control"] == "carrier":
        added = row["intervention"] == "add"
        return (names[2], f"α {row['alpha']:g}") if added else (names[1], f"k {row['rank']}")
    if str(row["control"]).startswith("random"):
        return names[4], str(row["control"])
    return names[3], str(row["control"])


def frontier(points: Sequence[Dose]) -> list[Dose]:
    """The points that no other one beats: less refusal at no more cost. In order of cost."""
    best: list[Dose] = []
    for each in sorted(points, key=lambda point: (point.x, point.y)):
        if not best or each.y < best[-1].y:
            best.append(each)
    return best


def frontier_figure(tables: Tables, seed: int) -> str:
    """Refusal against utility: one panel for each anchor with a dose response."""
    rows = [row for row in tables["causal"] if row["seed"] == seed]
    anchors = list(dict.fromkeys((row["arm"], row["step"]) for row in rows))
    panels = [
        (anchor, doses([row for row in rows if (row["arm"], row["step"]) == anchor])) for anchor in anchors
    ]
    panels = [(anchor, found) for anchor, found in panels if len({dose.name for dose in found}) > 4]
    columns = 3
    height = 40 + 250 * max(1, -(-len(panels) // columns))
    drawing = Drawing(960, height, "Refusal against utility under interventions")
    legend(drawing, 14, 20, DOSES)
    for index, ((arm, step), found) in enumerate(panels):
        box = (320.0 * (index % columns), 36.0 + 250 * (index // columns), 312.0, 246.0)
        _scatter(drawing, box, found, f"{shortened(arm)}, step {step}")
    return drawing.svg()


def _scatter(
    drawing: Drawing, box: tuple[float, float, float, float], found: Sequence[Dose], title: str
) -> None:
    x0, y0, width, height = box
    left, top, right, bottom = x0 + 40, y0 + 26, x0 + width - 12, y0 + height - 38
    low_x, high_x = _span([each.x for each in found])
    low_y, high_y = _span([each.y for each in found])

    def at(dose: Dose) -> tuple[float, float]:
        return (
            left + (dose.x - low_x) / (high_x - low_x) * (right - left),
            bottom - (dose.y - low_y) / (high_y - low_y) * (bottom - top),
        )

    drawing.text(x0 + 6, y0 + 15, title, bold=True, size=13)
    for tick in ticks(low_y, high_y):
        y = bottom - (tick - low_y) / (high_y - low_y) * (bottom - top)
        drawing.line(left, y, right, y)
        drawing.text(left - 6, y + 4, f"{tick:g}", anchor="end", size=11)
    for tick in ticks(low_x, high_x):
        x = left + (tick - low_x) / (high_x - low_x) * (right - left)
        drawing.text(x, bottom + 15, f"{tick:g}", anchor="middle", size=11)
    middle = (left + right) / 2
    drawing.text(middle, bottom + 30, "NLL of benign answers, nats", anchor="middle", size=10, fill=MUTED)
    drawing.path([at(each) for each in frontier(found)], "#8a949e")
    colours = dict(DOSES)
    for kind, _ in reversed(DOSES):
        mine = sorted((each for each in found if each.kind == kind), key=lambda each: each.order)
        if kind.startswith("carrier"):
            drawing.path([at(each) for each in mine], colours[kind])
        for each in mine:
            x, y = at(each)
            tip = f"{each.kind}, {each.name}: refusal score {each.y:.3g}, NLL {each.x:.3g}"
            drawing.dot(x, y, colours[kind], 3 if kind.startswith("random") else 4, tip)
            if kind.startswith("carrier"):
                drawing.text(x + 5, y - 5, each.name, size=9, fill=colours[kind])


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    pad = 0.08 * (high - low or 1.0)
    return low - pad, high + pad


def profile_figure(tables: Tables, seed: int) -> str:
    """What ablating the carrier at one layer alone takes from the refusal score, anchor by anchor."""
    rows = [row for row in tables["localisation"] if row["seed"] == seed]
    anchors = list(dict.fromkeys((row["arm"], row["step"]) for row in rows))
    layers = sorted({row["layer"] for row in rows})
    arms = arms_of(tables, seed)
    columns = 3
    drawing = Drawing(960, 40 + 200 * max(1, -(-len(anchors) // columns)), "Layer profile of the carrier")
    drawing.text(
        14, 20, "Nats that ablating the carrier at one layer takes from the refusal score", bold=True
    )
    for index, anchor in enumerate(anchors):
        mine = [row for row in rows if (row["arm"], row["step"]) == anchor]
        box = (320.0 * (index % columns), 36.0 + 200 * (index // columns), 312.0, 196.0)
        points = [Point(row["layer"], *_with_interval(row), f"n = {row['n']}") for row in mine]
        line = [Series(anchor[0], colour(anchor[0], arms), points)]
        title = f"{shortened(anchor[0])}, step {anchor[1]} (carrier of layer {mine[0]['carrier_layer']})"
        panel(drawing, box, line, Frame(title, layers, zero=0.0, axis="layer"))
    return drawing.svg()


def control_figure(tables: Tables, seed: int) -> str:
    """How much of each anchor's refusal step 0's carrier still removes, alone and beside the anchor's own carrier."""
    arms, steps = arms_of(tables, seed), steps_of(tables, seed)
    rows = [row for row in tables["transfer"] if row["seed"] == seed]
    from_start = [row for row in rows if (row["from_arm"], row["from"]) == ("base", 0)]
    own = [row for row in rows if (row["from_arm"], row["from"]) == (row["arm"], row["to"])]
    drawing = Drawing(960, 250, "What is left of step 0's carrier's control")
    legend(drawing, 20, 22, [(arm, colour(arm, arms)) for arm in arms])
    shown = (
        ("Step 0's carrier: refusals removed", from_start, "transfer", (0.0, 1.0)),
        ("The anchor's own carrier", own, "transfer", (0.0, 1.0)),
        ("Ratio of the two (one-sided bounds)", list(_ratios(from_start, own)), "ratio", None),
    )
    for index, (title, chosen, quantity, bounds) in enumerate(shown):
        mine = [{**row, "step": row["to"]} for row in chosen if row["quantity"] == quantity]
        box = (320.0 * index, 36.0, 312.0, 210.0)
        panel(drawing, box, trajectory_of(mine, arms), Frame(title, steps, bounds))
    return drawing.svg()


def _ratios(from_start: Sequence[Row], own: Sequence[Row]) -> Iterator[Row]:
    """The ratios, and 1 at step 0 where its own carrier removes anything."""
    yield from (row for row in from_start if row["quantity"] == "ratio")
    for row in own:
        if row["arm"] == "base" and value_of(row) > 0:
            yield {**row, "quantity": "ratio", "value": 1.0, "lo": 1.0, "hi": 1.0}


def _with_interval(row: Row) -> tuple[float, float, float]:
    return value_of(row), value_of(row, "lo"), value_of(row, "hi")
