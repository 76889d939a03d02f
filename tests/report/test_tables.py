"""Tables on disk: declared columns, types and meanings, null for NaN, the same bytes for the same rows."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from caryatid.errors import InputError
from caryatid.report.tables import Column, read_tables, write_table

COLUMNS = (
    Column("seed", int, "seed of training"),
    Column("arm", str, "training recipe"),
    Column("step", int, "updates since step 0"),
    Column("value", float, "mean refusal score", "nats"),
    Column("layer", int, "block"),
    Column("best", bool, "the carrier"),
)
ROW = {"seed": 0, "arm": "sft", "step": 3, "value": 0.5, "layer": 7, "best": True}


def write(folder: Path, *rows: dict[str, Any]) -> None:
    write_table(folder / "tables", "measured", COLUMNS, rows)


def test_round_trip_and_same_bytes(tmp_path: Path) -> None:
    rows = [ROW, {**ROW, "value": math.nan, "layer": None, "best": np.False_, "step": np.int64(3)}]
    write(tmp_path, *rows)
    first = {p.name: p.read_bytes() for p in (tmp_path / "tables").iterdir()}
    assert set(first) == {"measured.parquet", "measured.csv"}
    write(tmp_path, *rows)
    assert {p.name: p.read_bytes() for p in (tmp_path / "tables").iterdir()} == first
    assert read_tables(tmp_path) == {"measured": [ROW, {**ROW, "value": None, "layer": None, "best": False}]}
    frame = pd.read_csv(tmp_path / "tables" / "measured.csv")
    assert list(frame.columns) == [column.name for column in COLUMNS]
    assert frame["step"].tolist() == [3, 3]
    assert frame["best"].tolist() == [True, False]
    assert math.isnan(frame["value"][1])


def test_columns_left_out_of_a_row_are_there_and_empty_in_the_order_declared(tmp_path: Path) -> None:
    write(tmp_path, {"step": 1, "seed": 0})
    assert read_tables(tmp_path)["measured"] == [{**dict.fromkeys(ROW), "seed": 0, "step": 1}]
    assert list(read_tables(tmp_path)["measured"][0]) == list(ROW)


def test_empty_tables_have_their_columns_with_types_and_meanings(tmp_path: Path) -> None:
    write(tmp_path)
    schema = pq.read_schema(tmp_path / "tables" / "measured.parquet")
    assert [str(field.type) for field in schema] == ["int64", "string", "int64", "double", "int64", "bool"]
    assert schema.names == list(ROW)
    about = schema.field("value").metadata
    assert (about[b"meaning"], about[b"unit"]) == (b"mean refusal score", b"nats")
    assert (tmp_path / "tables" / "measured.csv").read_text() == "seed,arm,step,value,layer,best\n"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"step": "three"}, "'step' holds 'three', not int"),
        ({"step": 1.5}, "'step' holds 1.5, not int"),
        ({"step": True}, "'step' holds True, not int"),
        ({"value": True}, "'value' holds True, not float"),
        ({"value": "0.5"}, "'value' holds '0.5', not float"),
        ({"arm": 1}, "'arm' holds 1, not str"),
        ({"best": 1}, "'best' holds 1, not bool"),
        ({"judge": "rules@1", "n": 4}, "undeclared columns: judge, n"),
    ],
)
def test_wrong_columns_and_types_are_refused(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        write(tmp_path, ROW, {**ROW, **wrong})
    assert "table measured" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_integers_stay_integers_beside_nulls(tmp_path: Path) -> None:
    write(tmp_path, {**ROW, "layer": 3}, {**ROW, "layer": None})
    assert pd.read_csv(tmp_path / "tables" / "measured.csv", dtype=str)["layer"].tolist()[0] == "3"
