"""What charts show, from tables: places, values, marks; and the files that matplotlib makes of them."""

import math
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from caryatid.report.causal_figures import (
    causal_chart,
    control_chart,
    dose_chart,
    doses,
    frontier,
    kinds_of,
    layers_chart,
)
from caryatid.report.charts import Chart, Grid, Line, Panel, arms_of, colour, plain, symbol
from caryatid.report.figures import (
    behaviour_chart,
    candidate_grid,
    drift_chart,
    frontier_chart,
    map_chart,
    sweep_chart,
    transfer_chart,
)
from caryatid.report.plot import drawn

Row = dict[str, Any]


def condition(
    intervention: str,
    rank: int,
    alpha: float,
    control: str,
    cost: float,
    score: float,
    draw: int | None = None,
) -> list[Row]:
    base = {"seed": 0, "arm": "r2d2", "step": 4, "intervention": intervention, "rank": rank, "alpha": alpha}
    base |= {"control": control, "draw": draw}
    return [
        {**base, "read_out": "benign_nll", "value": cost},
        {**base, "read_out": "refusal_score", "value": score},
        {**base, "read_out": "benign_kl", "value": 99.0},
    ]


CAUSAL = [
    *condition("none", 0, 0.0, "none", 1.0, 2.0),
    *condition("ablate", 1, 1.0, "carrier", 1.1, -3.0),
    *condition("ablate", 2, 1.0, "carrier", 1.3, -2.5),
    *condition("ablate", 3, 1.0, "carrier", 1.6, -4.0),
    *condition("add", 1, -1.0, "carrier", 1.2, -1.0),
    *condition("ablate", 1, 1.0, "random", 1.05, 1.9, draw=0),
    *condition("ablate", 1, 1.0, "step-0 carrier", 1.08, math.nan),
]


def only_panel(chart: Chart) -> Panel:
    (panel,) = chart.panels
    assert isinstance(panel, Panel)
    return panel


def only_grid(chart: Chart) -> Grid:
    (grid,) = chart.panels
    assert isinstance(grid, Grid)
    return grid


def line_of(panel: Panel | Grid, name: str) -> Line:
    assert isinstance(panel, Panel)
    (line,) = [line for line in panel.lines if line.name == name]
    return line


def test_doses_pair_cost_and_refusal_of_each_condition() -> None:
    found = {each.name: (each.kind, each.x, each.y) for each in doses(CAUSAL)}
    assert found["k 2"] == ("carrier ablated, rank 1 … k", 1.3, -2.5)
    assert found["α -1"] == ("carrier added, α", 1.2, -1.0)
    assert found["random"] == ("random", 1.05, 1.9)
    assert len(found) == 6  # without the condition that has no score


def test_the_frontier_is_what_nothing_else_beats() -> None:
    assert [each.name for each in frontier(doses(CAUSAL))] == ["untouched", "random", "k 1", "k 3"]


def test_a_dose_response_has_its_step_and_the_carrier_in_order_of_strength() -> None:
    panel = only_panel(dose_chart({"causal": CAUSAL}, 0))
    assert (panel.title, panel.step) == ("r2d2, step 4", 4)
    ablated = line_of(panel, "carrier ablated, rank 1 … k")
    assert (ablated.labels, ablated.x, ablated.y) == (
        ("k 1", "k 2", "k 3"),
        (1.1, 1.3, 1.6),
        (-3.0, -2.5, -4.0),
    )
    assert line_of(panel, "frontier").y == (2.0, 1.9, -3.0, -4.0)


def test_conditions_shown_are_those_measured_with_one_larger_rank() -> None:
    rows = [row for row in CAUSAL if row["read_out"] == "refusal_score"]
    controlled = [*rows, {**rows[-2], "rank": 2}]  # rank 3 has no random control
    names = [kind.name for kind in kinds_of(controlled)]
    assert names == [
        "no intervention",
        "carrier ablated, rank 1",
        "carrier ablated, rank 2",
        "random, rank 1",
        "random, rank 2",
    ]
    names = [
        kind.name for kind in kinds_of(rows)
    ]  # controls of rank 1 alone: a larger rank has nothing beside it
    assert names == ["no intervention", "carrier ablated, rank 1", "random, rank 1"]
    names = [kind.name for kind in kinds_of([row for row in rows if row["control"] != "random"])]
    assert names == ["no intervention", "carrier ablated, rank 1", "carrier ablated, rank 3"]
    assert [kind.name for kind in kinds_of(rows[:1])] == ["no intervention"]


def test_rates_are_drawn_from_0_to_1_and_scores_where_they_are() -> None:
    rows = [{**row, "lo": row["value"], "hi": row["value"], "n": 4} for row in CAUSAL]
    rate = [{**row, "read_out": "harmbench_degenerate", "value": 0.25} for row in rows[:3]]
    panel = only_panel(causal_chart({"causal": [*rows, *rate]}, 0, "harmbench_degenerate", "Gibberish"))
    assert (panel.y_range, panel.x_names) == ((0.0, 1.0), ("r2d2 4",))
    assert line_of(panel, "no intervention").y == (0.25,) * 3
    scores = only_panel(causal_chart({"causal": rows}, 0, "refusal_score", "Score"))
    assert scores.y_range is None
    assert line_of(scores, "carrier ablated, rank 1").lo == (-3.0,)
    assert line_of(scores, "random, rank 1").lo == ()  # their spread speaks for itself


def behaviour(**more: Any) -> list[Row]:
    anchors = (("base", 0), ("r2d2", 4), ("r2d2", 8))
    return [{"seed": 0, "arm": arm, "step": step, **more} for arm, step in anchors]


def rate(arm: str, step: int, suite: str, attack: str, metric: str, value: float) -> Row:
    row = {
        "seed": 0,
        "arm": arm,
        "step": step,
        "suite": suite,
        "attack": attack,
        "metric": metric,
        "group": "",
    }
    return {**row, "value": value, "lo": value - 0.1, "hi": value + 0.1, "n": 10}


def test_behaviour_starts_each_arm_at_step_0_to_scale() -> None:
    rows = [rate("base", 0, "utility", "none", "pass", 0.9), rate("r2d2", 50, "utility", "none", "pass", 0.5)]
    rows += [rate("sft", 500, "utility", "none", "pass", 0.8)]
    panel = only_panel(behaviour_chart({"behaviour": rows}, 0))
    assert panel.title == "Benign utility: passed"
    assert line_of(panel, "r2d2").x == (0.0, 50.0)
    assert line_of(panel, "sft").x == (0.0, 500.0)
    assert line_of(panel, "sft").y == (0.9, 0.8)
    assert line_of(panel, "r2d2").lo == (0.8, 0.4)


def test_the_frontier_of_arms_pairs_cost_with_the_strongest_attack() -> None:
    rows = [
        rate("base", 0, "utility", "none", "pass", 0.9),
        rate("r2d2", 4, "utility", "none", "pass", 0.6),
        rate("base", 0, "xstest_safe", "none", "any_refusal", 0.1),
        rate("r2d2", 4, "xstest_safe", "none", "any_refusal", 0.7),
        *(rate("base", 0, "harmbench", attack, "compliance", 0.8) for attack in ("direct", "fixed_source")),
        rate("r2d2", 4, "harmbench", "direct", "compliance", 0.5),
        rate("r2d2", 4, "harmbench", "fixed_source", "compliance", 0.25),
    ]  # fmt: skip
    tasks, safe = frontier_chart({"behaviour": rows}, 0).panels
    line = line_of(tasks, "r2d2")
    assert line.labels == ("0", "4")
    still = [*rows, *({**row, "arm": "sft", "step": 2} for row in rows if row["arm"] == "base")]
    labels = [line.labels for line in frontier_chart({"behaviour": still}, 0).panels[0].lines]
    assert labels == [("0, 2", "4"), ("", "")]  # one label a place, however many points
    assert line.x == (0.9, 0.6)
    assert line.y == pytest.approx((0.2, 0.75))
    assert line_of(safe, "r2d2").x == pytest.approx((0.9, 0.3))
    assert "fixed-source" in tasks.y


def transfer(
    arm: str, to: int, source: str, start: int, quantity: str, value: float | None, rank: int = 1
) -> Row:
    row = {"seed": 0, "arm": arm, "to": to, "from_arm": source, "from": start, "quantity": quantity, "n": 9}
    return {**row, "value": value, "lo": value, "hi": value, "rank": rank}


def test_transfer_has_carriers_in_rows_refusals_in_columns_and_rank_1() -> None:
    rows = [
        transfer("base", 0, "base", 0, "transfer", 1.0),
        transfer("r2d2", 4, "base", 0, "transfer", 0.25, rank=3),
        transfer("r2d2", 4, "base", 0, "transfer", 0.5),
        transfer("r2d2", 4, "r2d2", 4, "transfer", 0.75),
        transfer("r2d2", 4, "base", 0, "ratio", 0.66),
    ]
    grid = only_grid(transfer_chart({"transfer": rows}, 0))
    assert (grid.rows, grid.columns) == (("base 0", "r2d2 4"), ("base 0", "r2d2 4"))
    assert grid.values[0] == (1.0, 0.5)
    assert math.isnan(grid.values[1][0])
    assert grid.values[1][1] == 0.75
    control = control_chart({"transfer": rows, "behaviour": behaviour()}, 0)
    assert [line_of(panel, "r2d2").y for panel in control.panels] == [(1.0, 0.5), (1.0, 0.75), (1.0, 0.66)]


def test_the_sweep_has_a_point_where_something_is_admissible() -> None:
    def sweep(arm: str, step: int, depths: tuple[float | None, ...]) -> list[Row]:
        cuts = zip((0.05, 0.1, 0.35), depths, strict=True)
        return [
            {"seed": 0, "arm": arm, "step": step, "kl_max": cut, "depth": depth, "admissible": 2}
            for cut, depth in cuts
        ]

    rows = [*sweep("base", 0, (None, 0.25, 0.5)), *sweep("r2d2", 8, (None, None, None))]
    first, last = sweep_chart({"behaviour": behaviour(), "threshold_sweep": rows}, 0).panels
    line = line_of(first, "base")
    assert line.x == (0.05, 0.1, 0.35)
    assert math.isnan(line.y[0])
    assert line.y[1:] == (0.25, 0.5)
    assert all(math.isnan(value) for value in line_of(last, "r2d2").y)
    assert b"no admissible carrier under any cut" in drawn(Chart("x", (last,)), "svg")[0]


def test_the_layer_profile_has_a_panel_an_anchor() -> None:
    rows = [
        {"seed": 0, "arm": "r2d2", "step": 4, "layer": layer, "value": 0.1 * layer, "lo": 0.0, "hi": 1.0, "n": 4,
         "carrier_layer": 3}
        for layer in (1, 3, 5)
    ]  # fmt: skip
    panel = only_panel(layers_chart({"localisation": rows, "behaviour": behaviour()}, 0))
    assert "carrier of layer 3" in panel.title
    assert line_of(panel, "r2d2").x == (1.0, 3.0, 5.0)
    assert line_of(panel, "r2d2").y == pytest.approx((0.1, 0.3, 0.5))


def candidate(position: int, bypass: float, effect: float, admissible: bool = False) -> Row:
    row = {"seed": 0, "arm": "base", "step": 0, "layer": 3, "profile": "published", "best": False}
    row |= {"position": position, "bypass": bypass, "bypass_effect": effect, "admissible": admissible}
    return row


@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_layer_shows_an_admissible_position_and_never_an_unscored_one(position: int) -> None:
    rows = [candidate(-2, math.nan, math.nan), candidate(-1, -3.0, 0.91), candidate(-3, -2.0, 0.77)]
    rows = rows[position:] + rows[:position]  # whatever comes first
    grid = only_grid(map_chart({"carriers": rows}, 0, "r2d2", "published"))
    assert (grid.values, grid.framed) == (((0.91,),), ())
    rows.append(candidate(-4, -1.0, 0.55, admissible=True))
    grid = only_grid(map_chart({"carriers": rows}, 0, "r2d2", "published"))
    assert (grid.values, grid.framed, grid.marked) == (((0.55,),), ((0, 0),), ())


def test_a_grid_has_the_last_layer_on_top_and_a_ring_at_the_depth() -> None:
    rows = [{**candidate(-1, 1.0, 0.1), "layer": layer} for layer in (1, 2)]
    rows[1] |= {"best": True, "admissible": True}
    grid = candidate_grid(rows, "step", ["0"], {"0": 1})
    assert (grid.rows, grid.marked, grid.ringed) == (("2", "1"), ((0, 0),), ((1, 0),))


def test_arms_with_other_steps_have_their_own_anchor_before() -> None:
    steps = {"one": [100, 200], "two": [50, 150]}
    anchors = [("base", 0), *((arm, step) for arm, mine in steps.items() for step in mine)]
    common = {"seed": 0, "lo": 1.0, "hi": 3.0, "quantity": "corrected_angle"}
    pairs = [(arm, a, b) for arm, mine in steps.items() for a, b in ((0, mine[0]), mine, (0, mine[1]))]
    drift = [
        {**common, "arm": arm, "from": a, "to": b, "value": float(b - a), "site": site}
        for arm, a, b in pairs
        for site in ("first anchor", "step 0")
    ]
    tables = {"behaviour": [{"seed": 0, "arm": arm, "step": step} for arm, step in anchors], "drift": drift}
    before, start = drift_chart(tables, 0, 10.0).panels
    assert [line_of(before, arm).y for arm in steps] == [(100.0, 100.0), (50.0, 100.0)]
    assert [line_of(start, arm).y for arm in steps] == [(100.0, 200.0), (50.0, 150.0)]
    assert before.level == 10.0


def test_drift_stands_beside_the_angle_between_seeds() -> None:
    null = {"seed": 1, "kind": "same_regime", "arm": "r2d2", "step": 4, "other_seed": 0, "angle": 22.0}
    null |= {"angle_lo": 20.0, "angle_hi": 24.0}
    turn = {
        "seed": 1,
        "arm": "r2d2",
        "from": 0,
        "to": 4,
        "quantity": "corrected_angle",
        "site": "first anchor",
    }
    tables = {
        "behaviour": [{"seed": 1, "arm": "r2d2", "step": 4}],
        "nulls": [null],
        "drift": [{**turn, "value": 3.0}],
    }
    for panel in drift_chart(tables, 1, 10.0).panels:
        line = line_of(panel, "r2d2, between seeds")
        assert (line.x, line.y, line.lo, line.hi) == ((4.0,), (22.0,), (20.0,), (24.0,))
        assert panel.y_range is not None
        assert panel.y_range[1] > 24.0


def test_plain_is_json_with_null_for_nan_and_six_digits() -> None:
    line = Line("a", "#000000", (0.0, 1.0), (math.nan, 1 / 3))
    found = plain(Chart("t", (Panel("p", (line,), step=0),)))
    (panel,) = found["panels"]
    assert panel["lines"][0]["y"] == [None, 0.333333]
    assert panel["step"] == 0
    assert panel["kind"] == "panel"
    assert "lo" not in panel["lines"][0]


def test_arms_differ_in_symbol_as_well_as_in_colour() -> None:
    arms = ["sft", "r2d2", "mine", "yours"]
    assert len({colour(arm, arms) for arm in arms}) == len({symbol(arm, arms) for arm in arms}) == 4
    assert arms_of({"behaviour": behaviour()}, 0) == ["r2d2"]


@pytest.mark.parametrize("missing", [False, True])
def test_files_hold_every_point_are_well_formed_and_repeat(missing: bool) -> None:
    values = (math.nan, math.nan) if missing else (0.25, 0.75)
    line = Line("arm", "#0072B2", (0.0, 50.0), values, (0.2, 0.7), (0.3, 0.8))
    chart = Chart("Title", (Panel("p", (line,), y_range=(0.0, 1.0), empty="nothing here"),))
    svg, pdf = drawn(chart, "svg", "pdf")
    root = ET.fromstring(svg)
    assert root.tag.endswith("svg")
    assert (b"nothing here" in svg) == missing
    points = [
        use
        for use in root.iter("{http://www.w3.org/2000/svg}use")
        if "#0072b2" in (use.get("style") or "").lower()
    ]
    assert len(points) == (1 if missing else 3)  # one is the key's
    assert pdf.startswith(b"%PDF-")
    assert (drawn(chart, "svg"), drawn(chart, "pdf")) == ((svg,), (pdf,))


def test_a_file_puts_values_where_they_belong() -> None:
    line = Line("arm", "#0072B2", (0.0, 50.0, 100.0), (0.0, 0.5, 1.0))
    root = ET.fromstring(drawn(Chart("t", (Panel("p", (line,), y_range=(0.0, 1.0)),)), "svg")[0])
    places = [
        (float(use.get("x", 0)), float(use.get("y", 0)))
        for use in root.iter("{http://www.w3.org/2000/svg}use")
        if "#0072b2" in (use.get("style") or "").lower()
    ][:3]
    (x0, y0), (x1, y1), (x2, y2) = places
    assert x1 - x0 == pytest.approx(x2 - x1)
    assert y0 - y1 == pytest.approx(y1 - y2)
    assert y0 > y2


@pytest.mark.parametrize("name", ["<b>a</b> & $x^2$ $", "\\alpha $\\frac{"])
def test_names_are_text_in_files(name: str) -> None:
    grid = Grid(
        name, (name,), ("0",), ((0.5,),), (("tip",),), framed=((0, 0),), marked=((0, 0),), ringed=((0, 0),)
    )
    line = replace(Line(name, "#0072B2", (0.0,), (0.5,)), labels=(name,))
    (svg,) = drawn(Chart(name, (Panel(name, (line,)), grid)), "svg")
    texts = ["".join(node.itertext()) for node in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert name in texts
