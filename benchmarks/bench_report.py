"""Size of the report's page, and time to its first paint, for a study of few and of many anchors.

    python benchmarks/bench_report.py [--chromium PATH]

Tables are synthetic: those of the packed study, each anchor's rows repeated at further steps and seeds with jittered
numbers, so that they compress no better than real ones. Answers are as long and as many as that study's.
"""

import argparse
import json
import random
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from caryatid.report.captions import Basis, drawn_figures
from caryatid.report.page import Content, page_html
from caryatid.study import page as study_page
from caryatid.study.demo import unpack
from caryatid.study.run import open_run

Row = dict[str, Any]
SIZES = ((5, 1), (40, 3))  # anchors of all arms together, seeds
STEP = 50


def content_of(run_path: Path) -> Content:
    """What the packed study's page is made of."""
    kept: list[Content] = []
    write = study_page.write_page

    def keep(folder: Path, content: Content) -> Path:
        kept.append(content)
        return folder

    study_page.write_page = keep
    try:
        study_page.build_report(open_run(run_path))
    finally:
        study_page.write_page = write
    return kept[0]


def grown(rows: list[Row], steps: int, seeds: int, rng: random.Random) -> list[Row]:
    """Rows of the first anchor that is not step 0, at `steps` steps of every arm and in every seed."""
    key = "step" if rows and "step" in rows[0] else "to"
    if not rows or key not in rows[0]:
        return rows
    first = [row for row in rows if row[key] == STEP]
    made = []
    for seed in range(seeds):
        made += [{**row, "seed": seed} for row in rows if row[key] == 0]
        for place in range(1, steps + 1):
            for row in first:
                moved = {**row, "seed": seed, key: STEP * place}
                if "from" in row:
                    moved["from"] = STEP * (place - 1)
                floats = {k: v * rng.uniform(0.8, 1.0) for k, v in moved.items() if isinstance(v, float)}
                made.append({**moved, **floats})
    return made


def synthetic(content: Content, anchors: int, seeds: int) -> Content:
    """The packed study's content with this many anchors and seeds."""
    rng = random.Random(0)
    arms = 3
    steps = -(-(anchors - 1) // arms)
    tables = {
        name: grown([dict(row) for row in rows], steps, seeds, rng) for name, rows in content.tables.items()
    }
    basis = Basis({}, content.settings, seeds > 1)
    figures = {seed: list(drawn_figures(tables, basis, seed)) for seed in range(seeds)}
    answers = [
        {**row, "seed": seed, "step": STEP * place, "answer": f"{row['answer']} {rng.random()}"}
        for seed in range(seeds)
        for place in range(1, steps + 1)
        for row in content.answers
        if row["step"] == STEP
    ]
    room, kept = study_page.ANSWERS_TEXT, []
    for row in answers:
        room -= len(row["answer"]) + study_page.ROW
        if room > 0:
            kept.append(row)
    return replace(content, tables=tables, figures=figures, answers=tuple(kept), answered=len(answers))


def first_paint(file: Path, chromium: str) -> dict[str, float]:
    """Seconds to the first paint and until every chart is drawn, in a headless browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        started = time.monotonic()
        page.goto(file.as_uri())
        page.wait_for_selector("html[data-drawn='yes']", state="attached", timeout=300_000)
        drawn = time.monotonic() - started
        paint = page.evaluate("performance.getEntriesByType('paint')[0].startTime") / 1000
        browser.close()
    return {"first_paint": round(paint, 2), "all_drawn": round(drawn, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chromium", help="measure the first paint with this browser")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        content = content_of(unpack(Path(place) / "demo").directory)
        for anchors, seeds in SIZES:
            started = time.monotonic()
            html = page_html(synthetic(content, anchors, seeds))
            found: dict[str, Any] = {
                "anchors": anchors,
                "seeds": seeds,
                "megabytes": round(len(html.encode()) / 1e6, 2),
            }
            left_out = html.partition("Too long for this page: ")[2].partition(".")[0] or "nothing"
            found["left_out"] = left_out if len(left_out) < 200 else "nothing"
            found["seconds_to_make"] = round(time.monotonic() - started, 1)
            file = Path(place) / "page.html"
            file.write_text(html, encoding="utf-8")
            if options.chromium:
                found |= first_paint(file, options.chromium)
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
