"""The study that ships: what is packed, what is left out, and that the copy answers as the run did."""

import json
import re
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from caryatid.artifacts import RunDirectory
from caryatid.cli import run as command
from caryatid.data.prompts import Prompt
from caryatid.errors import UsageError
from caryatid.report.tables import read_tables
from caryatid.study import demo
from caryatid.study.demo import headline, next_steps, pack, packed_run, unpack
from caryatid.study.page import HARMFUL_SUITES, build_report
from caryatid.study.run import open_run
from caryatid.study.series import AnchorRef
from caryatid.study.stages.answers import Answers
from caryatid.study.stages.prompts import Prompts
from caryatid.study.stages.verdict import Verdicts
from caryatid.study.status import LEFT_OUT, PACKED, study_status

LAST = AnchorRef(0, "r2d2", 2)


@pytest.fixture(scope="module")
def archive(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demo") / "run.zip"
    assert pack(finished, path, "A tiny study.") == path.stat().st_size
    return path


def test_the_copy_has_tables_verdicts_carriers_and_the_same_page(
    finished: Path, archive: Path, tmp_path: Path
) -> None:
    copied = unpack(tmp_path / "copy", archive)
    run, here = open_run(finished), open_run(copied.directory)
    assert read_tables(copied.directory) == read_tables(finished)
    for pair in Verdicts.places(run.study):
        of = (pair.b.arm, pair.a.step, pair.b.step)
        assert here.verdict(*of, angle=15) == run.verdict(*of, angle=15)
    assert here.carrier("r2d2", 2).direction.equal(run.carrier("r2d2", 2).direction)
    note = run.study.facts.prompts_note
    page, spec = build_report(run).read_text(), run.config.model.spec
    assert spec in page
    page = page.replace(note, note.partition(" (")[0]).replace(spec, Path(spec).name)
    assert copied.report.read_text() == page
    assert "[redacted, " in page


def test_harmful_answers_weights_and_places_of_this_machine_stay_out(finished: Path, archive: Path) -> None:
    said = {
        row.text
        for row in open_run(finished).of(Answers, LAST).rows
        if row.suite in HARMFUL_SUITES and len(row.text) > 3
    }
    assert said
    with zipfile.ZipFile(archive) as packed:
        names = packed.namelist()
        answers = [json.loads(packed.read(name)) for name in names if "stages/answers" in name]
    texts = [row["text"] for one in answers if "rows" in one for row in one["rows"]]
    assert len(texts) > len(said)
    assert not said & set(texts)
    kinds = {name.split("/")[1] for name in names if name.startswith("stages/")}
    assert kinds == {"prompts", "answers", "carrier", "verdict"}


def test_prompts_of_benchmarks_stay_out_and_own_ones_stay(finished: Path) -> None:
    prompts = open_run(finished).of(Prompts)
    theirs = replace(
        prompts.harmbench.prompts[0], set_name="harmbench_test", context="A book says so.", targets=("Sure",)
    )
    changed = replace(
        prompts, harmbench=replace(prompts.harmbench, prompts=(theirs, *prompts.harmbench.prompts[1:]))
    )
    blanked = demo._blanked(changed)
    first, *rest = blanked.harmbench.prompts
    assert (first.text, first.targets) == (demo.BLANK * len(theirs.text), ())
    assert first.context == demo.BLANK * len("A book says so.")
    assert (first.id, first.category, first.label) == (theirs.id, theirs.category, theirs.label)
    assert rest == list(prompts.harmbench.prompts[1:])
    assert blanked.utility == prompts.utility
    row = replace(open_run(finished).of(Answers, LAST).rows[0], set_name="harmbench_test", context=None)
    blank = demo._blanked_answer(row)
    assert (blank.prompt, blank.user_text) == (demo.BLANK * len(row.prompt), demo.BLANK * len(row.user_text))
    assert (blank.context, blank.verdict) == (None, row.verdict)


def test_the_same_run_gives_the_same_archive_and_a_stopped_one_none(
    finished: Path, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(finished, tmp_path / "again.zip", "A tiny study.")
    assert (tmp_path / "again.zip").read_bytes() == archive.read_bytes()
    unpack(tmp_path / "copy", archive)
    with pytest.raises(UsageError, match="stages are not done"):
        pack(tmp_path / "copy", tmp_path / "none.zip", "")
    monkeypatch.setattr(demo, "LARGEST", 1000)
    with pytest.raises(UsageError, match="at most 1000"):
        pack(finished, tmp_path / "none.zip", "")
    assert not (tmp_path / "none.zip").exists()


def test_a_copy_stays_and_another_folder_is_not_touched(archive: Path, tmp_path: Path) -> None:
    first = unpack(tmp_path / "copy", archive)
    first.report.unlink()
    assert unpack(tmp_path / "copy", archive).report.is_file()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(UsageError, match="holds other files"):
        unpack(tmp_path / "mine", archive)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_the_headline_has_every_arm_and_three_steps_follow(archive: Path, tmp_path: Path) -> None:
    copied = unpack(tmp_path / "copy", archive)
    lines = list(headline(copied))
    assert lines[0] == "A tiny study."
    assert [line.split(",")[0] for line in lines[-2:]] == ["sft 0 → 2", "r2d2 0 → 2"]
    assert len(next_steps(copied)) == 3


def test_what_packing_left_out_is_not_missing(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = unpack(tmp_path / "copy", archive).directory
    states = {row.kind: row.state for row in study_status(copied)}
    assert (states["answers"], states["train"]) == ("done", LEFT_OUT)
    assert "missing" not in states.values()
    assert command(["study", "status", str(copied), "--watch"]) == 0  # ends by itself
    assert capsys.readouterr().out.endswith("stages: finished\n")


def test_it_says_what_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo"
    assert command(["demo", "--out", str(out), "--no-open"]) == 0
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith(f"A finished study, copied from the package to {out}; nothing was run here")
    assert second == json.loads((out / PACKED).read_text())["title"]


def test_the_packed_study_is_small_current_and_quickly_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or True)
    monkeypatch.setenv("DISPLAY", ":0")
    started = time.monotonic()
    assert command(["demo", "--out", str(tmp_path / "demo"), "--json"]) == 0
    assert time.monotonic() - started < 15
    shown = json.loads(capsys.readouterr().out)
    assert opened == [(tmp_path / "demo" / "report" / "index.html").as_uri()]
    assert len(shown["next"]) == 3
    run = open_run(tmp_path / "demo")
    for row in run.table("verdict").to_dict("records"):
        assert run.verdict(row["arm"], row["from"], row["to"], row["seed"]).label == row["label"]
    assert packed_run().stat().st_size <= 4 * 2**20
    prompts = [row for one in run.of(Prompts).sets.values() for row in one.prompts]
    for row in (*prompts, *(row for _, found in run.each(Answers) for row in found.rows)):
        text = row.text if isinstance(row, Prompt) else row.prompt + row.user_text + (row.context or "")
        assert row.set_name.startswith("embedded") or not set(text) - {demo.BLANK}, row
    assert any(set(row.text) - {demo.BLANK} for row in prompts)
    done = [entry.id for entry in run.plan if entry.folder(RunDirectory(run.path)).done()]
    assert any(name.startswith("answers/") for name in done)
    with zipfile.ZipFile(packed_run()) as packed:
        text = b"\n".join(packed.read(name) for name in packed.namelist() if not name.endswith(".parquet"))
    assert not re.search(rb"(?<![\w./:-])/(home|root|tmp|work|Users|mnt|opt)/", text)
    monkeypatch.delenv("DISPLAY")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert command(["demo", "--out", str(tmp_path / "demo")]) == 0
    assert len(opened) == 1
    assert "Try next:" in capsys.readouterr().out


def test_a_run_of_an_earlier_version_of_a_stage_is_still_read(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = unpack(tmp_path / "copy", archive)
    here = open_run(copied.directory)
    label = here.verdict("r2d2", 0, 2).label
    monkeypatch.setattr(Answers, "version", Answers.version + 1)  # every later stage's key follows
    assert open_run(copied.directory).verdict("r2d2", 0, 2).label == label
    assert build_report(open_run(copied.directory)).read_text() == copied.report.read_text()
    pair = next(place for place in Verdicts.places(here.study) if place.b == LAST)
    assert not open_run(copied.directory, recorded=False).has(Verdicts, pair)
