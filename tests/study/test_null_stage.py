"""The nulls of a study: an anchor against itself with other prompts, and the same anchor of two seeds."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small import forget, plant, small_config

from caryatid.cli import run as cli
from caryatid.config import StudyConfig, load_config
from caryatid.errors import InputError
from caryatid.report.tables import read_tables
from caryatid.study.decision import LABELS, decide
from caryatid.study.flow import RunResult, run_study
from caryatid.study.plan import build_plan
from caryatid.study.run import Run, open_run
from caryatid.study.runner import planned
from caryatid.study.series import AnchorRef
from caryatid.study.stages.answers import Answered, Answers
from caryatid.study.stages.null import Null
from caryatid.study.stages.regime import Regime
from caryatid.study.stages.transfer import Transfer

SETTINGS = (
    "seeds=[0,1]",
    "arms=[sft]",
    "anchors=[0,1]",
    "attacks.fixed_source.enabled=false",
    "causal.sweeps_at=none",
    "causal.localise_at=none",
    "causal.ranks=[1]",
    "nulls.redraws=2",
    "geometry.profile=auto",
    "prompts.limits.harmbench=12",
    "causal.transfer_prompts=8",
    "behaviour.suites=[harmbench]",
    "causal.generated_controls=0",
    "causal.controls_at=key",
)
BASE, LATER = AnchorRef(0, "base", 0), AnchorRef(1, "sft", 1)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> StudyConfig:
    return small_config(tmp_path_factory.mktemp("nulls"), *SETTINGS)


@pytest.fixture(scope="module")
def run(config: StudyConfig, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A study whose step 0 of seed 0 and last anchor of seed 1 refuse every request: a random model refuses none."""
    out = tmp_path_factory.mktemp("nulls") / "run"
    run_study(config, out)

    def refusing(found: Answered) -> Answered:
        return replace(found, rows=tuple(replace(row, verdict="full_refusal") for row in found.rows))

    for ref in (BASE, LATER):
        plant(config, out, Answers, ref, refusing)
    forget(out, "null", "regime", "transfer", "verdict")
    run_study(config, out)
    return open_run(out)


def test_every_redraw_goes_through_the_same_decision(config: StudyConfig, run: Run) -> None:
    found = run.of(Null, BASE).redraws
    assert len(found) == 2
    for each in found:
        assert (each.label, each.reasons) == (lambda v: (v.label, v.reasons))(
            decide(each.evidence, config.verdict)
        )
        assert each.evidence.places.resamples == config.geometry.reextraction_resamples
        assert each.evidence.other_profile is not None
    one, two = (each.evidence.cosine.value for each in found)
    assert one != two  # other halves


def test_halves_are_other_prompts_so_that_the_angle_is_not_that_of_one_set_with_itself(run: Run) -> None:
    """With the same prompts twice the corrected cosine is 1 to rounding; with disjoint ones it is not."""
    for each in run.of(Null, BASE).redraws:
        value = each.evidence.cosine.value
        assert np.isnan(value) or abs(value - 1) > 1e-4


def test_transfer_is_measured_on_refusals_of_the_second_half_alone(run: Run) -> None:
    assert sum(run.of(Transfer, BASE).refused) == 8
    for each in run.of(Null, BASE).redraws:
        assert each.evidence.transfer is not None
        assert (each.evidence.transfer.subspaces, each.evidence.transfer.refusals) == (8, 4)


def test_two_seeds_of_a_recipe_are_compared_as_if_they_were_a_pair(config: StudyConfig, run: Run) -> None:
    (pair,) = run.of(Regime, LATER).pairs
    assert pair.seed == 0
    assert pair.label == decide(pair.evidence, config.verdict).label
    assert pair.evidence.transfer is not None
    assert (pair.evidence.transfer.refusals, pair.evidence.transfer.subspaces) == (8, 8)
    own = run.of(Transfer, LATER).refused_under["sft@1#1"]
    assert pair.evidence.transfer.own == pytest.approx(1 - np.mean(own))


def test_the_table_counts_every_label(run: Run) -> None:
    rows = read_tables(run.path)["nulls"]
    same = [row for row in rows if row["kind"] == "same_checkpoint"]
    found = Counter({row["label"]: row["count"] for row in same if row["seed"] == 0})
    assert found == Counter(
        dict.fromkeys(LABELS, 0) | dict(Counter(e.label for e in run.of(Null, BASE).redraws))
    )
    assert {(row["seed"], row["arm"], row["step"]) for row in same} == {(0, "base", 0), (1, "base", 0)}
    (regime,) = [row for row in rows if row["kind"] == "same_regime"]
    assert (regime["seed"], regime["other_seed"], regime["arm"], regime["step"]) == (1, 0, "sft", 1)


def test_places_follow_the_settings(run: Run) -> None:
    def places(**nulls: object) -> list[str]:
        changed = run.config.model_copy(update={"nulls": run.config.nulls.model_copy(update=nulls)})
        plan = build_plan(replace(run.study, config=changed))
        return [stage.id for stage in plan.of(Null)]

    assert places(redraws=0) == []
    assert places(redraws=3) == ["null/base@0/seed0", "null/base@0/seed1"]
    assert set(places(redraws=3, at="last")) == {
        f"null/{at}/seed{seed}" for at in ("base@0", "sft@1") for seed in (0, 1)
    }


def test_studies_have_none_unless_they_are_asked_for() -> None:
    assert load_config(preset="smollm2-gpu").nulls.redraws == 0


def test_too_few_prompts_for_halves_are_one_line(tmp_path: Path) -> None:
    config = small_config(tmp_path, *SETTINGS, "seeds=[0]", "prompts.limits.extraction_harmless=4")
    assert planned(config)
    with pytest.raises(InputError, match="half of the extraction prompts has 2 of 4"):
        run_study(config, tmp_path / "run")


def test_the_command_asks_for_ten_redraws_and_keeps_a_number_that_was_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def instead(config: StudyConfig, out: Path, **_options: object) -> RunResult:
        asked.append(config.nulls.redraws)
        return RunResult(out, out / "index.html", 0, 0, 0.0)

    monkeypatch.setattr("caryatid.study.flow.run_study", instead)
    monkeypatch.setattr("caryatid.study.run.open_run", lambda out: out)
    monkeypatch.setattr("caryatid.study.page.write_figures", lambda run: 0)
    for options in ([], ["--null"], ["--null", "--set", "nulls.redraws=3"]):
        assert cli(["study", "run", "--preset", "quick", "--out", str(tmp_path), "--json", *options]) == 0
    assert asked == [0, 10, 3]


def test_the_plan_says_what_is_in_reach(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_config(tmp_path)
    assert cli(["study", "plan", "--config", str(tmp_path / "small.yaml"), "--refusal-rate", "0.75"]) == 0
    printed = capsys.readouterr().out
    assert "refuses 75% of 4 requests (assumed)" in printed
    assert "r2d2 0 → 2: No label can be reached: 2 re-extraction resamples" in printed
