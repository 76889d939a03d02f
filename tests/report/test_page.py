"""The report: self-contained, redacted, complete, the same each time; errors in one line."""

import json
import re
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from small import table_columns

from caryatid.errors import ConfigError, InputError, UsageError
from caryatid.report.embed import columns_of, script_json
from caryatid.report.page import about, cell
from caryatid.report.tables import read_tables, write_table
from caryatid.study.page import build_report, write_figures
from caryatid.study.run import open_run

SECTIONS = (
    "verdict", "behaviour", "frontier", "carriers", "geometry", "transfer", "causal", "training", "answers", "tables",
    "data", "settings", "reading",
)  # fmt: skip


def without_plotly(html: str) -> str:
    """A page without its longest script."""
    scripts = re.findall(r"<script>(.*?)</script>", html, re.S)
    return html.replace(max(scripts, key=len), "")


def data_of(html: str) -> dict[str, Any]:
    """What the page holds for its scripts."""
    (text,) = re.findall(r'<script type="application/json" id="data-json">(.*?)</script>', html, re.S)
    found: dict[str, Any] = json.loads(text)
    return found


def column(stored: dict[str, Any], n: int) -> list[Any]:
    """A column as the page decodes it."""
    if "one" in stored:
        return [stored["one"]] * n
    return [stored["of"][place] for place in stored["at"]] if "of" in stored else stored["all"]


def test_page_is_self_contained_and_says_what_numbers_rest_on(run: Path) -> None:
    html = without_plotly((run / "report" / "index.html").read_text())
    links = re.findall(
        r"(?:src|href)\s*=\s*[\"']([^\"']+)", re.sub(r"<script.*?</script>", "", html, flags=re.S)
    )
    assert links
    assert all(link.startswith("#") for link in links)
    assert "@import" not in html
    assert "url(" not in html
    assert "default-src 'none'" in html
    for section in SECTIONS:
        assert f'<section id="{section}">' in html
    for fact in (
        "refusal-rules@",
        "Wilson",
        "jackknife",
        "One seed",
        "2604.27019",
        "0.664",
        "caryatid study run",
    ):
        assert fact in html, fact
    assert "</script" not in html.split('id="data-json">')[1].split("</script>")[0]


def test_every_table_is_in_the_page_with_its_values(run: Path) -> None:
    data = data_of((run / "report" / "index.html").read_text())
    tables = read_tables(run)
    assert set(data["tables"]) == {*tables, "answers"}
    for name, rows in tables.items():
        stored = data["tables"][name]
        assert stored["n"] == len(rows)
        for key in rows[0] if rows else ():
            cells = column(stored["columns"][key], len(rows))
            for row, value in zip(rows, cells, strict=True):
                assert value == (
                    pytest.approx(row[key], rel=1e-5) if isinstance(row[key], float) else row[key]
                )


def test_columns_take_little_room_and_come_back() -> None:
    rows = [{"a": 1.0, "b": x, "c": x / 7, "d": None, "e": x % 2 == 0} for x in range(6)]
    stored = columns_of(rows, ["a", "b", "c", "d", "e"])
    assert stored["columns"]["a"] == {"one": 1}
    assert stored["columns"]["d"] == {"one": None}
    assert stored["columns"]["e"]["of"] == [True, False]
    assert column(stored["columns"]["b"], 6) == list(range(6))
    assert column(stored["columns"]["c"], 6)[1] == 0.142857
    mixed = columns_of([{"a": True}, {"a": 1}, {"a": True}, {"a": 1}], ["a"])["columns"]["a"]
    assert [type(value) for value in column(mixed, 4)] == [bool, int, bool, int]
    assert json.loads(script_json({"a": "</script>\u2028&"})) == {"a": "</script>\u2028&"}
    assert not set("<>&\u2028") & set(script_json({"a": "</script>\u2028&"}))


def test_captions_name_judge_profile_and_n(run: Path) -> None:
    html = (run / "report" / "index.html").read_text()
    charts = data_of(html)["charts"]
    places = re.findall(r'<figure id="[\w.-]+" data-chart="([\w.-]+)"', html)
    assert {key.replace("SEED", "0") for key in places} == set(charts)
    first = charts["behaviour-seed0"]["caption"]
    assert "refusal-rules@" in first
    assert "degeneracy@" in first
    (bypass,) = re.findall(r"<figcaption>(Profile: .*?)<span", html, re.S)
    assert "KL ≤ 0.35, both effects ≥ 0.5, first 80% of the layers" in bypass
    assert "4 harmful and 4 harmless selection prompts" in bypass
    read_outs = [
        text for chart in charts.values() if "generated answers" in (text := chart.get("caption", ""))
    ]
    assert len(read_outs) == 5
    assert all(re.search(r"judge (refusal-rules|degeneracy)@\d+, n = \d", text) for text in read_outs)
    assert any("gibberish" in text for text in read_outs)


def test_what_weakens_the_numbers_is_said_first(run: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(run, moved, ignore=shutil.ignore_patterns("stages"))
    rows = [row for row in read_tables(moved)["behaviour"] if row["suite"] != "xstest_unsafe"]
    noted = [{**row, "note": "uninformative: x" if row["attack"] == "fixed_source" else None} for row in rows]
    write_table(moved / "tables", "behaviour", table_columns("behaviour"), noted)
    html = build_report(open_run(moved)).read_text()
    first = html.index("Not measured: XSTest unsafe")
    assert first < html.index('class="cards"')
    assert "Fixed-source attack (seed 0): uninformative: x." in html
    titles = [panel["title"] for panel in data_of(html)["charts"]["behaviour-seed0"]["panels"]]
    assert "Fixed-source attack: answered (uninformative)" in titles


def test_arms_may_be_called_anything(run: Path, tmp_path: Path) -> None:
    moved, name = tmp_path / "moved", "<b>a</b>/../../../up & down, with a very long name"
    shutil.copytree(run, moved, ignore=shutil.ignore_patterns("stages"))
    for table, rows in read_tables(moved).items():
        columns = [column for column in ("arm", "from_arm") if rows and column in rows[0]]
        renamed = [{**row, **{c: name for c in columns if row[c] == "r2d2"}} for row in rows]
        write_table(moved / "tables", table, table_columns(table), renamed)
    html = build_report(open_run(moved)).read_text()
    assert "<b>a</b>" not in html
    assert "Under &lt;b&gt;a" in html
    assert sorted(path.name for path in tmp_path.iterdir()) == ["moved"]
    for file in (moved / "figures").glob("*.svg"):
        ET.fromstring(file.read_text())


def test_report_comes_from_artifacts_alone_and_is_repeatable(run: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    for name in ("report", "figures"):
        shutil.rmtree(moved / name)
    for weights in moved.glob("stages/*/*/**/*.safetensors"):
        weights.unlink()
    assert build_report(open_run(moved)).read_bytes() == (run / "report" / "index.html").read_bytes()
    assert write_figures(open_run(moved)) == len(list((run / "figures").glob("*.svg")))
    for folder in ("figures", "tables"):
        files = {file.name: file.read_bytes() for file in (run / folder).iterdir()}
        assert {file.name: file.read_bytes() for file in (moved / folder).iterdir()} == files


def test_figures_are_there_as_svg_and_pdf(run: Path) -> None:
    files = sorted((run / "figures").glob("*.svg"))
    names = {file.name.split("-seed")[0] for file in files}
    assert {
        "behaviour",
        "frontier",
        "bypass-sft",
        "bypass-r2d2",
        "geometry",
        "drift",
        "transfer",
        "training",
    } <= names
    assert {file.stem for file in files} == {file.stem for file in (run / "figures").glob("*.pdf")}
    for file in files:
        assert ET.fromstring(file.read_text()).tag.endswith("svg")


def test_unfinished_run_is_a_usage_error(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("tables"))
    with pytest.raises(UsageError, match="no tables yet"):
        build_report(open_run(tmp_path / "run"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tables/verdict.parquet", b"xx", "not readable as parquet"),
        ("config.yaml", b"foo: [", "not YAML"),
        ("config.yaml", b"\xff", "cannot be read"),
        ("manifest.json", b"{", "not readable as JSON"),
    ],
)
def test_damaged_files_are_one_line_with_a_remedy(
    run: Path, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(run, moved, ignore=shutil.ignore_patterns("stages"))
    (moved / name).write_bytes(content)
    with pytest.raises((InputError, ConfigError), match=message) as caught:
        build_report(open_run(moved))
    assert str(moved / name) in str(caught.value)
    assert "Delete" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_cells() -> None:
    values = (None, float("nan"), True, 0.123456, 3, "a")
    assert [cell(value) for value in values] == ["–", "–", "yes", "0.123", "3", "a"]


@pytest.mark.parametrize(
    ("spec", "facts", "said"),
    [
        ("embedded", {}, False),  # a run from before it was recorded
        ("runs/mine/anchors/step-000010", {"planted": True}, True),
        ("embedded", {"planted": False}, False),
    ],
)
def test_a_planted_backbone_is_said_where_the_backbone_is_named(
    spec: str, facts: dict[str, bool], said: bool
) -> None:
    line = about(spec, {"prompts_source": "embedded", **facts})
    assert f"Backbone: {spec}" in line
    assert ("planted" in line) == said
