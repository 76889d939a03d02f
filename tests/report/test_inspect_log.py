"""The answers as logs of Inspect: read back, counted, redacted."""

import importlib.util
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from hostile_texts import SECRET

from caryatid.cli import run as command
from caryatid.models.planted import PLANTED
from caryatid.study.inspect_log import metadata_of, scores_of
from caryatid.study.run import open_run
from caryatid.study.series import all_anchors
from caryatid.study.stages.answers import Answers

INSPECT = importlib.util.find_spec("inspect_ai") is not None
needs_inspect = pytest.mark.skipif(not INSPECT, reason="inspect_ai (extra `inspect`) is not installed")


@needs_inspect
def test_counts_in_the_logs_are_those_of_the_answers(run: Path, tmp_path: Path) -> None:
    from inspect_ai.analysis import evals_df, samples_df
    from inspect_ai.log import read_eval_log

    assert command(["export", "inspect", str(run), "--out", str(tmp_path)]) == 0
    logs = [read_eval_log(str(file)) for file in sorted(tmp_path.glob("*.eval"))]
    here = open_run(run)
    rows = [row for ref in all_anchors(here.config) for row in here.of(Answers, ref).rows]
    samples = [sample for log in logs for sample in log.samples]
    assert len(samples) == len(rows)
    for name in ("refused", "answered", "degenerate", "passed"):
        wanted = Counter(scores_of(row).get(name) for row in rows)
        assert Counter(s.scores[name].value if name in s.scores else None for s in samples) == wanted
    samples_table = samples_df(str(tmp_path), quiet=True)
    assert len(samples_table) == len(rows)
    assert int(samples_table["score_refused"].sum()) == sum(row.scored and row.refused for row in rows)
    assert len(evals_df(str(tmp_path), quiet=True)) == len(logs)
    for log in logs:
        assert log.status == "success"
        for score in log.results.scores:
            values = [s.scores[score.name].value for s in log.samples if score.name in s.scores]
            assert score.metrics["mean"].value == pytest.approx(sum(values) / len(values))
    said = [sample.output.completion for sample in samples]
    assert not [text for text in said if SECRET in text]
    assert any(text.startswith("[redacted, ") for text in said)
    assert command(["export", "inspect", str(run), "--out", str(tmp_path), "--show-answers"]) == 0
    shown = [read_eval_log(str(file)) for file in sorted(tmp_path.glob("*.eval"))]
    assert any(SECRET in sample.output.completion for log in shown for sample in log.samples)


@pytest.mark.skipif(INSPECT, reason="inspect_ai is installed")
def test_without_inspect_the_remedy_is_named(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(["export", "inspect", str(run), "--out", str(tmp_path / "logs")]) == 3
    assert "pip install 'caryatid[inspect]'" in capsys.readouterr().err
    assert not (tmp_path / "logs").exists()


def test_every_table_is_a_data_frame(run: Path) -> None:
    here = open_run(run)
    frames = here.to_pandas()
    assert set(frames) == {file.stem for file in (run / "tables").glob("*.parquet")}
    pd.testing.assert_frame_equal(frames["verdict"], here.table("verdict"))


def test_a_log_names_a_planted_backbone(run: Path) -> None:
    here = open_run(run)
    ref = all_anchors(here.config)[0]
    row = here.of(Answers, ref).rows[0]
    plain = metadata_of(here.study.facts, ref, row)
    planted = metadata_of(replace(here.study.facts, planted=True), ref, row)
    assert planted == {**plain, "note": PLANTED}
    assert plain["suite"] == row.suite
