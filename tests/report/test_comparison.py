"""Several studies on one page: nothing pooled, tables joined with the study's name, errors in one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hostile_texts import Seen
from small import table_columns

from caryatid.cli import run as command
from caryatid.models.planted import PLANTED
from caryatid.report.tables import read_tables, write_table


@pytest.fixture(scope="module")
def two(run: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The study, and a copy of the same name elsewhere in which one verdict is another."""
    other = tmp_path_factory.mktemp("other") / run.name
    shutil.copytree(run / "tables", other / "tables")
    rows = read_tables(other)["verdict"]
    changed = [
        {**row, "label": "relocation"} if (row["arm"], row["to"]) == ("r2d2", 2) else row for row in rows
    ]
    write_table(other / "tables", "verdict", table_columns("verdict"), changed)
    return [run, other]


@pytest.fixture(scope="module")
def compared(two: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compared")
    assert command(["compare", *map(str, two), "--out", str(out)]) == 0
    return out


def test_verdicts_are_counted_and_never_pooled(
    two: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(["compare", *map(str, two), "--out", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["runs"] == [two[0].name, f"{two[0].name} (2)"]
    mine = {row["label"]: (row["count"], row["of"]) for row in found["agreement"] if row["arm"] == "r2d2"}
    assert mine.pop("relocation") == (1, 2)
    assert list(mine.values()) == [(1, 2)]


def test_tables_are_joined_with_the_studys_name_and_the_columns_meaning(
    two: list[Path], compared: Path
) -> None:
    joined, single = read_tables(compared), read_tables(two[0])
    assert {"verdict", "behaviour", "transfer", "drift"} <= set(joined)
    for name, rows in joined.items():
        assert [{k: v for k, v in row.items() if k != "run"} for row in rows[: len(single[name])]] == single[
            name
        ]
        assert {row["run"] for row in rows} <= {two[0].name, f"{two[0].name} (2)"}
    field = pq.read_schema(compared / "tables" / "drift.parquet").field("value")
    assert field.metadata[b"meaning"] == b"its value"


def test_the_page_holds_a_sentence_a_study_and_arm(compared: Path) -> None:
    html = (compared / "index.html").read_text(encoding="utf-8")
    assert html.count('class="headline"') == 4
    assert "Under r2d2, refusal moved" in html
    assert "1 of 2" in html


def test_a_planted_refusal_is_said_of_its_study_alone(two: list[Path], tmp_path: Path) -> None:
    planted = tmp_path / "planted"
    shutil.copytree(two[1] / "tables", planted / "tables")
    manifest = json.loads((two[0] / "manifest.json").read_text(encoding="utf-8"))
    changed = manifest | {"facts": manifest["facts"] | {"planted": True}}
    (planted / "manifest.json").write_text(json.dumps(changed))
    assert command(["compare", str(two[0]), str(planted), "--out", str(tmp_path / "page")]) == 0
    html = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    assert html.count(PLANTED) == 1
    assert f"<bdi>planted</bdi>: {PLANTED}" in html


@pytest.mark.browser
def test_the_page_is_drawn_without_an_error_or_a_request(compared: Path, shown: Callable[..., Seen]) -> None:
    seen = shown(compared / "index.html", 390)
    seen.drawn()
    seen.unfold()
    assert seen.problems == []
    assert seen.requests == [seen.address]
    assert seen.page.locator("figure .panel .main-svg").count() >= 8
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= 390


def test_what_is_no_finished_study_is_a_usage_error(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(["compare", str(run), "--out", str(tmp_path / "out")]) == 2
    assert "one study is nothing to compare" in capsys.readouterr().err
    assert command(["compare", str(run), str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "no tables of a finished study" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
