import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from caryatid.errors import InputError
from caryatid.geometry.published import select_from_table
from caryatid.geometry_files import metrics_file, select_file

RUNS = {"gemma-2b-it": 18, "qwen-1_8b-chat": 24}


def row(position: int, layer: int, refusal: Any, steering: Any = 1.0, kl: Any = 0.05) -> dict[str, Any]:
    return {
        "position": position,
        "layer": layer,
        "refusal_score": refusal,
        "steering_score": steering,
        "kl_div_score": kl,
    }


def released_rule(rows: list[dict[str, Any]], n_layers: int) -> tuple[int, int]:
    """The released filter and sort, written out row by row."""
    kept = [
        r
        for r in rows
        if not any(math.isnan(r[k]) for k in ("refusal_score", "steering_score", "kl_div_score"))
        and r["layer"] < int(n_layers * (1.0 - 0.2))
        and r["kl_div_score"] <= 0.1
        and r["steering_score"] >= 0.0
    ]
    best = sorted(kept, key=lambda r: -r["refusal_score"], reverse=True)[0]
    return best["position"], best["layer"]


@pytest.mark.parametrize("model", RUNS)
def test_published_tables_give_the_published_place(model: str) -> None:
    folder = Path(os.environ.get("CARYATID_DATA", "")) / "arditi_runs" / model
    if not folder.is_dir():
        pytest.skip("the published direction tables are not in CARYATID_DATA")
    metadata = json.loads((folder / "direction_metadata.json").read_text())
    found = select_file(folder / "direction_evaluations.json", RUNS[model])
    assert (found.position, found.layer) == (metadata["pos"], metadata["layer"])
    rows = json.loads((folder / "direction_evaluations.json").read_text())
    assert found.candidates == len(rows)
    assert (found.position, found.layer) == released_rule(rows, RUNS[model])


@pytest.mark.parametrize("model", RUNS)
def test_rank_figures_of_published_directions_are_numpys(model: str, tmp_path: Path) -> None:
    file = Path(os.environ.get("CARYATID_DATA", "")) / "arditi_runs" / model / "mean_diffs.pt"
    if not file.is_file():
        pytest.skip("the published directions are not in CARYATID_DATA")
    directions = torch.load(file, map_location="cpu", weights_only=True)  # [positions, layers, d]
    save_file({"directions": directions.contiguous()}, tmp_path / "directions.safetensors")
    found = metrics_file(tmp_path / "directions.safetensors")
    for index, rows in enumerate(directions.double().numpy()):
        values = np.linalg.svd(rows, compute_uv=False)
        shares, power = values[values > 0] / values.sum(), values**2
        expected = {
            "effective_rank": np.exp(-(shares * np.log(shares)).sum()),
            "participation_ratio": power.sum() ** 2 / (power**2).sum(),
            "stable_rank": power.sum() / power.max(),
        }
        for name, value in expected.items():
            assert found[name][index] == pytest.approx(value, rel=1e-10)


def test_random_tables_agree_with_the_released_rule() -> None:
    for seed in range(30):
        rng = np.random.default_rng(seed)
        n_layers = int(rng.integers(5, 40))
        rows = [
            row(p, layer, *map(float, (rng.normal(0, 5), rng.normal(1, 3), rng.exponential(0.1))))
            for p in range(-3, 0)
            for layer in range(n_layers)
        ]
        rows[int(rng.integers(len(rows)))]["refusal_score"] = math.nan
        found = select_from_table(rows, n_layers)
        assert (found.position, found.layer) == released_rule(rows, n_layers)


def test_the_depth_cut_is_a_floor_of_the_models_depth() -> None:
    rows = [row(-1, 24, -3.0), row(-1, 25, -9.0)]  # ⌊0.8 · 32⌋ = 25, 0.8 · 32 = 25.6
    assert select_from_table(rows, 32).layer == 24
    assert select_from_table(rows, 33).layer == 25


def test_null_and_nan_are_inadmissible_and_ties_go_to_the_first() -> None:
    rows = [row(-1, 1, None), row(-1, 2, math.nan), row(-2, 3, -1.0), row(-1, 3, -1.0)]
    assert select_from_table(rows, 10) == (-2, 3, 2, 4)


@pytest.mark.parametrize("value", ["NaN", "nan", "Infinity", "-Infinity", None, math.inf, -math.inf])
@pytest.mark.parametrize("field", ["refusal_score", "steering_score", "kl_div_score"])
def test_scores_that_are_not_finite_are_inadmissible_however_they_were_written(
    tmp_path: Path, field: str, value: Any
) -> None:
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([row(-1, 1, -9.0) | {field: value}, row(-1, 2, -1.0)]))
    assert select_file(file, 10) == (-1, 2, 1, 2)


def test_rows_in_any_order_and_places_written_as_floats() -> None:
    rows = [row(-1, 7, -3.0), row(-1, 8, -9.0), row(-3.0, 2.0, -4.0), row(-2, 0, -1.0)]  # type: ignore[arg-type]
    assert select_from_table(rows, 10) == (-3, 2, 3, 4)
    assert select_from_table(rows[::-1], 10) == (-3, 2, 3, 4)


def test_thresholds_of_the_released_rule_include_their_bounds() -> None:
    rows = [
        row(-1, 3, -5.0, steering=0.0, kl=0.1),
        row(-1, 4, -9.0, steering=-1e-12),
        row(-1, 5, -9.0, kl=0.1 + 1e-12),
    ]
    assert select_from_table(rows, 10) == (-1, 3, 1, 3)
    assert released_rule(rows, 10) == (-1, 3)


def test_nothing_admissible_is_a_result() -> None:
    assert select_from_table([row(-1, 1, 0.0, kl=0.2)], 10) == (None, None, 0, 1)


def test_calibrated_needs_the_unablated_scores(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([row(-1, 3, -1.0, -1.0, 0.3), row(-1, 5, -0.5, 4.0, 0.3)]))
    with pytest.raises(InputError, match="--harmful-score"):
        select_file(file, 10, "calibrated")
    found = select_file(file, 10, "calibrated", harmful_score=4.0, harmless_score=-6.0)
    assert found == (-1, 3, 1, 2)
    for one in ({"harmful_score": 4.0}, {"harmless_score": -6.0}):
        with pytest.raises(InputError, match="Give both or neither"):
            select_file(file, 10, **one)  # type: ignore[arg-type]


def cosmic_row(position: int, layer: int, ablated: Any, added: Any, kl: Any = 0.05) -> dict[str, Any]:
    return {
        "position": position, "layer": layer, "kl_div_score": kl, "cosmic_ablated": ablated, "cosmic_added": added
    }  # fmt: skip


def test_cosmic_selects_the_highest_sum_of_cosines_within_kl_and_depth(tmp_path: Path) -> None:
    rows = [
        cosmic_row(-1, 2, 0.9, 0.5),
        cosmic_row(-2, 3, 0.8, 0.7),
        cosmic_row(-1, 4, 0.9, 0.9, kl=0.2),
        cosmic_row(-1, 8, 1.0, 1.0),
        cosmic_row(-1, 5, None, 1.0),
        cosmic_row(-1, 6, math.nan, 1.0),
    ]
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(rows))
    assert select_file(file, 10, selector="cosmic") == (-2, 3, 2, 6)
    assert select_file(file, 10, "calibrated", selector="cosmic") == (-1, 4, 3, 6)
    assert select_file(file, 12, selector="cosmic") == (-1, 8, 3, 6)
    file.write_text(json.dumps(rows[2:3]))
    assert select_file(file, 10, selector="cosmic") == (None, None, 0, 1)


def test_selectors_may_differ_on_one_table(tmp_path: Path) -> None:
    rows = [row(-1, 2, -5.0) | cosmic_row(-1, 2, 0.1, 0.2), row(-1, 3, -1.0) | cosmic_row(-1, 3, 0.9, 0.9)]
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(rows))
    assert select_file(file, 10).layer == 2
    assert select_file(file, 10, selector="cosmic").layer == 3


def test_missing_cosines_are_named_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([row(-1, 3, -1.0)]))
    with pytest.raises(InputError, match="cosmic_ablated, cosmic_added") as caught:
        select_file(file, 10, selector="cosmic")
    assert "\n" not in str(caught.value)
    file.write_text(json.dumps([cosmic_row(-1, 3, 0.5, 0.5), row(-1, 3, -1.0)]))
    with pytest.raises(InputError, match="row 1: no 'cosmic_ablated'"):
        select_file(file, 10, selector="cosmic")
    with pytest.raises(InputError, match="unknown selector 'best'"):
        select_file(file, 10, selector="best")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("{}", "not a list of rows"),
        ("[]", "not a list of rows"),
        ('[{"position": -1}]', r"row 0: no 'layer'"),
        (json.dumps([row(-1, 3, "low")]), "refusal_score is 'low'"),
        (json.dumps([row(-1, 10, 1.0)]), "layer 10 is not one of 0 … 9"),
        ('[{"position": -1, "layer": 2.5}]', "not an integer"),
    ],
)
def test_unusable_tables_are_one_line_errors(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "rows.json"
    file.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        select_file(file, 10)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_profile_and_layers(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        select_file(tmp_path / "none.json", 10)
    with pytest.raises(InputError, match="unknown profile 'strict'"):
        select_file(tmp_path / "none.json", 10, "strict")
    with pytest.raises(InputError, match="0 layers"):
        select_from_table([row(-1, 0, 0.0)], 0)
