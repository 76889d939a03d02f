"""Texts from outside are text: in the page, on a terminal, in CSV and TeX; redacted answers are nowhere."""

import csv
import io
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hostile_texts import HOSTILE, SAFE_SECRET, SECRET, Seen
from small import table_columns

from caryatid.cli import console
from caryatid.report.files import tabular, tex
from caryatid.report.tables import read_tables, write_table
from caryatid.study.page import build_report
from caryatid.study.run import open_run
from caryatid.texts import inert, visible

ACTING = "\x1b\x07\x9b\u202e\u2066\u200f"


def planted(run: Path, folder: Path) -> Path:
    """A copy of the run whose tables hold hostile texts wherever they hold a free text."""
    shutil.copytree(run, folder)
    for name, rows in read_tables(folder).items():
        free = [
            key
            for key in ("reasons", "note", "reason", "judge", "prompt_id", "noise")
            if rows and key in rows[0]
        ]
        changed = [
            {**row, **{key: HOSTILE[number % len(HOSTILE)] for key in free if row[key]}}
            for number, row in enumerate(rows)
        ]
        write_table(folder / "tables", name, table_columns(name), changed)
    build_report(open_run(folder))
    return folder


def test_no_harmful_answer_is_anywhere_in_the_report_unless_asked(run: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(run, tmp_path / "moved")
    shutil.rmtree(moved / "report")

    def files() -> list[Path]:
        made = [
            path for name in ("report", "figures") for path in (moved / name).rglob("*") if path.is_file()
        ]
        return [*made, *(moved / "tables").iterdir()]

    build_report(open_run(moved))
    assert len(files()) > 20
    for file in files():
        assert SECRET.encode() not in file.read_bytes(), file.name
    page = (moved / "report" / "index.html").read_text()
    assert f"[redacted, {len(SECRET) + 4} characters]" in page
    assert SAFE_SECRET in page
    build_report(open_run(moved), show_answers=True)
    assert SECRET in (moved / "report" / "index.html").read_text()


def test_nothing_that_acts_is_in_the_page(run: Path, tmp_path: Path) -> None:
    html = (planted(run, tmp_path / "planted") / "report" / "index.html").read_text()
    scripts = [part.split("</script>")[0] for part in html.split("<script>")[1:]]
    rest = html
    for script in scripts:
        rest = rest.replace(script, "")
    assert len(scripts) == 5
    assert rest.count("<script") == 6  # the data's
    assert "<img" not in rest
    assert not set(ACTING) & set(rest)
    assert "1337" in rest
    assert "7 * 191" in rest  # no template was evaluated


@pytest.mark.browser
def test_no_script_from_data_runs(run: Path, tmp_path: Path, shown: Callable[..., Seen]) -> None:
    folder = planted(run, tmp_path / "planted")
    seen = shown(folder / "report" / "index.html")
    seen.drawn()
    seen.unfold()
    assert seen.page.evaluate("typeof window.hacked") == "undefined"
    assert seen.problems == []
    assert seen.requests == [seen.address]
    text = ""
    while seen.page.is_enabled("#answers-next"):
        seen.page.click("#answers-next")
        text += seen.page.inner_text("#answers-list")
    assert "<script>window.hacked" in text
    assert "\\x1b[2J" in text
    assert "\\u202egnp.exe" in text
    seen.page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {text: 'window.hacked = 2'}))"
    )
    assert (
        seen.page.evaluate("typeof window.hacked") == "undefined"
    )  # the policy stops what is not the page's own
    assert any("Content Security Policy" in problem for problem in seen.problems)


@pytest.mark.browser
def test_a_download_from_the_page_holds_no_formula(
    run: Path, tmp_path: Path, shown: Callable[..., Seen]
) -> None:
    seen = shown(run / "report" / "index.html")
    cells = seen.page.evaluate("(texts) => texts.map((text) => caryatid.csvCell(text))", list(HOSTILE))
    read = next(csv.reader(io.StringIO(",".join(cells))))
    assert read == [inert(text) for text in HOSTILE]
    assert not [cell for cell in read if cell.startswith(("=", "+", "-", "@", "\t"))]
    assert seen.page.evaluate("[caryatid.csvCell(-1.5), caryatid.csvCell(null), caryatid.csvCell(true)]") == [
        "-1.5",
        "",
        "true",
    ]


def test_csv_files_hold_no_formula_and_parquet_the_text_itself(run: Path, tmp_path: Path) -> None:
    folder = planted(run, tmp_path / "planted") / "tables"
    reasons = [row["reasons"] for row in read_tables(folder.parent)["verdict"]]
    assert set(reasons) <= set(HOSTILE)
    found = 0
    for file in folder.glob("*.csv"):
        text = file.read_text(encoding="utf-8")
        assert not set(ACTING) & set(text)
        for row in csv.DictReader(io.StringIO(text)):
            for cell in row.values():
                found += cell.startswith("'")
                assert not cell.startswith(("=", "+", "@", "\t", "\r")), file.name
                assert not cell.startswith("-") or float(cell) <= 0
    assert found


def test_tex_takes_nothing_for_a_command() -> None:
    for text in HOSTILE:
        bare = tex(text)
        words = ("backslash", "asciicircum", "asciitilde", "less", "greater")
        for command in (*(f"\\text{word}{{}}" for word in words),
                        *(f"\\{mark}" for mark in "{}$&#%_")):  # fmt: skip
            bare = bare.replace(command, "")
        assert not set("\\{}$&#%_^~<>\n") & set(bare), text
        assert not set(ACTING) & set(bare)
    lines = tabular(("a", "b"), [{"a": "x & y \\\\", "b": 0.123456}, {"a": None, "b": None}]).splitlines()
    assert lines[1] == r"\begin{tabular}{lr}"
    assert lines[5:7] == [r"x \& y \textbackslash{}\textbackslash{} & 0.123 \\", r"-- & -- \\"]


def test_a_terminal_gets_no_control(capsys: pytest.CaptureFixture[str]) -> None:
    for text in HOSTILE:
        console.announce(text)
        console.say(text)
        console.print_json({"text": text})
        console.print_table(["text"], [[text]])
    captured = capsys.readouterr()
    assert not set(ACTING) & set(captured.out + captured.err)
    assert "\\x1b[2J" in captured.out
    assert "\\x1b[2J" in captured.err


def test_json_on_a_terminal_is_still_the_text(capsys: pytest.CaptureFixture[str]) -> None:
    import json

    console.print_json(list(HOSTILE))
    assert json.loads(capsys.readouterr().out) == list(HOSTILE)


def test_what_people_write_stays() -> None:
    plain = "naïve – “quoted” 日本語 עברית\nline\ttab 😀"
    assert visible(plain) == plain
    assert visible("a\r\nb\rc\ud800") == "a\nb\\x0dc\\ud800"
    assert [inert(text) for text in ("=1", "a=1", "", "−1")] == ["'=1", "a=1", "", "−1"]
