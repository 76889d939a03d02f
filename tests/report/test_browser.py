"""The page in a browser: drawn whole, without an error or a request, and its selectors show what the tables hold."""

import csv
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hostile_texts import Seen

from caryatid.report.tables import read_tables

pytestmark = pytest.mark.browser

HEAT = "[...document.querySelectorAll('#map .panel')].map((p) => p.data[0].z)"
MARKS = """[...document.querySelectorAll('figure[data-chart="behaviour-seedSEED"] .panel')]
    .map((p) => p.layout.shapes.at(-1).x0)"""


@pytest.fixture(scope="module")
def seen(run: Path, shown: Callable[..., Seen]) -> Seen:
    """One page that the tests below use in turn; each puts the selectors where it needs them."""
    found = shown(run / "report" / "index.html")
    found.drawn()
    return found


def choose(seen: Seen, name: str, value: str) -> None:
    seen.page.select_option(f"#{name}", value)


@pytest.mark.parametrize(("width", "theme"), [(1280, "dark"), (390, "light")])
def test_every_panel_is_drawn_without_an_error_a_request_or_a_sideways_scroll(
    run: Path, shown: Callable[..., Seen], width: int, theme: str
) -> None:
    seen = shown(run / "report" / "index.html", width, theme)
    seen.drawn()
    seen.unfold()
    assert seen.problems == []
    assert seen.requests == [seen.address]
    drawn = seen.page.evaluate(
        "[...document.querySelectorAll('figure')].map((f) => [f.id, f.querySelectorAll('.panel').length,"
        " [...f.querySelectorAll('.panel .main-svg')].map((s) => s.getBoundingClientRect().height)])"
    )
    assert len(drawn) >= 16
    for name, panels, heights in drawn:
        assert len(heights) >= panels > 0, name
        assert min(heights) > 40, name
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
    wide = seen.page.evaluate(
        "[...document.querySelectorAll('figure .panel')]"
        ".filter((panel) => panel.getBoundingClientRect().right > innerWidth).length"
    )
    assert wide == 0
    seen.page.click("nav a[href='#causal']")
    assert abs(seen.page.evaluate("document.querySelector('#causal').getBoundingClientRect().top")) < 200


BUTTONS = "[...document.querySelectorAll('.modebar-group')].map((group) => getComputedStyle(group).opacity)"


def test_buttons_of_a_chart_cover_nothing_until_it_is_pointed_at(
    run: Path, seen: Seen, shown: Callable[..., Seen], pointerless: Any
) -> None:
    assert set(seen.page.evaluate(BUTTONS)) == {"0"}
    without = shown(run / "report" / "index.html", other=pointerless)
    without.drawn()
    assert not without.page.evaluate("matchMedia('(hover: hover)').matches")
    assert without.page.evaluate(BUTTONS) == []


def test_the_first_screen_has_a_sentence_an_arm(run: Path, seen: Seen) -> None:
    cards = seen.page.evaluate(
        "[...document.querySelectorAll('.card .headline')].map((c) => [c.innerText, c.getBoundingClientRect().bottom])"
    )
    assert [text.split(",")[0] for text, _ in cards] == ["Under sft", "Under r2d2"]
    assert max(bottom for _, bottom in cards) < 900
    ends = seen.page.evaluate(
        "[...document.querySelectorAll('.card .rates, .card h3 + ul li:first-child')]"
        ".map((part) => part.getBoundingClientRect().bottom)"
    )
    assert len(ends) == 4  # of each arm what it cost, and how sure it is
    assert max(ends) < 900


def test_the_slider_moves_every_mark_and_the_rates(run: Path, seen: Seen) -> None:
    rows = read_tables(run)["behaviour"]
    steps = sorted({row["step"] for row in rows})
    slider = seen.page.locator("#step")
    assert seen.page.inner_text("#step-shown") == f"step {steps[-1]}"
    slider.focus()
    slider.press("Home")
    assert seen.page.inner_text("#now-step") == "step 0"
    assert set(seen.page.evaluate(MARKS)) == {0}
    slider.press("ArrowRight")
    assert set(seen.page.evaluate(MARKS)) == {steps[1]}
    (row,) = [
        row
        for row in rows
        if (row["arm"], row["step"], row["suite"], row["attack"], row["metric"], row["group"] or "")
        == ("r2d2", steps[1], "harmbench", "direct", "compliance", "")
    ]
    shown = seen.page.evaluate("[...document.querySelectorAll('#now tbody tr')].map((r) => r.innerText)")
    (mine,) = [line for line in shown if line.startswith("r2d2")]
    assert f"{row['value']:.2f} [{row['lo']:.2f}, {row['hi']:.2f}] n = {row['n']}" in mine
    columns = seen.page.evaluate("document.querySelector('#map .panel').layout.shapes.at(-1)")
    assert columns["x0"] < steps[1] < columns["x1"]


def expected(run: Path, arm: str, profile: str, quantity: str) -> list[list[float | None]]:
    rows = [
        row
        for row in read_tables(run)["carriers"]
        if row["arm"] in ("base", arm) and row["profile"] == profile and row["position"] == -1
    ]
    layers, steps = (sorted({row[key] for row in rows}) for key in ("layer", "step"))
    cells = {(row["layer"], row["step"]): row[quantity] for row in rows}
    return [[cells[layer, step] for step in steps] for layer in reversed(layers)]


@pytest.mark.parametrize(
    ("profile", "quantity"),
    [("published", "kl"), ("calibrated", "induce_effect"), ("published", "bypass_effect")],
)
def test_the_carrier_map_is_the_table_under_every_selector(
    run: Path, seen: Seen, profile: str, quantity: str
) -> None:
    choose(seen, "profile", profile)
    choose(seen, "quantity", quantity)
    choose(seen, "position", "-1")
    for arm, found in zip(("sft", "r2d2"), seen.page.evaluate(HEAT), strict=True):
        for row, wanted in zip(found, expected(run, arm, profile, quantity), strict=True):
            for value, cell in zip(row, wanted, strict=True):
                assert value == (None if cell is None or math.isnan(cell) else pytest.approx(cell, rel=1e-5))


def test_the_browsers_map_is_that_of_the_files(run: Path, seen: Seen) -> None:
    from caryatid.report.captions import profile_of
    from caryatid.report.figures import map_chart

    tables = read_tables(run)
    choose(seen, "profile", profile_of(tables))
    choose(seen, "quantity", "bypass_effect")
    choose(seen, "position", "best")
    for arm in ("sft", "r2d2"):
        (grid,) = map_chart(tables, 0, arm, profile_of(tables)).panels
        found = seen.page.evaluate("(arm) => caryatid.mapGrid(arm, caryatid.state)", arm)
        for key in ("framed", "marked", "ringed"):
            assert sorted(map(tuple, found[key])) == sorted(getattr(grid, key)), key
        for row, wanted in zip(found["values"], grid.values, strict=True):
            assert row == [None if math.isnan(value) else pytest.approx(value, rel=1e-5) for value in wanted]


def cells_of(seen: Seen, table: str, column: int) -> list[str]:
    found: list[str] = seen.page.evaluate(
        "([table, column]) => [...document.querySelectorAll(`#tables details[data-table='${table}'] tbody tr`)]"
        ".map((row) => row.cells[column].innerText)",
        [table, column],
    )
    return found


def test_tables_sort_filter_and_download(run: Path, seen: Seen) -> None:
    rows = read_tables(run)["behaviour"]
    fold = seen.page.locator("#tables details[data-table='behaviour']")
    fold.locator("summary").click()
    names = list(rows[0])
    place = names.index("value")
    fold.get_by_role("button", name="value", exact=True).click()
    assert (
        seen.page.get_attribute(
            f"#tables details[data-table='behaviour'] th:nth-child({place + 1})", "aria-sort"
        )
        == "ascending"
    )
    ordered = sorted(row["value"] for row in rows if row["value"] is not None)
    shown = [float(text) for text in cells_of(seen, "behaviour", place)]
    assert shown == pytest.approx(ordered[:50], rel=1e-3)
    fold.get_by_role("button", name="value", exact=True).click()
    assert float(cells_of(seen, "behaviour", place)[0]) == pytest.approx(ordered[-1], rel=1e-3)
    fold.get_by_role("searchbox").fill("arm=r2d2 step>1 utility")
    wanted = [row for row in rows if row["arm"] == "r2d2" and row["step"] > 1 and row["suite"] == "utility"]
    assert fold.get_by_role("status").inner_text().startswith(f"{len(wanted)} of {len(rows)} rows")
    assert set(cells_of(seen, "behaviour", names.index("arm"))) == {"r2d2"}
    with seen.page.expect_download() as waiting:
        fold.get_by_role("button", name="Download CSV").click()
    downloaded = list(csv.DictReader(io.StringIO(Path(waiting.value.path()).read_text(encoding="utf-8"))))
    assert sorted(row["metric"] for row in downloaded) == sorted(row["metric"] for row in wanted)
    fold.get_by_role("searchbox").fill("")
    seen.page.locator("#step").press("End")
    fold.get_by_role("checkbox").check()
    assert set(cells_of(seen, "behaviour", names.index("step"))) == {"2"}


def test_answers_are_filtered_and_searched(run: Path, seen: Seen) -> None:
    choose(seen, "answers-suite", "harmbench")
    choose(seen, "answers-arm", "r2d2")
    shown: Any = seen.page.evaluate(
        "[...document.querySelectorAll('#answers-list li')].map((li) => li.innerText)"
    )
    assert shown
    assert all("r2d2" in text and "harmbench" in text and "[redacted, " in text for text in shown)
    choose(seen, "answers-suite", "")
    choose(seen, "answers-arm", "")
    seen.page.fill("#answers-text", "gnp.exe")
    assert seen.page.locator("#answers-list li").count() > 0
    assert "\\u202egnp.exe" in seen.page.inner_text("#answers-list li >> nth=0")


def test_it_prints(run: Path, seen: Seen) -> None:
    pdf = seen.page.pdf(format="A4")
    assert pdf.startswith(b"%PDF-")
    assert 3 <= pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") <= 60


def test_on_paper_nothing_is_wider_than_the_page(run: Path, shown: Callable[..., Seen]) -> None:
    """703 pixels are A4 inside the margins; the browser would shrink all of a page of which one part is wider."""
    seen = shown(run / "report" / "index.html")
    seen.drawn()
    seen.page.emulate_media(media="print")
    seen.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert seen.page.evaluate("document.querySelector('main').scrollWidth") <= 703


def test_no_serious_finding_of_axe(run: Path, shown: Callable[..., Seen], axe: str) -> None:
    """The insides of drawings are left out: each is a labelled group, and its numbers stand in a table."""
    for width, theme in ((1280, "light"), (390, "dark")):
        seen = shown(run / "report" / "index.html", width, theme)
        seen.drawn()
        seen.unfold()
        seen.page.evaluate(axe)
        found = seen.page.evaluate(
            "axe.run({exclude: ['.main-svg']}, {resultTypes: ['violations']})"
            ".then((r) => r.violations.map((v) => [v.impact, v.id, v.nodes.length, v.nodes[0].html]))"
        )
        assert [one for one in found if one[0] in ("serious", "critical")] == []
