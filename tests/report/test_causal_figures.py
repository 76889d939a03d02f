"""The dose response's frontier, and figures that draw every anchor and survive missing numbers."""

import math
import re
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from caryatid.report.causal_figures import (
    causal_figure,
    control_figure,
    doses,
    frontier,
    frontier_figure,
    kinds_of,
    profile_figure,
)
from caryatid.report.figures import geometry_figure, heat_map, sweep_figure

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


def test_doses_pair_cost_and_refusal_of_each_condition() -> None:
    found = {each.name: (each.kind, each.x, each.y) for each in doses(CAUSAL)}
    assert found["k 2"] == ("carrier ablated, rank 1 … k", 1.3, -2.5)
    assert found["α -1"] == ("carrier added, α", 1.2, -1.0)
    assert found["random"] == ("random, ablated", 1.05, 1.9)
    assert len(found) == 6  # without the condition that has no score


def test_the_frontier_is_what_nothing_else_beats() -> None:
    assert [each.name for each in frontier(doses(CAUSAL))] == ["untouched", "random", "k 1", "k 3"]


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
    assert kinds_of(rows[:1])[0].name == "no intervention"
    assert len(kinds_of(rows[:1])) == 1


def test_rates_are_drawn_from_0_to_1_and_scores_where_they_are() -> None:
    rows = [{**row, "lo": row["value"], "hi": row["value"], "n": 4} for row in CAUSAL]
    rate = [{**row, "read_out": "harmbench_degenerate", "value": 0.25} for row in rows[:3]]
    svg = causal_figure({"causal": [*rows, *rate]}, 0, "harmbench_degenerate", "Gibberish")
    ET.fromstring(svg)
    assert {"0", "1"} <= set(re.findall(r">([\d.]+)</text>", svg))
    assert "Gibberish" in svg
    scores = causal_figure({"causal": rows}, 0, "refusal_score", "Score")
    ET.fromstring(scores)
    assert "nan" not in re.sub(r"\[nan, nan\]", "", scores)


def behaviour() -> list[Row]:
    return [{"seed": 0, "arm": arm, "step": step} for arm, step in (("base", 0), ("r2d2", 4), ("r2d2", 8))]


def transfer(arm: str, to: int, source: str, start: int, quantity: str, value: float | None) -> Row:
    row = {"seed": 0, "arm": arm, "to": to, "from_arm": source, "from": start, "quantity": quantity, "n": 9}
    return {**row, "value": value, "lo": value, "hi": value}


def test_the_sweep_has_a_point_where_something_is_admissible() -> None:
    def sweep(arm: str, step: int, depths: tuple[float | None, ...]) -> list[Row]:
        cuts = zip((0.05, 0.1, 0.35), depths, strict=True)
        return [
            {"seed": 0, "arm": arm, "step": step, "kl_max": cut, "depth": depth, "admissible": 2}
            for cut, depth in cuts
        ]

    rows = [*sweep("base", 0, (None, 0.25, 0.5)), *sweep("r2d2", 8, (None, None, None))]
    svg = sweep_figure({"behaviour": behaviour(), "threshold_sweep": rows}, 0)
    ET.fromstring(svg)
    assert "nan" not in svg
    tips = re.findall(r"<title>(step \d+, KL cut × 100 \d+: [\d.]+)", svg)
    assert tips == ["step 0, KL cut × 100 10: 0.25", "step 0, KL cut × 100 35: 0.5"]


@pytest.mark.parametrize("missing", [False, True])
def test_figures_are_well_formed_and_name_every_anchor(missing: bool) -> None:
    tables = {
        "behaviour": behaviour(),
        "causal": CAUSAL,
        "localisation": [
            {
                "seed": 0, "arm": "r2d2", "step": 4, "layer": layer, "value": None if missing else 0.1 * layer,
                "lo": 0.0, "hi": 1.0, "n": 4, "carrier_layer": 3,
            }
            for layer in (1, 3, 5)
        ],
        "transfer": [
            transfer("base", 0, "base", 0, "transfer", 1.0),
            *(
                transfer("r2d2", to, *source, quantity, None if missing else 0.5)
                for to in (4, 8)
                for source, quantity in ((("base", 0), "transfer"), (("base", 0), "ratio"), (("r2d2", to), "transfer"))
            ),
        ],
    }  # fmt: skip
    dose, profile, control = (draw(tables, 0) for draw in (frontier_figure, profile_figure, control_figure))
    for svg in (dose, profile, control):
        ET.fromstring(svg)
        assert "nan" not in svg
    assert "r2d2, step 4" in dose
    assert ("layer 5: 0.5" in profile) != missing
    assert "carrier of layer 3" in profile
    assert ("r2d2, step 8: 0.5" in control) != missing


def candidate(position: int, bypass: float, effect: float, admissible: bool = False) -> Row:
    row = {"seed": 0, "arm": "base", "step": 0, "layer": 3, "profile": "published", "best": False}
    row |= {"position": position, "bypass": bypass, "bypass_effect": effect, "admissible": admissible}
    return row


@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_layer_shows_an_admissible_position_and_never_an_unscored_one(position: int) -> None:
    rows = [candidate(-2, math.nan, math.nan), candidate(-1, -3.0, 0.91), candidate(-3, -2.0, 0.77)]
    rows = rows[position:] + rows[:position]  # whatever comes first
    assert ">0.91<" in heat_map({"carriers": rows}, 0, "r2d2", "published")
    rows.append(candidate(-4, -1.0, 0.55, admissible=True))
    drawn = heat_map({"carriers": rows}, 0, "r2d2", "published")
    assert ">0.55<" in drawn
    assert drawn.count("fill='none' stroke='#D55E00'") == 2  # the legend's frame and the cell's


def test_arms_with_other_steps_have_their_own_anchor_before() -> None:
    steps = {"one": [100, 200], "two": [50, 150]}
    anchors = [("base", 0), *((arm, step) for arm, mine in steps.items() for step in mine)]
    common = {"seed": 0, "value": 2.0, "lo": 1.0, "hi": 3.0}
    ranks = [{**common, "arm": arm, "step": step, "quantity": "participation_ratio"} for arm, step in anchors]
    pairs = [(arm, a, b) for arm, mine in steps.items() for a, b in ((0, mine[0]), mine, (0, mine[1]))]
    drift = [
        {
            **common,
            "arm": arm,
            "from": a,
            "to": b,
            "quantity": "corrected_angle",
            "value": 7.0 + b / 1000,
            "site": site,
        }
        for arm, a, b in pairs
        for site in ("first anchor", "step 0")
    ]
    drawn = geometry_figure({"behaviour": ranks, "rank": ranks, "drift": drift}, 0)
    for arm, mine in steps.items():
        for step in mine:
            assert drawn.count(f"{arm}, step {step}: {7 + step / 1000:.3g}") == 1  # step 0's site is left out
