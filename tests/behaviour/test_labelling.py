"""Sheets for people to label: blind, stratified, mapped back; and what the labels say."""

import csv
import dataclasses
import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from caryatid.artifacts import FORMAT_VERSION
from caryatid.behaviour.answers import AnswerRow
from caryatid.behaviour.files import write_answers
from caryatid.behaviour.judges.agreement import agreement
from caryatid.behaviour.judges.rules import RefusalRules
from caryatid.behaviour.label_sheets import (
    TABLE_COLUMNS,
    draw_sample,
    run_answers,
    stratified,
    write_label_table,
)
from caryatid.behaviour.labelling import LEAST_LABELS, score_labels
from caryatid.cli import run as caryatid
from caryatid.errors import DataMissingError, InputError
from caryatid.stats import wilson

ROOT = Path(__file__).parents[2]
STOCK_REFUSALS = (
    "Sorry, I can't do that.",
    "I'm sorry, I can't do that.",
    "I'm sorry, but I can't assist with that.",
)

REFUSAL = "I'm sorry, but I can't help with that."
ANSWERS = ("Paris is the capital.", REFUSAL, "=SUM(A1) is a formula.", "Ends <|im_end|>\x1b[0m here.")
ANCHORS = (("base", 0), ("sft", 4), ("r2d2", 4))


def _row(number: int, text: str, suite: str = "xstest_safe") -> AnswerRow:
    return AnswerRow(
        prompt_id=f"p{number}",
        set_name="s",
        suite=suite,
        attack="none",
        label="harmless",
        kind=None,
        category=None,
        prompt=f"Question {number}?",
        context=None,
        user_text=f"Question {number}?",
        text=text,
        n_tokens=8,
        ended=True,
        verdict=RefusalRules().verdict(text),
        judge="refusal-rules@5",
        degenerate=None,
    )


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run with 60 answers at each of three anchors, and some of another suite."""
    path = tmp_path / "run"
    rows, where = [], []
    for arm, step in ANCHORS:
        for number in range(70):
            suite = "xstest_safe" if number < 60 else "utility"
            rows.append(_row(number, ANSWERS[number % 4], suite))
            where.append({"arm": arm, "step": step, "seed": 0})
    write_answers(path / "answers", rows, where)
    (path / "manifest.json").write_text(json.dumps({"format_version": FORMAT_VERSION}))
    return path


def _sheet(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def _fill(path: Path, label: dict[str, str]) -> None:
    rows = _sheet(path)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, "label": label.get(row["id"], "")} for row in rows)


def _truth(row: dict[str, str]) -> str:
    return "full_refusal" if "sorry" in row["answer"] else "full_compliance"


def test_strata_and_their_parts_are_drawn_equally_and_small_ones_whole() -> None:
    strata = [("a", "x")] * 80 + [("a", "y")] * 10 + [("a", "z")] * 2 + [("b", "x")] * 50 + [("c", "x")] * 3
    drawn = stratified(strata, 43, np.random.default_rng(0))
    assert len(set(drawn)) == 43
    assert Counter(strata[i][0] for i in drawn) == {"a": 20, "b": 20, "c": 3}
    assert Counter(strata[i][1] for i in drawn if strata[i][0] == "a") == {"x": 9, "y": 9, "z": 2}
    assert sorted(stratified(strata, 1000, np.random.default_rng(0))) == list(range(len(strata)))


def test_a_sheet_is_blind_and_its_key_stays_in_the_run(run_dir: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.csv"
    count, key = draw_sample(run_dir, sheet, size=90, seed=3, suites=["xstest_safe"])
    rows = _sheet(sheet)
    assert (count, len(rows), key.parent) == (90, 90, run_dir / "labels")
    assert list(rows[0]) == ["id", "prompt", "context", "answer", "label"]
    text = sheet.read_text(encoding="utf-8")
    assert not any(word in text for word in ("r2d2", "sft", "refusal-rules", "full_compliance", "<|", "\x1b"))
    assert not any(row["answer"].startswith("=") for row in rows)
    stored = json.loads(key.read_text())["key"]
    assert Counter(tuple(stored[row["id"]]["answer"][1:3]) for row in rows) == dict.fromkeys(ANCHORS, 30)
    assert len({row["id"] for row in rows}) == 90
    again = draw_sample(run_dir, tmp_path / "again.csv", size=90, seed=3, suites=["xstest_safe"])
    assert (tmp_path / "again.csv").read_bytes() == sheet.read_bytes()
    assert again[1] == key


def test_labels_are_mapped_back_and_scored(run_dir: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.csv"
    draw_sample(run_dir, sheet, size=150, seed=0, suites=["xstest_safe"])
    labels = {row["id"]: _truth(row) for row in _sheet(sheet)}
    refused = [name for name, label in labels.items() if label == "full_refusal"]
    wrong = refused[:3]
    _fill(sheet, {**labels, **dict.fromkeys(wrong, "full_compliance")})
    found = score_labels(run_dir, sheet)
    assert (found.judge, found.metric, found.labelled, found.unlabelled) == (
        "refusal-rules@5",
        "any_refusal",
        150,
        0,
    )
    assert found.agreement.accuracy.value == pytest.approx(147 / 150)
    assert found.agreement.sensitivity.value == 1.0
    specificity = 1 - 3 / (150 - len(refused) + 3)
    assert found.agreement.specificity.value == pytest.approx(specificity)
    assert found.three_way.value == pytest.approx(147 / 150)
    assert {(rate.arm, rate.step, rate.suite) for rate in found.rates} == {
        (*a, "xstest_safe") for a in ANCHORS
    }
    for rate in found.rates:
        assert rate.judged.value == pytest.approx(15 / 60)
        assert rate.corrected.value == pytest.approx((0.25 + specificity - 1) / specificity)
        assert rate.corrected.lo < 0.25 < rate.corrected.hi
        assert rate.errors_of == ""  # 50 labels an arm are too few for its own


def test_labels_are_published_without_texts(run_dir: Path, tmp_path: Path) -> None:
    sheet, table = tmp_path / "sheet.csv", tmp_path / "table.csv"
    draw_sample(run_dir, sheet, size=30, seed=0)
    rows = _sheet(sheet)
    _fill(sheet, {row["id"]: _truth(row) for row in rows[1:]})
    assert caryatid(["judge", "score", str(run_dir), str(sheet), "--table", str(table)]) == 0
    answers = {tuple(map(str, one.address)): one.row for one in run_answers(run_dir)}
    published = _sheet(table)
    assert [row["label"] for row in published] == [_truth(row) for row in rows[1:]]
    for row in published:
        answer = answers[tuple(list(row.values())[:7])]
        assert row["answer_sha256"] == hashlib.sha256(answer.text.encode()).hexdigest()
        assert (row["verdict"], row["judge"]) == (answer.verdict, answer.judge)
    assert not any(text in table.read_text() for text in ("Question", "Paris", "sorry", "SUM", "Ends"))


def test_labels_of_harm_are_published_with_verdicts_in_words(run_dir: Path, tmp_path: Path) -> None:
    judged = [
        dataclasses.replace(
            row, harmful=None if "Ends" in row.text else int("SUM" in row.text), harm_judge="j@1"
        )
        for _, row in run_answers(run_dir)
    ]
    where = [dict(zip(("seed", "arm", "step"), place, strict=True)) for place, _ in run_answers(run_dir)]
    write_answers(run_dir / "answers", judged, where)
    sheet, table = tmp_path / "sheet.csv", tmp_path / "table.csv"
    draw_sample(run_dir, sheet, size=210, seed=0)
    _fill(sheet, {row["id"]: "harmless" for row in _sheet(sheet)})
    assert write_label_table(run_dir, sheet, table) == 210
    answers = {tuple(map(str, one.address)): one.row for one in run_answers(run_dir)}
    words = {None: "", 0: "harmless", 1: "harmful"}
    published = _sheet(table)
    assert {row["verdict"] for row in published} == set(words.values())
    for row in published:
        assert row["verdict"] == words[answers[tuple(list(row.values())[:7])].harmful]
        assert (row["label"], row["judge"]) == ("harmless", "j@1")


def test_the_published_agreement_follows_from_the_published_labels() -> None:
    """The rows about the GPU study in docs/judges.md, computed anew from the committed table of labels."""
    rows = _sheet(ROOT / "benchmarks/results/judge-labels-qwen-0.5b.csv")
    assert tuple(rows[0]) == TABLE_COLUMNS  # where an answer stands, its hash, label and verdict: no texts
    assert len({tuple(row.values())[:7] for row in rows}) == len(rows) == 120
    classes = ("full_compliance", "partial_refusal", "full_refusal")
    found = agreement(
        [row["verdict"] != classes[0] for row in rows],
        [row["label"] != classes[0] for row in rows],
        [row["prompt_id"] for row in rows],
        rng=np.random.default_rng(0),
    )
    three = wilson(sum(row["verdict"] == row["label"] for row in rows), len(rows))
    shown = " | ".join(
        f"{one.value:.3f} ({one.lo:.3f}–{one.hi:.3f})"
        for one in (found.accuracy, found.sensitivity, found.specificity, found.kappa, three)
    )
    page = (ROOT / "docs/judges.md").read_text(encoding="utf-8")
    assert f"| refusal-rules@5 | 120 | {shown} |" in page
    cells = Counter((row["label"], row["verdict"]) for row in rows)
    for label in classes:
        counts = " | ".join(str(cells[label, verdict]) for verdict in classes)
        assert f"| {label.replace('_', ' ')} | {counts} |" in page
    stock = {hashlib.sha256(text.encode()).hexdigest() for text in STOCK_REFUSALS}
    other = [row for row in rows if row["answer_sha256"] not in stock]
    same = wilson(sum((r["verdict"] == classes[0]) == (r["label"] == classes[0]) for r in other), len(other))
    words = " ".join(page.split())
    assert f"{120 - same.n} of the 42 full refusals are one of three stock sentences" in words
    shown = f"{round(same.value * same.n)} of {same.n}, {same.value:.3f} ({same.lo:.3f}–{same.hi:.3f})"
    assert f"it is {shown}" in words


def test_an_arm_with_labels_enough_is_corrected_by_its_own_errors(run_dir: Path, tmp_path: Path) -> None:
    """People find that 24 of r2d2's 45 sampled answers without refusing words refuse, and no error elsewhere."""
    sheet = tmp_path / "sheet.csv"
    draw_sample(run_dir, sheet, size=180, seed=0, suites=["xstest_safe"])
    (key,) = (run_dir / "labels").iterdir()
    arms = {name: one["answer"][1] for name, one in json.loads(key.read_text())["key"].items()}
    labels = {row["id"]: _truth(row) for row in _sheet(sheet)}
    missed = [n for n, label in labels.items() if arms[n] == "r2d2" and label == "full_compliance"][:24]
    _fill(sheet, {**labels, **dict.fromkeys(missed, "full_refusal")})
    found = score_labels(run_dir, sheet)
    by_anchor = {(one.arm, one.step): one.agreement for one in found.by_anchor}
    assert list(by_anchor) == [
        ("base", None),
        ("base", 0),
        ("r2d2", None),
        ("r2d2", 4),
        ("sft", None),
        ("sft", 4),
    ]
    assert by_anchor["r2d2", 4].sensitivity.value == pytest.approx(15 / (15 + 24))
    assert by_anchor["sft", None].sensitivity.value == 1
    assert {rate.errors_of for rate in found.rates} == {"base", "r2d2", "sft"}
    rates = {rate.arm: rate for rate in found.rates}
    assert rates["r2d2"].corrected.value == pytest.approx(0.25 * 39 / 15)
    assert rates["base"].corrected.value == pytest.approx(0.25)
    erred = {one.arm: one.found for one in found.differences}
    assert erred["r2d2"].judged.value == 0
    assert erred["r2d2"].corrected.value == pytest.approx(0.65 - 0.25)
    assert erred["sft"].corrected.value == pytest.approx(0)
    assert erred["sft"].survives


def test_a_sheet_of_one_anchor(run_dir: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.csv"
    _, key = draw_sample(run_dir, sheet, size=30, seed=0, arms=["sft"], steps=[4])
    stored = json.loads(key.read_text())["key"].values()
    assert {tuple(one["answer"][1:3]) for one in stored} == {("sft", 4)}
    with pytest.raises(InputError, match=r"no answers to draw 5 from.*anchors: base@0, r2d2@4, sft@4"):
        draw_sample(run_dir, sheet, size=5, seed=0, arms=["sft"], steps=[5])


def test_few_labels_correct_no_rate(run_dir: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.csv"
    draw_sample(run_dir, sheet, size=150, seed=0)
    rows = _sheet(sheet)
    _fill(sheet, {row["id"]: _truth(row) for row in rows[: LEAST_LABELS - 1]})
    found = score_labels(run_dir, sheet)
    assert (found.labelled, found.unlabelled) == (LEAST_LABELS - 1, 31)
    assert all(np.isnan(rate.corrected.value) for rate in found.rates)
    assert {rate.suite for rate in found.rates} == {"xstest_safe", "utility"}


def test_labels_of_harm(run_dir: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.csv"
    draw_sample(run_dir, sheet, size=20, seed=0)
    _fill(sheet, {row["id"]: "harmless" for row in _sheet(sheet)})
    with pytest.raises(InputError, match="no harmfulness judge ran"):
        score_labels(run_dir, sheet)
    judged = [
        dataclasses.replace(row, harmful=int("formula" in row.text), harm_score=0.5, harm_judge="j@1")
        for _, row in run_answers(run_dir)
    ]
    where = [dict(zip(("seed", "arm", "step"), place, strict=True)) for place, _ in run_answers(run_dir)]
    write_answers(run_dir / "answers", judged, where)
    found = score_labels(run_dir, sheet)
    assert (found.judge, found.metric, found.agreement.sensitivity.n) == ("j@1", "harm", 0)
    assert np.isnan(found.three_way.value)


def test_unusable_sheets(run_dir: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.csv"
    draw_sample(run_dir, sheet, size=20, seed=0)
    rows = _sheet(sheet)
    with pytest.raises(InputError, match="no labels"):
        score_labels(run_dir, sheet)
    _fill(sheet, {rows[0]["id"]: "refused"})
    with pytest.raises(InputError, match="label 'refused' of"):
        score_labels(run_dir, sheet)
    _fill(sheet, {rows[0]["id"]: "harmful", rows[1]["id"]: "full_refusal"})
    with pytest.raises(InputError, match="one question"):
        score_labels(run_dir, sheet)
    sheet.write_text("id,label\nffffffff-0001,full_refusal\n")
    with pytest.raises(InputError, match="no sheet of this run"):
        score_labels(run_dir, sheet)
    sheet.write_text("prompt\nx\n")
    with pytest.raises(InputError, match="no columns"):
        score_labels(run_dir, sheet)
    with pytest.raises(InputError, match=r"no answers to draw.*utility, xstest_safe"):
        draw_sample(run_dir, sheet, size=5, seed=0, suites=["harmbench"])
    with pytest.raises(DataMissingError, match="no judged answers"):
        draw_sample(tmp_path, sheet, size=5, seed=0)


def test_a_run_that_changed_since(run_dir: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.csv"
    draw_sample(run_dir, sheet, size=20, seed=0)
    _fill(sheet, {row["id"]: _truth(row) for row in _sheet(sheet)})
    rows = [(place, dataclasses.replace(row, text=f"{row.text}!")) for place, row in run_answers(run_dir)]
    where = [dict(zip(("seed", "arm", "step"), place, strict=True)) for place, _ in rows]
    write_answers(run_dir / "answers", [row for _, row in rows], where)
    with pytest.raises(InputError, match="the run has changed since"):
        score_labels(run_dir, sheet)


def test_both_commands(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = str(tmp_path / "sheet.csv")
    assert caryatid(["judge", "sample", str(run_dir), "-o", sheet, "-n", "130", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["answers"] == 130
    _fill(Path(sheet), {row["id"]: _truth(row) for row in _sheet(Path(sheet))})
    assert caryatid(["judge", "score", str(run_dir), sheet, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["agreement"]["accuracy"]["value"] == 1.0
    assert len(found["rates"]) == 6
    assert caryatid(["judge", "score", str(run_dir), sheet]) == 0
    printed = capsys.readouterr().out
    assert "kappa" in printed
    assert "survives" in printed
    assert caryatid(["judge", "score", str(tmp_path), sheet]) == 2
