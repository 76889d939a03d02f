"""`benchmarks/compare_tables.py`: what it calls equal, and what it says of the rest."""

import sys
from pathlib import Path

import pytest

import compare_tables
from caryatid.report.tables import Column, write_table
from compare_tables import compare_runs
from compare_tables import compare_tables as compare_rows

COLUMNS = (
    Column("seed", int, "seed"),
    Column("quantity", str, "what"),
    Column("value", float, "number"),
    Column("note", str, "text"),
    Column("seconds", float, "time"),
)


def row(quantity: str, value: float | None, note: str = "", seconds: float = 1.0) -> dict[str, object]:
    return {"seed": 0, "quantity": quantity, "value": value, "note": note, "seconds": seconds}


def test_order_of_different_rows_and_seconds_do_not_matter() -> None:
    rows = [row("angle", 1.0), row("cosine", None), row("angle", 2.0)]
    other = [row("cosine", None, seconds=7.0), row("angle", 1.0), row("angle", 2.0)]
    found = compare_rows("drift", rows, other)
    assert found.equal
    assert found.lines("drift") == ["drift: equal (3 rows)"]


def test_of_rows_about_the_same_thing_the_order_matters() -> None:
    rows = [row("angle", 1.0), row("angle", 2.5)]
    found = compare_rows("drift", rows, rows[::-1])
    assert found.matched == 2
    assert found.columns["value"] == compare_tables.Difference(2, 1.5, (1.0, 2.5))


def test_rows_of_one_run_alone_and_each_kind_of_cell() -> None:
    before = [row("angle", 10.0), row("cosine", 0.5, "a"), row("rank", None), row("gone", 1.0)]
    after = [row("angle", 10.25), row("cosine", 0.5, "b"), row("rank", 3.0), row("new", 1.0)]
    found = compare_rows("drift", before, after)
    assert not found.equal
    assert (found.rows, found.matched, found.only) == ((4, 4), 3, ([], []))
    assert found.columns["value"] == compare_tables.Difference(2, 0.25, (10.0, 10.25))
    assert found.columns["note"].first == ("a", "b")
    assert set(found.columns) == {"value", "note"}
    within = compare_rows("drift", before, after, tolerance=0.1)
    assert within.columns["value"].cells == 1  # a number that was none before is no rounding


def test_an_empty_column_is_like_none() -> None:
    without = [{"seed": 0, "value": 1.0}]
    assert compare_rows("drift", without, [{**without[0], "note": ""}]).equal
    assert compare_rows("drift", [{**without[0], "note": None}], without).equal
    assert compare_rows("drift", without, [{**without[0], "note": "x"}]).only == ([], ["note"])


def test_true_is_not_one() -> None:
    assert (
        compare_rows("drift", [{"seed": 0, "best": True}], [{"seed": 0, "best": 1}]).columns["best"].cells
        == 1
    )


def test_runs_with_a_renamed_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    renamed = tuple(Column("remark", str, "text") if column.name == "note" else column for column in COLUMNS)
    write_table(tmp_path / "a/tables", "drift", COLUMNS, [row("angle", 1.0, "x")])
    later = {**row("angle", 1.0), "remark": "x"}
    later.pop("note")
    write_table(tmp_path / "b/tables", "drift", renamed, [later])
    write_table(tmp_path / "b/tables", "nulls", COLUMNS[:1], [{"seed": 3}])
    as_they_are = compare_runs(tmp_path / "a", tmp_path / "b", {})
    assert as_they_are["drift"].only == (["note"], ["remark"])
    assert as_they_are["nulls"].rows == (0, 1)
    found = compare_runs(tmp_path / "a", tmp_path / "b", {("drift", "note"): "remark"})
    assert found["drift"].equal
    assert not found["nulls"].equal
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sys,
            "argv",
            ["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--rename", "drift.note=remark"],
        )
        with pytest.raises(SystemExit) as ended:
            compare_tables.main()
    assert ended.value.code == 1
    assert capsys.readouterr().out == "drift: equal (1 rows)\nnulls: 0 and 1 rows, 0 in both\n"
