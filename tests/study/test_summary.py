"""What the terminal shows at the end of a study, and the label of a fixed-source attack with nothing to break."""

import zipfile
from pathlib import Path
from typing import Any

import pytest

from caryatid.artifacts import RunDirectory, write_json
from caryatid.models.planted import PLANTED
from caryatid.study.demo import Demo, headline, packed_run
from caryatid.study.flow import RunResult
from caryatid.study.summary import HEADLINE, summary_lines, trajectory_lines
from caryatid.study.tables.behaviour import with_notes

Row = dict[str, Any]


def rate(
    key: tuple[str, str, str], value: float | None, arm: str = "base", step: int = 0, seed: int = 0
) -> Row:
    suite, attack, metric = key
    where = {"seed": seed, "arm": arm, "step": step, "suite": suite, "attack": attack, "metric": metric}
    return {**where, "group": "", "value": value, "lo": value, "hi": value, "n": 4, "judge": "rules@1"}


def test_low_compliance_is_printed_with_refusals_of_both_xstest_halves_and_degeneracy() -> None:
    lines = list(trajectory_lines([rate(key, 0.25) for key in HEADLINE]))
    for words in ("direct compliance", "XSTest-safe", "XSTest-unsafe", "degenerate", "utility"):
        assert words in lines[0]
    assert lines[1].count("0.25 [0.25, 0.25]") == len(HEADLINE)
    assert "n at the last anchor: direct compliance 4" in lines[2]
    assert "rules@1" in lines[2]


def test_a_suite_without_a_scored_answer_is_named_unscored() -> None:
    lines = list(trajectory_lines([rate(("harmbench", "direct", "compliance"), None)]))
    assert "unscored" in lines[1]


def test_several_seeds_are_told_apart() -> None:
    rows = [rate(("utility", "none", "pass"), value, seed=seed) for seed, value in ((0, 0.5), (7, 0.75))]
    lines = list(trajectory_lines(rows))
    assert lines[0].startswith("seed")
    assert [line.split()[0] for line in lines[1:3]] == ["0", "7"]


@pytest.mark.parametrize("planted", [True, False])
def test_a_planted_refusal_is_said_of_a_study_and_of_a_packed_one(tmp_path: Path, planted: bool) -> None:
    with zipfile.ZipFile(packed_run()) as packed:
        packed.extractall(tmp_path)
    run = RunDirectory(tmp_path)
    manifest = run.manifest()
    write_json(run.manifest_path, {**manifest, "facts": {**manifest["facts"], "planted": planted}})
    page = tmp_path / "report" / "index.html"
    assert list(summary_lines(RunResult(tmp_path, page, 0, 1, 1.0))).count(PLANTED) == int(planted)
    assert list(headline(Demo(tmp_path, page, "A study."))).count(PLANTED) == int(planted)


@pytest.mark.parametrize(("direct", "noted"), [(0.9, False), (0.91, True), (float("nan"), False)])
def test_fixed_source_is_uninformative_above_a_direct_rate_of_nine_tenths(direct: float, noted: bool) -> None:
    rows = [
        rate(("harmbench", "direct", "compliance"), direct),
        rate(("harmbench", "direct", "compliance"), 0.1, arm="r2d2", step=5),
        rate(("harmbench", "fixed_source", "compliance"), 0.2, arm="r2d2", step=5),
        rate(("harmbench", "fixed_source", "compliance"), 0.2, arm="r2d2", step=5, seed=1),
    ]
    found = with_notes(rows)
    assert [bool(row.get("note")) for row in found] == [False, False, noted, False]
    assert not noted or "uninformative" in found[2]["note"]
