"""What another profile, selector, KL cut, rank or judge would have said: places, site and all, from a planted study."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import forget, plant, refused_prompts, small_config

from caryatid.causal.locate import Activations as Captured
from caryatid.causal.transfer import transfer_counts
from caryatid.config import StudyConfig
from caryatid.geometry.cosmic import CosmicProducts
from caryatid.geometry.spread import compare_spread
from caryatid.geometry.turn import corrected_angle
from caryatid.report.tables import read_tables
from caryatid.study.decision import Evidence, Places, decide
from caryatid.study.flow import run_study
from caryatid.study.run import open_run
from caryatid.study.series import AnchorRef, SeedRef
from caryatid.study.stages.activations import Activations
from caryatid.study.stages.candidates import Candidates, ScoredCandidates
from caryatid.study.stages.profile import Frozen, FrozenProfile
from caryatid.study.stages.prompts import Prompts
from caryatid.study.stages.reextraction import Reextracted, Reextraction
from caryatid.study.stages.selection import Selected, Selection
from caryatid.study.stages.transfer import Transfer

SETTINGS = (
    "arms=[sft]",
    "attacks.fixed_source.enabled=false",
    "causal.sweeps_at=none",
    "causal.localise_at=none",
    "causal.ranks=[1]",
)
RESAMPLES, PROMPTS = 50, 60
KL = {("base", 0): {1: 0.05, 2: 0.3}, ("sft", 1): {1: 0.05, 2: 0.3}, ("sft", 2): {1: 3.0, 2: 0.05}}
BYPASS = {
    1: -2.0,
    2: -4.0,
}  # of a gap from 4 to −4: both are effects above a half, and further apart than 5 %


def plant_scores(config: StudyConfig, run: Path, ref: AnchorRef) -> None:
    """Calibrated takes layer 2, published layer 1 where layer 2 costs too much KL, COSMIC layer 1."""

    def scored(found: Candidates) -> Candidates:
        old = found.scores
        assert old.cosmic is not None
        noise = np.linspace(-0.1, 0.1, len(old.harmful))
        layers = old.layers.tolist()
        # All activations are alike, but for how much ablated harmless and added harmful ones resemble each other.
        cosmic = {name: np.ones_like(value) for name, value in old.cosmic._asdict().items()}
        for row, layer in enumerate(layers):
            cosine = 1.0 - abs(layer - 1) / 4
            cosmic["ablated_harmless"][row] = cosmic["added_harmful"][row] = cosine
        scores = replace(
            old,
            harmful=4 + noise,
            harmless=-4 + noise,
            induce=np.broadcast_to(4 + noise, old.induce.shape).copy(),
            bypass=np.array([BYPASS.get(layer, 3.0) + noise for layer in layers]),
            kl=np.array([np.full(len(noise), KL[ref.arm, ref.step].get(layer, 3.0)) for layer in layers]),
            cosmic=CosmicProducts(**cosmic),
        )
        return replace(found, scores=scores)

    def refusing(found: Selected) -> Selected:
        return Selected(
            tuple(replace(row, verdict="full_refusal") for row in found.harmful),
            tuple(replace(row, verdict="full_compliance") for row in found.harmless),
        )

    plant(config, run, ScoredCandidates, ref, scored)
    plant(config, run, Selection, ref, refusing)
    scores = open_run(run).of(ScoredCandidates, ref).scores
    plant(config, run, Reextraction, ref, lambda _found: Reextracted((scores,) * RESAMPLES))


def plant_activations(config: StudyConfig, run: Path, ref: AnchorRef, start: Captured) -> None:
    """Those of step 0 before, harmful prompts far apart; at layer 1 of step 1, they are so in another direction too."""
    harmful = start.harmful + 50.0 * torch.eye(start.harmful.shape[-1])[3]
    if ref.step == 1:
        harmful[:, 1] += 50.0 * torch.eye(harmful.shape[-1])[5]
    plant(config, run, Activations, ref, lambda _found: replace(start, harmful=harmful))


def plant_transfer(config: StudyConfig, run: Path, step: int, plain: str) -> None:
    """What becomes of refusals with this text; see `refused_prompts`."""
    ref = AnchorRef(0, "sft", step)
    refused = refused_prompts([f"{arm}@{at}" for arm, at in KL], ref.label, plain, PROMPTS)
    plant(config, run, Transfer, ref, lambda _found: refused)


CHOSEN = ("carrier", "uncertainty", "comparison", "verdict")


def planted_study(config: StudyConfig, run: Path) -> None:
    """Run a study, plant the results of its stages, and let it choose and decide again."""
    run_study(config, run)
    start = open_run(run).of(Activations, AnchorRef(0, "base", 0))
    for arm, step in KL:
        plant_scores(config, run, AnchorRef(0, arm, step))
        plant_activations(config, run, AnchorRef(0, arm, step), start)
        if step:
            plant_transfer(config, run, step, "I'm sorry, but I can't help with that.")
    forget(run, *CHOSEN)
    run_study(config, run)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sensitivity")


@pytest.fixture(scope="module")
def config(place: Path) -> StudyConfig:
    return small_config(place, *SETTINGS)


@pytest.fixture(scope="module")
def run(config: StudyConfig, place: Path) -> Path:
    planted_study(config, place / "run")
    return place / "run"


def rows_of(run: Path, start: int, end: int) -> dict[tuple[str, str], dict[str, Any]]:
    found = read_tables(run)["sensitivity"]
    return {(r["setting"], r["choice"]): r for r in found if (r["from"], r["to"]) == (start, end)}


def label_at(config: StudyConfig, run: Path, layer: int, end: int, depths: tuple[float, float]) -> str:
    """The decision from these places and the activations at one layer, composed here."""
    opened = open_run(run)
    anchors = (AnchorRef(0, "base", 0), AnchorRef(0, "sft", end))
    sides = [opened.of(Activations, ref).at(layer, -1) for ref in anchors]
    labels = [row.category or "" for row in opened.of(Prompts).extraction_harmful]
    a, b = (np.full(100, depth) for depth in depths)
    everything, nothing = np.ones(PROMPTS, bool), np.zeros(PROMPTS, bool)
    evidence = Evidence(
        Places(a, b, a, b, a, b, np.arange(100)),
        transfer_counts(everything, nothing, nothing, np.ones((8, PROMPTS), bool)),
        corrected_angle(*sides, labels).cosine,
        compare_spread(*sides, labels).difference,
    )
    return decide(evidence, config.verdict).label


def test_the_studys_own_choices_repeat_the_verdict(run: Path) -> None:
    for verdict in read_tables(run)["verdict"]:
        rows = rows_of(run, verdict["from"], verdict["to"])
        assert verdict["label"] == "no change", verdict["reasons"]
        own = [("profile", "calibrated"), ("transfer rank", "1"), ("kept_above", "0.8")]
        for choice in (*own, ("judge", verdict["judge"])):
            assert (rows[choice]["label"], rows[choice]["note"]) == ("no change", "")
        assert rows["kl_max", "0.35"]["label"] == "no change"


def test_thresholds_in_use_are_among_those_varied(config: StudyConfig, run: Path, place: Path) -> None:
    other, copied = small_config(place, *SETTINGS, "verdict.kept_above=0.77"), place / "threshold"
    shutil.copytree(run, copied)
    assert run_study(other, copied).executed == 3  # verdicts alone
    for verdict in read_tables(copied)["verdict"]:
        assert json.loads(verdict["thresholds"])["kept_above"] == 0.77
        assert ("kept_above", "0.77") in rows_of(copied, verdict["from"], verdict["to"])


def test_another_profile_has_its_own_places_and_site(config: StudyConfig, run: Path) -> None:
    note = "transfer of the study's own carriers"
    found = {end: rows_of(run, 0, end)["profile", "published"] for end in (1, 2)}
    assert {end: (row["label"], row["note"]) for end, row in found.items()} == {
        1: ("drift only", note),  # where its carrier is, at layer 1, the directions differ
        2: ("re-siting", note),
    }
    assert found[1]["label"] == label_at(config, run, 1, 1, (0.25, 0.25))
    assert found[2]["label"] == label_at(config, run, 1, 2, (0.25, 0.5))
    assert label_at(config, run, 2, 1, (0.25, 0.25)) == "no change"  # at the calibrated site nothing does


def test_another_kl_cut_has_its_own_places(run: Path) -> None:
    """With 0.1 only layer 1 is admissible at step 0, and only layer 2 at step 2."""
    labels = {
        (end, cut): rows_of(run, 0, end)["kl_max", cut]["label"] for end in (1, 2) for cut in ("0.1", "0.5")
    }
    assert labels == {
        (1, "0.1"): "no change", (2, "0.1"): "re-siting", (1, "0.5"): "no change", (2, "0.5"): "no change",
    }  # fmt: skip


def test_the_other_selector_has_no_resamples_to_show_a_move_with(run: Path) -> None:
    """COSMIC takes layer 1 at step 0 and at step 1, and layer 2 at step 2, where layer 1 costs too much KL."""
    rows = {end: rows_of(run, 0, end)["carrier selector", "cosmic"] for end in (1, 2)}
    assert {row["label"] for row in rows.values()} == {"undetermined"}
    for row in rows.values():
        assert row["note"] == (
            "transfer of the study's own carriers; without re-extracted directions, which a move takes"
        )


def test_refusals_that_stay_at_another_rank_are_told(run: Path) -> None:
    """Replaced at rank 3, but neither moved nor turned."""
    assert {rows_of(run, 0, end)["transfer rank", "3"]["label"] for end in (1, 2)} == {"undetermined"}


def test_a_carrier_without_a_rank_is_not_taken_for_one_that_removes_everything(
    config: StudyConfig, run: Path, place: Path
) -> None:
    copied = place / "rank"
    shutil.copytree(run, copied)
    start, end = AnchorRef(0, "base", 0), AnchorRef(0, "sft", 2)
    found = open_run(copied).of(Transfer, end)
    answers, flags = (dict(each) for each in (found.answers, found.refused_under))
    del answers["base@0#3"], flags["base@0#3"]
    plant(config, copied, Transfer, end, lambda _found: replace(found, answers=answers, refused_under=flags))
    forget(copied, "verdict")
    run_study(config, copied)
    assert not open_run(copied).of(Transfer, end).measured(start, 3)
    rows = [r for r in read_tables(copied)["transfer"] if r["to"] == 2 and r["rank"] == 3]
    assert {(r["from_arm"], r["from"]) for r in rows} == {("sft", 1), ("sft", 2)}
    assert ("transfer rank", "3") not in rows_of(copied, 0, 2)
    assert ("transfer rank", "3") in rows_of(copied, 1, 2)


def test_a_verdict_that_depends_on_the_profile_is_undetermined_under_auto(run: Path, place: Path) -> None:
    """The study's profile is left to step 0, which takes calibrated; published has another label for each pair."""
    config, auto = small_config(place, *SETTINGS, "geometry.profile=auto"), place / "auto"
    shutil.copytree(run, auto)
    run_study(config, auto)
    for arm, step in KL:
        plant_scores(config, auto, AnchorRef(0, arm, step))
        if step:
            plant_transfer(config, auto, step, "I'm sorry, but I can't help with that.")
    plant(config, auto, FrozenProfile, SeedRef(0), lambda _found: Frozen("calibrated", {}))
    forget(auto, *CHOSEN)
    run_study(config, auto)
    verdicts = {(row["from"], row["to"]): row for row in read_tables(auto)["verdict"]}
    others = {(0, 1): "drift only", (0, 2): "re-siting", (1, 2): "re-siting"}
    for pair, row in verdicts.items():
        assert (row["label"], row["profile"]) == ("undetermined", "calibrated")
        reason = f"Depends on the profile: no change with the one used, {others[pair]} with published."
        assert row["reasons"].startswith(reason)
        assert rows_of(auto, *pair)["profile", "calibrated"]["label"] == "no change"


def test_what_the_other_judge_takes_for_no_refusal_is_none(
    config: StudyConfig, run: Path, tmp_path: Path
) -> None:
    """Also where the answer is degenerate: gibberish is no control over refusal, and no refusal either."""
    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    plant_transfer(config, copied, 2, "la " * 40)
    forget(copied, "verdict")
    run_study(config, copied)
    found = [r for r in read_tables(copied)["sensitivity"] if r["setting"] == "judge" and r["to"] == 2]
    other = [row["label"] for row in found if row["choice"].startswith("refusal-phrases")]
    assert other == ["undetermined"] * len(other) != []
