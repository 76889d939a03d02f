"""A change of structure changes no number: tables of a study with every stage against committed reference values."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from reference import FILE, condensed, differences, every_stage

from caryatid.report.tables import read_tables
from caryatid.study.flow import run_study
from caryatid.study.run import open_run
from caryatid.study.stage import stage_kinds


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("reference")
    return run_study(every_stage(place), place / "run").directory


@pytest.fixture(scope="module")
def reference() -> Any:
    return json.loads(FILE.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_every_kind_of_stage_is_in_the_study(run: Path) -> None:
    ran = {entry.stage.kind for entry in open_run(run).plan}
    assert ran == {kind.kind for kind in stage_kinds()}


@pytest.mark.slow
def test_tables_are_those_of_the_reference(run: Path, reference: Any) -> None:
    assert list(differences(condensed(run), reference)) == []


def test_a_change_is_seen(reference: Any) -> None:
    changed = copy.deepcopy(reference)
    changed["verdict"]["columns"]["label"] = "0" * 12
    cell = changed["causal"]["columns"]["value"][3]
    cell[1] += 0.01 * cell[2]
    changed["behaviour"]["columns"]["lo"][0][0] -= 1
    del changed["rank"]["columns"]["hi"]
    changed["transfer"]["rows"] += 1
    assert [line.split(":")[0] for line in differences(changed, reference)] == [
        "behaviour.lo, rows from 0", "causal.value, rows from 30", "rank.hi", "transfer", "verdict.label",
    ]  # fmt: skip


@pytest.mark.slow
def test_all_arms_seeds_and_attacks_are_measured(run: Path) -> None:
    tables = read_tables(run)
    assert {row["seed"] for row in tables["verdict"]} == {0, 1}
    assert {row["arm"] for row in tables["training"]} == {"base", "sft", "refusal_sft", "r2d2", "r2d2_static"}
    assert "adaptive" in {row["attack"] for row in tables["behaviour"]}
    matrix = [r for r in tables["transfer"] if (r["quantity"], r["rank"], r["seed"]) == ("transfer", 1, 0)]
    assert len(matrix) == 25
