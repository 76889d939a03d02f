"""The report: self-contained, escaped, redacted, complete; and a browser finds nothing wrong with it."""

import re
import shutil
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from caryatid.artifacts import read_json, write_json
from caryatid.errors import ConfigError, InputError, UsageError
from caryatid.report.page import cell
from caryatid.report.svg import Drawing, Frame, Point, Series, panel, shade
from caryatid.report.tables import read_tables, write_table
from caryatid.study.flow import run_study
from caryatid.study.page import build_report
from caryatid.study.run import open_run

sys.path.insert(0, str(Path(__file__).parents[1] / "study"))
from small import small_config, table_columns

MARKUP = "<script>alert('x')</script> & \"quoted\""
SECRET = "Step one: take the key under the mat"
CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny study in which one answer and one prompt are hostile."""
    place = tmp_path_factory.mktemp("report")
    directory = run_study(small_config(place), place / "run").directory
    file = min(directory.glob("stages/answers/*/result.json"))
    stored = read_json(file)
    rows = stored["rows"]
    harmful = next(row for row in rows if row["suite"] == "harmbench")
    harmful["text"] = SECRET
    safe = next(row for row in rows if row["suite"] == "xstest_safe")
    safe["text"], safe["user_text"] = MARKUP, MARKUP
    write_json(file, stored)
    build_report(open_run(directory))
    return directory


def test_answers_to_harmful_prompts_are_redacted_unless_asked(run: Path) -> None:
    html = build_report(open_run(run)).read_text()
    assert SECRET not in html
    assert f"[redacted, {len(SECRET)} characters]" in html
    shown = build_report(open_run(run), show_answers=True).read_text()
    assert SECRET in shown
    build_report(open_run(run))


def test_everything_from_outside_is_escaped(run: Path) -> None:
    html = build_report(open_run(run)).read_text()
    assert "<script" not in html
    assert "&lt;script&gt;alert(" in html


def test_page_is_self_contained_and_says_what_numbers_rest_on(run: Path) -> None:
    html = build_report(open_run(run)).read_text()
    links = re.findall(r"(?:src|href)\s*=\s*[\"']([^\"']+)", html)
    assert links
    assert all(link.startswith("#") for link in links)
    assert "@import" not in html
    assert "url(" not in html
    for section in ("verdict", "behaviour", "carriers", "geometry", "causal", "transfer", "data", "settings"):
        assert f'<section id="{section}">' in html
    for fact in ("refusal-rules@", "calibrated", "Wilson", "jackknife", "One seed", "2604.27019", "0.664"):
        assert fact in html, fact


def test_captions_name_judge_profile_and_n(run: Path) -> None:
    html = build_report(open_run(run)).read_text()
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", html, re.S)
    assert len(captions) == len(re.findall(r"<figure>", html))
    first, bypass = captions[0], next(text for text in captions if "bypass effect" in text)
    assert "refusal-rules@" in first
    assert "degeneracy@" in first
    assert "KL ≤ 0.35, both effects ≥ 0.5, first 80% of the layers" in bypass
    assert "4 harmful and 4 harmless selection prompts" in bypass
    read_outs = [text for text in captions if "generated answers" in text]
    assert len(read_outs) == 5
    assert all(re.search(r"judge (refusal-rules|degeneracy)@\d+, n = \d", text) for text in read_outs)
    assert any("gibberish" in text for text in read_outs)
    assert "Fixed-source − direct" in html


def test_what_weakens_the_numbers_is_said_first(run: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(run, moved, ignore=shutil.ignore_patterns("stages"))
    rows = [row for row in read_tables(moved)["behaviour"] if row["suite"] != "xstest_unsafe"]
    noted = [{**row, "note": "uninformative: x" if row["attack"] == "fixed_source" else None} for row in rows]
    write_table(moved / "tables", "behaviour", table_columns("behaviour"), noted)
    html = build_report(open_run(moved)).read_text()
    assert "Not measured: XSTest unsafe" in html
    assert "Fixed-source attack (seed 0): uninformative: x." in html
    assert "answered (uninformative)" in html


def test_arms_may_be_called_anything(run: Path, tmp_path: Path) -> None:
    moved, name = tmp_path / "moved", "<b>a</b>/../../../up & down, with a very long name"
    shutil.copytree(run, moved, ignore=shutil.ignore_patterns("stages"))
    for table, rows in read_tables(moved).items():
        columns = [column for column in ("arm", "from_arm") if rows and column in rows[0]]
        renamed = [{**row, **{c: name for c in columns if row[c] == "r2d2"}} for row in rows]
        write_table(moved / "tables", table, table_columns(table), renamed)
    html = build_report(open_run(moved)).read_text()
    assert "<b>a</b>" not in html
    assert "&lt;b&gt;a" in html
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


def test_figures_are_well_formed_svg(run: Path) -> None:
    files = sorted((run / "figures").glob("*.svg"))
    names = {file.name.split("-seed")[0] for file in files}
    assert {"behaviour", "bypass-sft", "bypass-r2d2", "geometry", "transfer"} <= names
    for file in files:
        root = ET.fromstring(file.read_text())
        assert root.tag.endswith("svg")
        assert "nan" not in file.read_text().replace("[nan, nan]", "").split("<title>")[0]


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


def test_chart_puts_values_where_they_belong() -> None:
    drawing = Drawing(400, 240, "x")
    points = [Point(0, 0.0, 0.0, 0.2), Point(5, 1.0, 0.8, 1.0)]
    panel(drawing, (0, 0, 400, 240), [Series("a", "#000000", points)], Frame("t", [0, 5], (0, 1)))
    circles = re.findall(r"<circle cx='([\d.]+)' cy='([\d.]+)'", drawing.svg())
    (x0, y0), (x1, y1) = ((float(x), float(y)) for x, y in circles)
    assert x0 < x1
    assert (y0, y1) == (206.0, 26.0)  # bottom and top of the plotting area


def test_cells_and_shades() -> None:
    assert [cell(v) for v in (None, float("nan"), True, 0.123456, 3, "a")] == [
        "–",
        "–",
        "yes",
        "0.123",
        "3",
        "a",
    ]
    assert shade(0.0) == "#ffffff"
    assert shade(2.0) == shade(1.0) == "#084081"
    assert shade(float("nan")) == "#eeeeee"


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
@pytest.mark.parametrize("width", [1280, 420])
def test_browser_shows_the_report_without_errors_or_requests(run: Path, width: int) -> None:
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        page = browser.new_page(viewport={"width": width, "height": 900})
        problems: list[str] = []
        requests: list[str] = []
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        address = (run / "report" / "index.html").resolve().as_uri()
        page.goto(address)
        assert problems == []
        assert requests == [address]
        drawn = page.evaluate(
            "[...document.querySelectorAll('figure svg')].map(s => s.getBoundingClientRect().height)"
        )
        assert len(drawn) >= 5
        assert min(drawn) > 40
        page.click("nav a[href='#causal']")
        assert page.evaluate("document.querySelector('#causal').getBoundingClientRect().top") < 200
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        browser.close()
