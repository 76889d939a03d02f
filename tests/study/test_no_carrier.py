"""Anchors without a carrier through the stages, tables and report of a study; studies with too little to measure."""

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import forget, plant, small_config

from caryatid.causal.locate import Activations as Captured
from caryatid.config import StudyConfig
from caryatid.data.study_prompts import StudyPrompts
from caryatid.errors import InputError, NumericalError
from caryatid.geometry.carriers import CandidateScores
from caryatid.report.tables import read_tables
from caryatid.study.flow import run_study
from caryatid.study.series import AnchorRef
from caryatid.study.stages.activations import Activations
from caryatid.study.stages.candidates import (
    Candidates,
    ScoredCandidates,
    plain_scores,
    scores_from_plain,
)
from caryatid.study.stages.prompts import Prompts
from caryatid.study.stages.reextraction import Reextracted, Reextraction
from caryatid.study.stages.selection import Selected, Selection

CHEAP = (
    "arms=[sft, refusal_sft]",
    "attacks.fixed_source.enabled=false",
    "causal.sweeps_at=none",
    "causal.localise_at=none",
    "causal.ranks=[1]",
)
CHOSEN = ("carrier", "uncertainty", "rank", "comparison", "verdict")
USED = ("interventions", "transfer")
# Unablated refusal scores on harmful and harmless prompts, refusal rates of both, whether a candidate is admissible.
CASES: Mapping[tuple[str, int], tuple[float, float, float, float, bool]] = {
    ("base", 0): (4.0, -4.0, 1.0, 0.0, True),
    ("sft", 1): (-3.0, -3.5, 0.0, 0.0, True),
    ("sft", 2): (4.0, 3.5, 1.0, 0.75, True),
    ("refusal_sft", 1): (0.5, 0.0, 0.5, 0.25, True),
    ("refusal_sft", 2): (4.0, -4.0, 1.0, 0.0, False),
}
REASONS = {
    ("base", 0): "",
    ("sft", 1): "no refusal",
    ("sft", 2): "undiscriminating refusal",
    ("refusal_sft", 1): "gap too small",
    ("refusal_sft", 2): "no admissible carrier",
}


def changed(found: Candidates, **arrays: np.ndarray) -> Candidates:
    """The candidates with other scores."""
    return dataclasses.replace(found, scores=dataclasses.replace(found.scores, **arrays))


def refusing(found: Selected, harmful: float, harmless: float) -> Selected:
    """The answers with verdicts of which these shares are refusals."""

    def judged(rows: tuple[Any, ...], share: float) -> tuple[Any, ...]:
        refusals = round(share * len(rows))
        verdicts = ["full_refusal"] * refusals + ["full_compliance"] * (len(rows) - refusals)
        return tuple(
            dataclasses.replace(row, verdict=verdict) for row, verdict in zip(rows, verdicts, strict=True)
        )

    return Selected(judged(found.harmful, harmful), judged(found.harmless, harmless))


def plant_case(config: StudyConfig, run: Path, arm: str, step: int) -> None:
    """Give an anchor's finished stages the scores and refusal rates of its case."""
    h, s, refused, over_refused, admissible = CASES[arm, step]

    def scored(found: Candidates) -> Candidates:
        noise = np.linspace(-0.1, 0.1, len(found.scores.harmful))
        shape = found.scores.bypass.shape
        arrays = {"harmful": h + noise, "harmless": s + noise}
        arrays |= {
            "bypass": np.broadcast_to(s + noise, shape).copy(),
            "induce": np.broadcast_to(h + noise, shape).copy(),
        }
        return changed(found, **arrays, kl=np.full(shape, 0.05 if admissible else 3.0))

    ref = AnchorRef(0, arm, step)
    plant(config, run, ScoredCandidates, ref, scored)
    plant(config, run, Selection, ref, lambda found: refusing(found, refused, over_refused))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("no-carrier")


@pytest.fixture(scope="module")
def finished(place: Path) -> Path:
    return run_study(small_config(place, *CHEAP), place / "run").directory


@pytest.fixture(scope="module")
def planted(place: Path, finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("planted") / "run"
    shutil.copytree(finished, run)
    config = small_config(place, *CHEAP)
    for arm, step in CASES:
        plant_case(config, run, arm, step)
    forget(run, *CHOSEN, *USED)
    run_study(config, run)
    return run


def of_anchor(rows: list[dict[str, Any]], arm: str, step: int) -> list[dict[str, Any]]:
    return [row for row in rows if (row["arm"], row["step"]) == (arm, step)]


@pytest.mark.parametrize(("arm", "step"), CASES)
def test_each_reason_is_named_in_every_table_about_carriers(planted: Path, arm: str, step: int) -> None:
    tables, reason = read_tables(planted), REASONS[arm, step]
    summaries = of_anchor(tables["carrier_summary"], arm, step)
    assert {row["reason"] for row in summaries} == {reason}
    places = [row for row in summaries if row["noise"] == "selection prompts"]
    assert {row["p_none"] for row in places} == {1.0 if reason else 0.0}
    depths = [row for row in places if row["quantity"] in ("depth", "argmin_depth")]
    assert all((row["value"] is None) == bool(reason) for row in depths)
    candidates = of_anchor(tables["carriers"], arm, step)
    assert any(row["best"] for row in candidates) == (not reason)
    if reason in ("no refusal", "undiscriminating refusal", "gap too small"):
        assert all(row["bypass_effect"] is None and row["induce_effect"] is None for row in candidates)
    by_bypass = [row for row in of_anchor(tables["selectors"], arm, step) if row["selector"] == "bypass"]
    assert {row["reason"] for row in by_bypass} == {reason}
    assert all((row["layer"] is None) == bool(reason) for row in by_bypass)
    causal = of_anchor(tables["causal"], arm, step)
    own = [row for row in causal if row["control"] != "step-0 carrier"]
    assert {row["carrier_admissible"] for row in own} == {not reason}
    sweep = of_anchor(tables["threshold_sweep"], arm, step)
    assert all((row["depth"] is None) == bool(row["reason"]) for row in sweep)


def test_a_pair_without_a_carrier_is_undetermined_and_says_so(planted: Path) -> None:
    verdicts = read_tables(planted)["verdict"]
    assert len(verdicts) == 6
    for row in verdicts:
        assert row["label"] == "undetermined"
        assert "lack a carrier" in row["reasons"]
        first, second = (REASONS[row["arm"] if step else "base", step] for step in (row["from"], row["to"]))
        assert (f"first anchor has no carrier: {first}." in row["reasons"]) == bool(first)
        assert f"second anchor has no carrier: {second}." in row["reasons"]


def test_the_report_names_each_reason(planted: Path) -> None:
    html = (planted / "report" / "index.html").read_text()
    for (arm, step), reason in REASONS.items():
        if arm != "base":
            assert f"step {step} ({reason})" in html
    assert html.count("nothing to normalise by") == 2


def test_step_0_without_a_carrier_still_gives_every_table(place: Path, planted: Path, tmp_path: Path) -> None:
    run, config = tmp_path / "run", small_config(place, *CHEAP)
    shutil.copytree(planted, run)
    unscored = np.full((3, 4), np.nan)
    plant(config, run, ScoredCandidates, AnchorRef(0, "base", 0), lambda found: changed(found, kl=unscored))
    forget(run, *CHOSEN, *USED)
    run_study(config, run)
    tables = read_tables(run)
    assert {row["reason"] for row in of_anchor(tables["carrier_summary"], "base", 0)} == {
        "no admissible carrier"
    }
    assert {row["label"] for row in tables["verdict"]} == {"undetermined"}
    at_site = [row for row in tables["rank"] if "_bank" not in row["quantity"]]
    assert {row["site_admissible"] for row in at_site} == {False}
    in_bank = [row for row in of_anchor(tables["rank"], "base", 0) if "_bank" in row["quantity"]]
    assert {(row["value"], row["n"], row["note"]) for row in in_bank} == {
        (None, 0, "calibrated admits no candidate")
    }
    assert (run / "report" / "index.html").stat().st_size > 0


@pytest.mark.slow
def test_a_study_can_choose_its_carriers_by_cosmic(place: Path, planted: Path, tmp_path: Path) -> None:
    run, config = tmp_path / "run", small_config(place, *CHEAP, "geometry.selector=cosmic")
    shutil.copytree(planted, run)
    before = {path.name for path in (run / "stages" / "candidates").iterdir()}
    run_study(config, run)
    after = {path.name for path in (run / "stages" / "candidates").iterdir()}
    assert after == before  # scores serve both selectors
    tables = read_tables(run)
    for name in ("carriers", "carrier_summary", "carrier_places", "threshold_sweep", "verdict"):
        assert {row["selector"] for row in tables[name]} == {"cosmic"}, name
    for arm, step in CASES:
        rows = [row for row in of_anchor(tables["carriers"], arm, step) if row["profile"] == "calibrated"]
        admissible = [row for row in rows if row["admissible"]]
        assert admissible == [row for row in rows if row["kl"] <= 0.35 and row["layer"] < 3]
        best = max(admissible, key=lambda row: row["cosmic_ablated"] + row["cosmic_added"], default=None)
        expected = [] if best is None or REASONS[arm, step] else [best["layer"]]
        assert [row["layer"] for row in rows if row["best"]] == expected
        summary = of_anchor(tables["carrier_summary"], arm, step)
        assert {row["reason"] for row in summary} == {REASONS[arm, step]}
        used = [row for row in of_anchor(tables["selectors"], arm, step) if row["used"]]
        assert {row["selector"] for row in used} == {"cosmic"}
        if expected:
            causal = [
                row["layer"] for row in of_anchor(tables["causal"], arm, step) if row["control"] == "carrier"
            ]
            assert set(causal) == set(expected)
    others = {row["choice"] for row in tables["sensitivity"] if row["setting"] == "carrier selector"}
    assert others == {"bypass"}
    by_bypass = read_tables(planted)
    assert {row["selector"] for row in by_bypass["carriers"]} == {"bypass"}


@pytest.mark.parametrize("draws", [100, 101])
def test_anchors_with_and_without_resamples_are_compared(
    place: Path, planted: Path, tmp_path: Path, draws: int
) -> None:
    run, config = tmp_path / "run", small_config(place, *CHEAP, f"geometry.bootstrap_draws={draws}")
    shutil.copytree(planted, run)
    plant(config, run, Reextraction, AnchorRef(0, "sft", 1), lambda found: Reextracted(()))
    forget(run, "uncertainty", "verdict")
    run_study(config, run)
    tables = read_tables(run)
    assert {row["label"] for row in tables["verdict"] if row["arm"] == "sft"} == {"undetermined"}
    pair = [row for row in tables["shifts"] if (row["arm"], row["to"]) == ("refusal_sft", 1)]
    assert sum(row["draws"] for row in pair) == draws


def scored(layers: list[int], bypass: list[float]) -> CandidateScores:
    """Candidates at the last position with these mean bypasses, eight prompts each."""
    rng = np.random.default_rng(0)
    each = [rng.normal(size=(len(layers), 8)) for _ in range(4)]
    each[0] += np.array(bypass)[:, None] - each[0].mean(axis=1, keepdims=True)
    place = np.full(len(layers), -1), np.array(layers)
    return CandidateScores(*place, 10, rng.normal(size=8), rng.normal(size=8), *each)


def test_scores_that_are_not_finite_survive_as_json() -> None:
    scores = scored([2, 3], [-1.0, 0.5])
    broken = dataclasses.replace(scores, kl=np.where(np.arange(8) == 3, [[np.nan], [np.inf]], scores.kl))
    again = scores_from_plain(json.loads(json.dumps(plain_scores(broken), allow_nan=False)), 10)
    assert again.positions.dtype == np.int64
    for name, value in broken.arrays().items():
        np.testing.assert_array_equal(
            getattr(again, name), np.where(np.isfinite(value), value, np.nan), err_msg=name
        )


def broken_activations(found: Captured) -> Captured:
    return dataclasses.replace(found, harmful=torch.full_like(found.harmful, torch.nan))


def broken_scores(found: Candidates) -> Candidates:
    return changed(found, bypass=np.full_like(found.scores.bypass, np.nan))


@pytest.mark.parametrize(
    ("kind", "broken", "message"),
    [
        (Activations, broken_activations, "harmful activations are not finite"),
        (ScoredCandidates, broken_scores, "no finite bypass score"),
    ],
)
def test_values_that_are_not_finite_are_one_line_errors(
    place: Path, planted: Path, tmp_path: Path, kind: Any, broken: Any, message: str
) -> None:
    run, config = tmp_path / "run", small_config(place, *CHEAP)
    shutil.copytree(planted, run)
    plant(config, run, kind, AnchorRef(0, "base", 0), broken)
    forget(run, "reextraction", *CHOSEN, *USED)
    if kind is Activations:
        forget(run, "candidates")
    with pytest.raises(NumericalError, match=message) as caught:
        run_study(config, run)
    assert "\n" not in str(caught.value)


def test_fewer_extraction_prompts_than_can_be_split_stop_the_study_at_once(
    place: Path, tmp_path: Path
) -> None:
    config = small_config(place, "prompts.limits.extraction_harmful=3")
    with pytest.raises(InputError, match="at least 4 extraction prompts") as caught:
        run_study(config, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "stages" / "train").exists()


@pytest.mark.parametrize("alone", [False, True], ids=["one category", "every prompt its own category"])
def test_too_few_categories_or_prompts_for_a_rank_are_named(
    place: Path, planted: Path, tmp_path: Path, alone: bool
) -> None:
    run, config = tmp_path / "run", small_config(place, *CHEAP)
    shutil.copytree(planted, run)

    def categorised(found: StudyPrompts) -> StudyPrompts:
        stored = found.to_json()
        for number, row in enumerate(stored["sets"]["extraction_harmful"]["prompts"]):
            row["category"] = f"category {number}" if alone else "cybercrime"
        return StudyPrompts.from_json(stored)

    plant(config, run, Prompts, None, categorised)
    forget(run, *CHOSEN)
    run_study(config, run)
    tables = read_tables(run)
    ranks = [row for row in tables["rank"] if row["quantity"] == "effective_rank"]
    assert len(ranks) == len(CASES)
    for row in ranks:
        if alone:
            assert (row["value"], row["n"]) == (None, 0)
            assert row["note"] == "16 categories with a single prompt left out"
        else:
            assert row["value"] == pytest.approx(1)
            assert row["n"] == 1
            assert row["note"] == "a single category: 1 whatever the model"
    assert {row["rank_change"] for row in tables["verdict"]} == {"none"}
    spread = [row for row in tables["drift"] if row["quantity"] == "participation_ratio_difference"]
    assert {(row["value"], row["note"]) for row in spread} == {
        (None, "fewer than two categories with two prompts")
    }
    angles = {row["quantity"]: row["unit"] for row in tables["drift"] if row["value"] is not None}
    assert angles["subspace_max"] == angles["excess_angle"] == "degrees"
    assert angles["subspace_grassmann"] == "radians"
