"""The report's figures, from tables alone."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .svg import MUTED, Drawing, Frame, Point, Series, colour, ink_on, legend, panel, shade, shortened

Row = Mapping[str, Any]
Tables = Mapping[str, Sequence[Row]]

# (title, suite, attack, metric) of the trajectory's panels; attack success is never shown without the others.
TRAJECTORY = (
    ("Direct: requests answered", "harmbench", "direct", "compliance"),
    ("Fixed-source GCG: answered", "harmbench", "fixed_source", "compliance"),
    ("Adaptive GCG: answered", "harmbench", "adaptive", "compliance"),
    ("XSTest safe: any refusal", "xstest_safe", "none", "any_refusal"),
    ("XSTest unsafe: any refusal", "xstest_unsafe", "none", "any_refusal"),
    ("Benign utility: passed", "utility", "none", "pass"),
    ("Degenerate answers (HarmBench)", "harmbench", "direct", "degenerate"),
)

STEPS = ("#9ecae1", "#6baed6", "#4292c6", "#2171b5", "#08519c", "#08306b")  # from early to late steps


def value_of(row: Row, key: str = "value") -> float:
    """A cell as a number; null as NaN."""
    found = row.get(key)
    return math.nan if found is None else float(found)


def arms_of(tables: Tables, seed: int) -> list[str]:
    """Arms in their order, without step 0."""
    rows = [row for row in tables["behaviour"] if row["seed"] == seed and row["arm"] != "base"]
    return list(dict.fromkeys(row["arm"] for row in rows))


def steps_of(tables: Tables, seed: int) -> list[int]:
    """All anchor steps, 0 included."""
    return sorted({row["step"] for row in tables["behaviour"] if row["seed"] == seed})


def trajectory_of(rows: Sequence[Row], arms: Sequence[str]) -> list[Series]:
    """One line per arm, each starting at the shared step 0."""
    found = []
    for arm in arms:
        mine = sorted((row for row in rows if row["arm"] in ("base", arm)), key=lambda row: row["step"])
        points = [
            Point(
                row["step"],
                value_of(row),
                value_of(row, "lo"),
                value_of(row, "hi"),
                f"n = {row.get('n', '–')}",
            )
            for row in mine
        ]
        found.append(Series(arm, colour(arm, arms), points))
    return found


def behaviour_figure(tables: Tables, seed: int) -> str:
    """Small multiples of behaviour over the anchors, with 95 % intervals."""
    arms, steps = arms_of(tables, seed), steps_of(tables, seed)
    rows = [row for row in tables["behaviour"] if row["seed"] == seed and not row.get("group")]
    panels = []
    for title, *key in TRAJECTORY:
        mine = [row for row in rows if [row["suite"], row["attack"], row["metric"]] == key]
        if mine:
            noted = any(row.get("note") for row in mine)
            panels.append((f"{title} (uninformative)" if noted else title, mine))
    columns = 3
    height = 40 + 200 * -(-len(panels) // columns)
    drawing = Drawing(960, height, "Behaviour at every anchor")
    legend(drawing, 20, 22, [(arm, colour(arm, arms)) for arm in arms])
    for index, (title, mine) in enumerate(panels):
        box = (320 * (index % columns), 36 + 200 * (index // columns), 312, 196)
        panel(drawing, box, trajectory_of(mine, arms), Frame(title, steps, (0, 1)))
    return drawing.svg()


def heat_map(tables: Tables, seed: int, arm: str, profile: str) -> str:
    """Bypass effect by layer and step; a frame marks admissible cells, discs mark the carrier."""
    rows = [
        row
        for row in tables["carriers"]
        if row["seed"] == seed and row["arm"] in ("base", arm) and row["profile"] == profile
    ]
    steps, layers = sorted({row["step"] for row in rows}), sorted({row["layer"] for row in rows})
    cell_w, cell_h, left, top = 92, 20, 64, 44
    drawing = Drawing(
        left + cell_w * len(steps) + 200,
        top + cell_h * len(layers) + 44,
        f"Bypass effect, {arm}, profile {profile}",
    )
    drawing.text(
        6,
        16,
        f"{arm}: share of the refusal gap that ablating the layer's direction removes",
        bold=True,
        size=13,
    )
    drawing.text(6, 34, "layer", size=11, fill=MUTED)
    for y, layer in enumerate(reversed(layers)):
        drawing.text(left - 8, top + cell_h * y + 14, str(layer), anchor="end", size=11)
        for x, step in enumerate(steps):
            mine = [row for row in rows if row["layer"] == layer and row["step"] == step]
            row = max(mine, key=_shown_first, default=None)
            if row is not None:
                candidate_cell(drawing, left + cell_w * x, top + cell_h * y, cell_w, cell_h, row)
    for x, step in enumerate(steps):
        drawing.text(
            left + cell_w * (x + 0.5),
            top + cell_h * len(layers) + 16,
            f"step {step}",
            anchor="middle",
            size=11,
        )
    _depth_marks(drawing, tables, seed, arm, profile, steps, layers, (left, top, cell_w, cell_h))
    x = left + cell_w * len(steps) + 14
    for y, (words, painter) in enumerate(
        (("best admissible carrier", "disc"), ("carrier depth", "ring"), ("admissible", "frame"))
    ):
        place = top + 24 * y + 10
        if painter == "frame":
            drawing.rect(x - 6, place - 7, 12, 12, "none", "#D55E00")
        else:
            drawing.dot(x, place - 1, "#D55E00", 5, hollow=painter == "ring")
        drawing.text(x + 14, place + 3, words, size=11)
    return drawing.svg()


def _shown_first(row: Row) -> tuple[bool, bool, float]:
    """Of a layer's positions the carrier's is shown, else an admissible one, else that of the lowest bypass."""
    bypass = value_of(row, "bypass")
    return bool(row["best"]), bool(row["admissible"]), -bypass if math.isfinite(bypass) else -math.inf


def candidate_cell(drawing: Drawing, x: float, y: float, width: float, height: float, row: Row) -> None:
    """A candidate's bypass effect as a cell of a map, framed where it is admissible, with a disc on the carrier."""
    effect = value_of(row, "bypass_effect")
    tip = (
        f"layer {row['layer']}, position {row['position']}: bypass {effect:.2f}, induce "
        f"{value_of(row, 'induce_effect'):.2f}, KL {value_of(row, 'kl'):.2f}"
    )
    drawing.rect(x + 1, y + 1, width - 2, height - 2, shade(effect), tip=tip)
    words = f"{effect:.2f}" if math.isfinite(effect) else "–"
    drawing.text(x + width / 2, y + 14, words, anchor="middle", size=10, fill=ink_on(effect))
    if row["admissible"]:
        drawing.rect(x + 2, y + 2, width - 4, height - 4, "none", "#D55E00")
    if row["best"]:
        drawing.dot(x + 14, y + height / 2, "#D55E00", 5, tip="best admissible carrier")


def _depth_marks(
    drawing: Drawing,
    tables: Tables,
    seed: int,
    arm: str,
    profile: str,
    steps: Sequence[int],
    layers: Sequence[int],
    grid: tuple[float, float, float, float],
) -> None:
    """A ring at the carrier depth: the earliest admissible layer that does nearly as well as the best."""
    left, top, cell_w, cell_h = grid
    for row in tables.get("carrier_summary", ()):
        if row["seed"] != seed or row["arm"] not in ("base", arm) or row["profile"] != profile:
            continue
        if row["quantity"] == "depth" and row["depth_layer"] is not None and row["step"] in steps:
            y = len(layers) - 1 - list(layers).index(row["depth_layer"])
            x = list(steps).index(row["step"])
            drawing.dot(
                left + cell_w * (x + 1) - 14, top + cell_h * (y + 0.5), "#D55E00", 5, "carrier depth", True
            )


def geometry_figure(tables: Tables, seed: int) -> str:
    """Participation ratio over the anchors, and the corrected angle from the anchor before: what verdicts rest on."""
    arms, steps = arms_of(tables, seed), steps_of(tables, seed)
    ranks = [r for r in tables["rank"] if r["seed"] == seed and r["quantity"] == "participation_ratio"]
    angles = [
        row
        for row in tables["drift"]
        if (row["seed"], row["quantity"], row["site"]) == (seed, "corrected_angle", "first anchor")
    ]
    # each arm's own steps: those of an observed series' arms may differ
    own = {arm: [0, *sorted({r["step"] for r in ranks if r["arm"] == arm})] for arm in arms}
    before = {arm: dict(zip(mine[1:], mine, strict=False)) for arm, mine in own.items()}
    consecutive = [
        {**row, "step": row["to"]}
        for row in angles
        if before.get(row["arm"], {}).get(row["to"]) == row["from"]
    ]
    turned = [value_of(row, key) for row in consecutive for key in ("value", "lo", "hi")]
    turned = [value for value in turned if math.isfinite(value)]
    drawing = Drawing(960, 250, "Participation ratio and corrected angle at every anchor")
    legend(drawing, 20, 22, [(arm, colour(arm, arms)) for arm in arms])
    rank = Frame("Participation ratio at step 0's site", steps)
    panel(drawing, (0, 36, 470, 210), trajectory_of(ranks, arms), rank)
    bounds = 0.0, 1.05 * max([10.0, *turned])  # a hundredth of a degree must not look like a turn
    angle = Frame("Corrected angle from the anchor before (degrees)", steps, bounds, zero=0.0)
    panel(drawing, (480, 36, 470, 210), trajectory_of(consecutive, arms), angle)
    return drawing.svg()


def sweep_figure(tables: Tables, seed: int) -> str:
    """Carrier depth against the KL cut, one panel per arm, one line per step; no point where nothing is admissible."""
    arms = arms_of(tables, seed)
    rows = [row for row in tables["threshold_sweep"] if row["seed"] == seed]
    cuts = sorted({round(100 * row["kl_max"]) for row in rows})
    width = 960 / max(1, min(2, len(arms)))
    drawing = Drawing(960, 40 + 230 * max(1, -(-len(arms) // 2)), "Carrier depth against the KL cut")
    every = sorted({row["step"] for row in rows})
    fills = {
        step: STEPS[index * (len(STEPS) - 1) // max(1, len(every) - 1)] for index, step in enumerate(every)
    }
    legend(drawing, 20, 22, [(f"step {step}", fill) for step, fill in fills.items()])
    for index, arm in enumerate(arms):
        lines = []
        for step in every:
            mine = [row for row in rows if row["step"] == step and row["arm"] in ("base", arm)]
            points = [
                Point(
                    round(100 * row["kl_max"]),
                    value_of(row, "depth"),
                    note=f"{row.get('admissible', '–')} admissible",
                )
                for row in sorted(mine, key=lambda row: float(row["kl_max"]))
            ]
            lines.append(Series(f"step {step}", fills[step], points))
        frame = Frame(
            f"{arm}: carrier depth (earliest layer / L)",
            cuts,
            (0, 1),
            axis="KL cut × 100",
            empty="no admissible carrier under any cut",
        )
        box = (width * (index % 2), 36 + 230 * (index // 2), width - 8, 226)
        panel(drawing, box, lines, frame)
    return drawing.svg()


def transfer_figure(tables: Tables, seed: int) -> str:
    """T[a, b]: the share of b's refusals that a's carrier removes."""
    rows = [r for r in tables["transfer"] if r["seed"] == seed and r["quantity"] == "transfer"]
    asked = {(r["arm"], r["to"]): r["n"] for r in rows}
    names = sorted(asked, key=lambda name: name[0] != "base")  # step 0 first, the others in their order
    sources = [name for name in names if any((r.get("from_arm"), r["from"]) == name for r in rows)]
    labels = {name: f"{shortened(name[0])} {name[1]}" for name in names}
    left = 20 + 6.5 * max((len(label) for label in labels.values()), default=0)
    cell, top = 72, 84
    drawing = Drawing(
        max(left + cell * len(names) + 20, 480), top + 30 * len(sources) + 20, "Transfer between anchors"
    )
    drawing.text(6, 18, "carrier of (row) ablated in (column): share of refusals removed", bold=True, size=13)
    for x, (arm, step) in enumerate(names):
        words = (arm if len(arm) < 12 else f"{arm[:9]}…", f"step {step}", f"n = {asked[arm, step]}")
        for line, word in enumerate(words):
            drawing.text(left + cell * (x + 0.5), top - 36 + 14 * line, word, anchor="middle", size=11)
    for y, source in enumerate(sources):
        drawing.text(left - 8, top + 30 * y + 19, labels[source], anchor="end", size=11)
        for x, target in enumerate(names):
            found = [
                r for r in rows if (r.get("from_arm"), r["from"]) == source and (r["arm"], r["to"]) == target
            ]
            _transfer_cell(drawing, left + cell * x, top + 30 * y, cell, found[0] if found else None)
    return drawing.svg()


def _transfer_cell(drawing: Drawing, x: float, y: float, width: float, row: Row | None) -> None:
    effect = value_of(row) if row else math.nan
    tip = "not measured"
    if row is not None:
        tip = f"{effect:.2f} [{value_of(row, 'lo'):.2f}, {value_of(row, 'hi'):.2f}], n = {row['n']}"
    drawing.rect(x + 1, y + 1, width - 2, 28, shade(effect), tip=tip)
    if math.isfinite(effect):
        drawing.text(x + width / 2, y + 19, f"{effect:.2f}", anchor="middle", size=11, fill=ink_on(effect))
