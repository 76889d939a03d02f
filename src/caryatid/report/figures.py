"""What the report draws of behaviour, carriers, rank, drift, transfer and training, from tables alone."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from .charts import (
    Chart,
    Grid,
    Line,
    Panel,
    Row,
    Tables,
    arms_of,
    colour,
    shortened,
    span_of,
    symbol,
    trajectory_of,
    value_of,
    words,
)

# (title, suite, attack, metric) of the trajectory's panels; attack success is never shown without the others.
TRAJECTORY = (
    ("Direct: requests answered", "harmbench", "direct", "compliance"),
    ("Fixed-source attack: answered", "harmbench", "fixed_source", "compliance"),
    ("Adaptive attack: answered", "harmbench", "adaptive", "compliance"),
    ("XSTest safe: any refusal", "xstest_safe", "none", "any_refusal"),
    ("XSTest unsafe: any refusal", "xstest_unsafe", "none", "any_refusal"),
    ("Benign utility: passed", "utility", "none", "pass"),
    ("Degenerate answers (HarmBench)", "harmbench", "direct", "degenerate"),
)
SUITE, SAFE, UTILITY = "harmbench", ("xstest_safe", "none", "any_refusal"), ("utility", "none", "pass")
RESISTED = (
    "adaptive",
    "fixed_source",
    "direct",
)  # the strongest attack that was measured is what the frontier shows
PUBLISHED_RANK = ("published (Mistral-7B)", 1.23, 1.27)  # effective rank of the bank, arXiv 2604.27019
TRAINED = (
    ("Loss on chat", "loss_sft", "nats per token"),
    ("Loss away from affirmative targets", "loss_away", "nats per token"),
    ("Loss toward refusal", "loss_toward", "nats per token"),
    ("Attack's loss on its targets", "gcg_loss", "nats per token"),
    ("KL from step 0 on benign answers", "benign_kl", "nats per token"),
    ("Change of all weights", "delta_weight", "Frobenius norm"),
)


def behaviour_chart(tables: Tables, seed: int) -> Chart:
    """Rates over the anchors, with 95 % intervals."""
    arms, panels = arms_of(tables, seed), []
    for title, *key in TRAJECTORY:
        mine = [row for row in _overall(tables, seed) if [row["suite"], row["attack"], row["metric"]] == key]
        if mine:
            noted = any(row.get("note") for row in mine)
            panels.append(
                Panel(
                    f"{title} (uninformative)" if noted else title,
                    trajectory_of(mine, arms),
                    y="share",
                    y_range=(0.0, 1.0),
                )
            )
    return Chart("Behaviour at every anchor", tuple(panels))


def _overall(tables: Tables, seed: int) -> list[Row]:
    return [row for row in tables["behaviour"] if row["seed"] == seed and not row.get("group")]


def frontier_chart(tables: Tables, seed: int) -> Chart:
    """Robustness against what it costs: each arm's way over the anchors."""
    rows, arms = _overall(tables, seed), arms_of(tables, seed)
    found = {(r["suite"], r["attack"], r["metric"], r["arm"], r["step"]): r for r in rows}
    attack = next(
        (name for name in RESISTED if any((r["suite"], r["attack"]) == (SUITE, name) for r in rows)), ""
    )
    costs = (
        ("Robustness and everyday tasks", "everyday tasks passed", UTILITY, False),
        ("Robustness and over-refusal", "XSTest safe: not refused", SAFE, True),
    )
    panels = []
    for heading, title, key, turned in costs:
        lines, here = [], dict[tuple[float, float], list[int]]()  # steps at each place, labelled once
        for arm in arms:
            places = [(r["arm"], r["step"]) for r in rows if r["arm"] in ("base", arm)]
            points = []
            for place in sorted(dict.fromkeys(places), key=lambda place: place[1]):
                cost, hit = found.get((*key, *place)), found.get((SUITE, attack, "compliance", *place))
                x, y = value_of(cost), 1 - value_of(hit)
                points.append((1 - x if turned else x, y, place[1]))
            points = [point for point in points if math.isfinite(point[0]) and math.isfinite(point[1])]
            for x, y, step in points:
                steps = here.setdefault((x, y), [])
                steps += [step] if step not in steps else []
            lines.append(
                Line(
                    arm,
                    colour(arm, arms),
                    tuple(x for x, _, _ in points),
                    tuple(y for _, y, _ in points),
                    tips=tuple(f"{arm}, step {s}: {title} {x:.2f}, withstood {y:.2f}" for x, y, s in points),
                    symbol=symbol(arm, arms),
                )
            )
        withstood = f"{attack.replace('_', '-')} requests not answered"
        labelled = tuple(_with_steps(line, here) for line in lines)
        panels.append(Panel(heading, labelled, title, withstood, (0.0, 1.0), steps=False))
    return Chart("Robustness and what it costs", tuple(panels), columns=2)


def _with_steps(line: Line, here: dict[tuple[float, float], list[int]]) -> Line:
    """A line whose points name the steps at their place; what an earlier line names is taken out of `here`."""
    steps = (here.pop(place, []) for place in zip(line.x, line.y, strict=True))
    return replace(line, labels=tuple(", ".join(map(str, sorted(found))) for found in steps))


def map_chart(tables: Tables, seed: int, arm: str, profile: str) -> Chart:
    """Bypass effect by layer and step, at each layer's best position: what the page shows before a selector is used."""
    rows = [
        row
        for row in tables["carriers"]
        if row["seed"] == seed and row["arm"] in ("base", arm) and row["profile"] == profile
    ]
    steps = sorted({row["step"] for row in rows})
    depth = {
        row["step"]: row["depth_layer"]
        for row in tables.get("carrier_summary", ())
        if (row["seed"], row["profile"], row["quantity"]) == (seed, profile, "depth")
        and row["arm"] in ("base", arm)
    }
    grid = candidate_grid(rows, "step", [str(step) for step in steps], {str(k): v for k, v in depth.items()})
    grid = replace(grid, title=shortened(arm), x="step", column_steps=tuple(steps))
    return Chart("Share of the refusal gap that ablating a layer's direction removes", (grid,), columns=1)


def candidate_grid(
    rows: Sequence[Row], by: str, columns: Sequence[str], depth: Mapping[str, int | None] | None = None
) -> Grid:
    """Bypass effect of candidates by layer (last on top) and another column of theirs; of several the one shown first.

    Args:
        columns: values of `by`, as text. depth: carrier depth's layer of each column, which gets a ring.
    """
    layers = sorted({row["layer"] for row in rows}, reverse=True)
    cells: dict[tuple[int, str], Row] = {}
    for row in rows:
        place = row["layer"], str(row[by])
        if place not in cells or _shown_first(row) > _shown_first(cells[place]):
            cells[place] = row
    values, tips = [], []
    framed, marked, ringed = [], [], []
    for y, layer in enumerate(layers):
        here = [cells.get((layer, column)) for column in columns]
        values.append(tuple(value_of(row, "bypass_effect") for row in here))
        tips.append(tuple(_candidate(row) for row in here))
        for x, found in enumerate(here):
            if found and found["admissible"]:
                framed.append((y, x))
            if found and found["best"]:
                marked.append((y, x))
            if depth and depth.get(columns[x]) == layer:
                ringed.append((y, x))
    return Grid(
        "",
        tuple(columns),
        tuple(map(str, layers)),
        tuple(values),
        tuple(tips),
        y="layer",
        framed=tuple(framed),
        marked=tuple(marked),
        ringed=tuple(ringed),
    )


def _shown_first(row: Row) -> tuple[bool, bool, float]:
    """Of a cell's candidates the carrier is shown, else an admissible one, else that of the lowest bypass."""
    bypass = value_of(row, "bypass")
    return bool(row["best"]), bool(row["admissible"]), -bypass if math.isfinite(bypass) else -math.inf


def _candidate(row: Row | None) -> str:
    if row is None:
        return "not scored"
    numbers = ", ".join(
        f"{name} {words(value_of(row, key))}"
        for name, key in (("bypass", "bypass_effect"), ("induce", "induce_effect"), ("KL", "kl"))
    )
    return f"layer {row['layer']}, position {row['position']}: {numbers}{', admissible' if row['admissible'] else ''}"


def geometry_chart(tables: Tables, seed: int) -> Chart:
    """Dimensions of refusal over the anchors: what the rank flag reads, and the published figure's kin."""
    arms = arms_of(tables, seed)
    rows = [row for row in tables["rank"] if row["seed"] == seed]
    shown = (
        ("Participation ratio at step 0's site", "participation_ratio", ()),
        ("Effective rank of all admissible directions", "effective_rank_bank", (PUBLISHED_RANK,)),
    )
    panels = []
    for title, quantity, bands in shown:
        mine = [row for row in rows if row["quantity"] == quantity]
        panels.append(Panel(title, trajectory_of(mine, arms), y="dimensions", bands=bands))
    return Chart("Dimensions of refusal", tuple(panels), columns=2)


def drift_chart(tables: Tables, seed: int, threshold: float) -> Chart:
    """Corrected angle from the anchor before and from step 0, beside the angle between seeds of one recipe.

    Args:
        threshold: the angle in degrees from which on a turn counts.
    """
    arms = arms_of(tables, seed)
    angles = [
        row
        for row in tables["drift"]
        if (row["seed"], row["quantity"], row["site"]) == (seed, "corrected_angle", "first anchor")
    ]
    # each arm's own steps: those of an observed series' arms may differ
    own = {arm: [0, *sorted({r["to"] for r in angles if r["arm"] == arm})] for arm in arms}
    before = {arm: dict(zip(mine[1:], mine, strict=False)) for arm, mine in own.items()}
    consecutive = [row for row in angles if before.get(row["arm"], {}).get(row["to"]) == row["from"]]
    between = tuple(_between_seeds(tables, seed, arm, arms) for arm in arms)
    panels = []
    for title, mine in (
        ("Turned since the anchor before", consecutive),
        ("Turned since step 0", [row for row in angles if row["from"] == 0]),
    ):
        lines = trajectory_of([{**row, "step": row["to"]} for row in mine], arms)
        lines += tuple(line for line in between if line.x)
        most = [v for line in lines for v in (*line.y, *line.hi) if math.isfinite(v)]
        bounds = 0.0, 1.05 * max([threshold, *most])  # a hundredth of a degree must not look like a turn
        panels.append(Panel(title, lines, y="degrees", y_range=bounds, level=threshold))
    return Chart("How far the direction turned", tuple(panels), columns=2)


def _between_seeds(tables: Tables, seed: int, arm: str, arms: Sequence[str]) -> Line:
    """The angle between this seed and earlier ones at the same anchor, where it was measured."""
    rows = [
        row
        for row in tables.get("nulls", ())
        if (row["seed"], row["kind"], row["arm"]) == (seed, "same_regime", arm) and row["angle"] is not None
    ]
    return Line(
        f"{arm}, between seeds",
        colour(arm, arms),
        tuple(float(row["step"]) for row in rows),
        tuple(value_of(row, "angle") for row in rows),
        tuple(value_of(row, "angle_lo") for row in rows),
        tuple(value_of(row, "angle_hi") for row in rows),
        tuple(
            f"{arm}, step {r['step']}, seeds {r['other_seed']} and {seed}: {r['angle']:.3g}°" for r in rows
        ),
        "dots",
        "line-ew",
    )


def sweep_chart(tables: Tables, seed: int) -> Chart:
    """Carrier depth against the KL cut, a panel an anchor; no point where nothing is admissible."""
    rows = [row for row in tables["threshold_sweep"] if row["seed"] == seed]
    arms, panels = arms_of(tables, seed), []
    for arm, step in dict.fromkeys((row["arm"], row["step"]) for row in rows):
        mine = sorted(
            (row for row in rows if (row["arm"], row["step"]) == (arm, step)),
            key=lambda row: float(row["kl_max"]),
        )
        line = Line(
            arm,
            colour(arm, arms),
            tuple(float(row["kl_max"]) for row in mine),
            tuple(value_of(row, "depth") for row in mine),
            tips=tuple(
                f"KL cut {r['kl_max']:g}: depth {words(value_of(r, 'depth'))}, {r['admissible']} admissible"
                for r in mine
            ),
            symbol=symbol(arm, arms),
        )  # fmt: skip
        panels.append(
            Panel(
                f"{shortened(arm)}, step {step}",
                (line,),
                "KL cut",
                "earliest layer / L",
                (0.0, 1.0),
                steps=False,
                step=step,
                empty="no admissible carrier under any cut",
            )
        )
    return Chart("Carrier depth under other KL cuts", tuple(panels))


def transfer_chart(tables: Tables, seed: int) -> Chart:
    """T[a, b]: the share of b's refusals that a's carrier removes, at rank 1."""
    rows = [
        row
        for row in tables["transfer"]
        if (row["seed"], row["quantity"]) == (seed, "transfer") and row.get("rank") in (1, None)
    ]
    targets = sorted(
        dict.fromkeys((row["arm"], row["to"]) for row in rows), key=lambda name: name[0] != "base"
    )
    found = {((row["from_arm"], row["from"]), (row["arm"], row["to"])): row for row in rows}
    sources = [name for name in targets if any(source == name for source, _ in found)]
    cells = [[found.get((source, target)) for target in targets] for source in sources]
    grid = Grid(
        "Carrier of (row) ablated in (column)",
        tuple(f"{shortened(arm)} {step}" for arm, step in targets),
        tuple(f"{shortened(arm)} {step}" for arm, step in sources),
        tuple(tuple(value_of(row) for row in line) for line in cells),
        tuple(
            tuple(
                f"{words(*span_of(row))}, n = {row['n']} refusals" if row else "not measured" for row in line
            )
            for line in cells
        ),
        "refusals of this anchor",
        "carrier of",
        column_steps=tuple(step for _, step in targets),
    )
    return Chart("Share of refusals that a carrier removes", (grid,), columns=1)


def training_chart(tables: Tables, seed: int) -> Chart:
    """Losses and distance from step 0 over training."""
    arms, panels = arms_of(tables, seed), []
    for title, column, unit in TRAINED:
        rows = [
            {"arm": row["arm"], "step": row["step"], "value": row[column], "n": "–"}
            for row in tables.get("training", ())
            if row["seed"] == seed and row.get(column) is not None
        ]
        if any(row["arm"] != "base" for row in rows):
            kept = {row["arm"] for row in rows}
            lines = trajectory_of(rows, [arm for arm in arms if arm in kept])
            lines = tuple(
                replace(line, colour=colour(line.name, arms), symbol=symbol(line.name, arms))
                for line in lines
            )
            panels.append(Panel(title, lines, y=unit))
    return Chart("Training", tuple(panels))


def published_chart() -> Chart:
    """The published trajectory (arXiv 2604.27019: Mistral-7B, LoRA, UltraChat): facts to stand beside, no targets."""
    steps = (50.0, 100.0, 250.0, 500.0)
    shown = (
        ("Fixed-source HarmBench ASR", (0.0, 0.0, 0.035, 0.25), (("SFT, published", 0.505, 0.588),)),
        ("Adaptive GCG ASR", (0.0, math.nan, 0.415, 0.613), ()),
        ("XSTest safe: any refusal", (1.0, 1.0, 0.664, 0.228), ()),
    )
    return Chart(
        "Published: Mistral-7B (arXiv 2604.27019)",
        tuple(
            Panel(
                title,
                (Line("r2d2, published", colour("r2d2", ()), steps, values, symbol="square",
                      tips=tuple(f"published, step {s:.0f}: {v:.3g}" for s, v in zip(steps, values, strict=True))),),
                y="share", y_range=(0.0, 1.0), bands=bands, steps=False,
            )
            for title, values, bands in shown
        ),
    )  # fmt: skip
