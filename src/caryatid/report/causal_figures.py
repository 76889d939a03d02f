"""Charts of causality: read-outs under interventions, dose response, layer profile, an old carrier's control."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from .charts import (
    NEUTRAL,
    Chart,
    Line,
    Panel,
    Row,
    Tables,
    arms_of,
    colour,
    columns,
    shortened,
    span_of,
    symbol,
    trajectory_of,
    value_of,
    words,
)

DOSES = (
    ("untouched", "#767676", "star"),
    ("carrier ablated, rank 1 … k", "#D55E00", "square"),
    ("carrier added, α", "#0072B2", "circle"),
    ("other directions", "#009E73", "diamond"),
    ("random", "#b8c0c8", "x"),
)
RATES = ("_any_refusal", "_degenerate", "_pass")  # endings of read-outs between 0 and 1
SPREAD = 0.3  # half the width that an anchor's conditions take of its place


class Kind(NamedTuple):
    """Conditions that are drawn alike."""

    name: str
    fill: str
    symbol: str
    holds: Callable[[Row], bool]


def _is(intervention: str, control: str, rank: int | None = None, alpha: float | None = None) -> Any:
    def holds(row: Row) -> bool:
        same = row["intervention"] == intervention and row["control"] == control
        return same and rank in (None, row["rank"]) and alpha in (None, row["alpha"])

    return holds


def kinds_of(rows: Sequence[Row]) -> list[Kind]:
    """The conditions of a read-out that are shown: nothing, the carrier ablated at rank 1 and at the largest rank that
    has random controls (that there is, where no rank has any), the carrier added at α = 1, and these controls."""
    ablated = [row for row in rows if row["intervention"] == "ablate"]
    controlled = [row for row in ablated if row["control"] == "random"]
    k = max((row["rank"] for row in controlled or ablated if row["rank"] > 1), default=0)  # 0: nothing has it
    kinds = [
        Kind("no intervention", "#767676", "star", _is("none", "none")),
        Kind("carrier ablated, rank 1", "#D55E00", "square", _is("ablate", "carrier", 1)),
        Kind(f"carrier ablated, rank {k}", "#CC79A7", "diamond", _is("ablate", "carrier", k)),
        Kind("carrier added, α = 1", "#0072B2", "circle", _is("add", "carrier", None, 1.0)),
        Kind("random, rank 1", "#9aa5b0", "x", _is("ablate", "random", 1)),
        Kind(f"random, rank {k}", "#b8a3c8", "cross", _is("ablate", "random", k)),
    ]
    return [kind for kind in kinds if any(kind.holds(row) for row in rows)]


def causal_chart(tables: Tables, seed: int, read_out: str, title: str) -> Chart:
    """A read-out under nothing, the carrier and random controls, anchor by anchor."""
    rows = [r for r in tables["causal"] if r["seed"] == seed and r["read_out"] == read_out]
    anchors = list(dict.fromkeys((row["arm"], row["step"]) for row in rows))
    kinds = kinds_of(rows)
    lines = []
    for number, kind in enumerate(kinds):
        shift = SPREAD * (2 * number / max(1, len(kinds) - 1) - 1)
        mine = [row for row in rows if kind.holds(row)]
        spans = [span_of(row) for row in mine]
        spread = not kind.name.startswith("random")  # that of random controls speaks for itself
        lines.append(
            Line(
                kind.name,
                kind.fill,
                tuple(anchors.index((row["arm"], row["step"])) + shift for row in mine),
                tuple(value for value, _, _ in spans),
                tuple(low for _, low, _ in spans) if spread else (),
                tuple(high for _, _, high in spans) if spread else (),
                tuple(
                    f"{row['arm']}, step {row['step']}, {kind.name}: {words(*span)}, n = {row.get('n', '–')}"
                    for row, span in zip(mine, spans, strict=True)
                ),
                "dots",
                kind.symbol,
            )
        )
    rate = read_out.endswith(RATES)
    names = tuple(f"{shortened(arm)} {step}" for arm, step in anchors)
    panel = Panel(title, tuple(lines), "", "share" if rate else "nats", (0.0, 1.0) if rate else None,
                  steps=False, x_names=names)  # fmt: skip
    return Chart(f"{title} under interventions", (panel,), columns=1)


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
    names = [name for name, *_ in DOSES]
    if row["intervention"] == "none":
        return names[0], names[0]
    if row["control"] == "carrier" and row["intervention"] == "ablate":
        return names[1], f"k {row['rank']}"
    if row["control"] == "carrier" and row["intervention"] == "add":
        return names[2], f"α {row['alpha']:g}"
    if str(row["control"]).startswith("random"):
        return names[4], str(row["control"])
    other = "" if row["intervention"] == "ablate" else f", {row['intervention']} α {row['alpha']:g}"
    return names[3], f"{row['control']}{other}"


def frontier(points: Sequence[Dose]) -> list[Dose]:
    """The points that no other one beats: less refusal at no more cost. In order of cost."""
    best: list[Dose] = []
    for each in sorted(points, key=lambda point: (point.x, point.y)):
        if not best or each.y < best[-1].y:
            best.append(each)
    return best


def dose_chart(tables: Tables, seed: int) -> Chart:
    """Refusal against utility: one panel for each anchor with a dose response."""
    rows = [row for row in tables["causal"] if row["seed"] == seed]
    panels = []
    for arm, step in dict.fromkeys((row["arm"], row["step"]) for row in rows):
        found = doses([row for row in rows if (row["arm"], row["step"]) == (arm, step)])
        if len({dose.name for dose in found}) > 4:
            title = f"{shortened(arm)}, step {step}"
            axes = "NLL of benign answers (nats)", "refusal score (nats)"
            panels.append(Panel(title, tuple(_dose_lines(found)), *axes, steps=False, step=step))
    return Chart("Refusal against utility under interventions", tuple(panels))


def _dose_lines(found: Sequence[Dose]) -> Iterator[Line]:
    """The frontier, then each kind of condition in the order of its strength."""
    best = frontier(found)
    yield Line(
        "frontier", NEUTRAL, tuple(each.x for each in best), tuple(each.y for each in best), mark="path"
    )
    for kind, fill, mark in DOSES:
        mine = sorted((each for each in found if each.kind == kind), key=lambda each: each.order)
        if mine:
            carrier = kind.startswith("carrier")
            yield Line(
                kind,
                fill,
                tuple(each.x for each in mine),
                tuple(each.y for each in mine),
                tips=tuple(f"{e.kind}, {e.name}: refusal score {e.y:.3g}, NLL {e.x:.3g}" for e in mine),
                mark="line" if carrier else "dots",
                symbol=mark,
                labels=tuple(each.name for each in mine) if carrier else (),
            )


def layers_chart(tables: Tables, seed: int) -> Chart:
    """What ablating the carrier at one layer alone takes from the refusal score, anchor by anchor."""
    rows = [row for row in tables["localisation"] if row["seed"] == seed]
    arms, panels = arms_of(tables, seed), []
    for arm, step in dict.fromkeys((row["arm"], row["step"]) for row in rows):
        mine = [row for row in rows if (row["arm"], row["step"]) == (arm, step)]
        spans = [span_of(row) for row in mine]
        line = Line(
            arm,
            colour(arm, arms),
            tuple(float(row["layer"]) for row in mine),
            *columns(spans),
            tips=tuple(
                f"layer {r['layer']}: {words(*s)}, n = {r['n']}" for r, s in zip(mine, spans, strict=True)
            ),
            symbol=symbol(arm, arms),
        )
        title = f"{shortened(arm)}, step {step} (carrier of layer {mine[0]['carrier_layer']})"
        panels.append(Panel(title, (line,), "layer", "nats removed", level=0.0, steps=False, step=step))
    return Chart("Refusal score taken by ablating the carrier at one layer", tuple(panels))


def control_chart(tables: Tables, seed: int) -> Chart:
    """How much of each anchor's refusal step 0's carrier still removes, alone and beside the anchor's own carrier."""
    arms = arms_of(tables, seed)
    rows = [row for row in tables["transfer"] if row["seed"] == seed and row.get("rank") in (1, None)]
    from_start = [row for row in rows if (row["from_arm"], row["from"]) == ("base", 0)]
    own = [row for row in rows if (row["from_arm"], row["from"]) == (row["arm"], row["to"])]
    shown: tuple[tuple[str, Sequence[Row], str, tuple[float, float] | None], ...] = (
        ("Step 0's carrier: refusals removed", from_start, "transfer", (0.0, 1.0)),
        ("The anchor's own carrier", own, "transfer", (0.0, 1.0)),
        ("Ratio of the two (one-sided bounds)", list(_ratios(from_start, own)), "ratio", None),
    )
    panels = []
    for title, chosen, quantity, bounds in shown:
        mine = [{**row, "step": row["to"]} for row in chosen if row["quantity"] == quantity]
        unit = "ratio" if quantity == "ratio" else "share"
        panels.append(Panel(title, trajectory_of(mine, arms), y=unit, y_range=bounds))
    return Chart("What is left of step 0's carrier's control", tuple(panels))


def _ratios(from_start: Sequence[Row], own: Sequence[Row]) -> Iterator[Row]:
    """The ratios, and 1 at step 0 where its own carrier removes anything."""
    yield from (row for row in from_start if row["quantity"] == "ratio" and row["arm"] != "base")
    for row in own:
        if row["arm"] == "base" and row["quantity"] == "transfer" and value_of(row) > 0:
            yield {**row, "quantity": "ratio", "value": 1.0, "lo": 1.0, "hi": 1.0}
