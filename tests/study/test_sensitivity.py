"""What another profile or selector would have said, places and site included, from a planted study."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from caryatid.study.verdict import Evidence, Thresholds, decide
from small import forget, plant, small_config

from caryatid.behaviour.judges.base import Exchange
from caryatid.causal.locate import Activations as Captured
from caryatid.causal.transfer import transfer_ratio
from caryatid.config import StudyConfig
from caryatid.geometry.angles import excess_angle
from caryatid.geometry.cosmic import CosmicProducts
from caryatid.geometry.rank import compare_effective_rank
from caryatid.report.tables import read_tables
from caryatid.study.flow import run_study
from caryatid.study.run import open_run
from caryatid.study.series import AnchorRef
from caryatid.study.stages.activations import Activations
from caryatid.study.stages.candidates import Candidates, ScoredCandidates
from caryatid.study.stages.prompts import Prompts
from caryatid.study.stages.selection import Selected, Selection
from caryatid.study.stages.transfer import Transfer, Transferred

SETTINGS = (
    "arms=[sft]",
    "attacks.fixed_source.enabled=false",
    "causal.sweeps_at=none",
    "causal.localise_at=none",
    "causal.ranks=[1]",
    "causal.transfer_prompts=3",
    "geometry.reextraction_resamples=0",
    "verdict.kept_above=0.52",
)
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


def plant_activations(config: StudyConfig, run: Path, turned: bool, step: int) -> None:
    """Those of step 0; at layer 1, if `turned`, harmful prompts stand apart in another direction."""
    start = open_run(run).of(Activations, AnchorRef(0, "base", 0))

    def moved(_found: Captured) -> Captured:
        harmful = start.harmful.clone()
        if turned:
            harmful[:, 1] += 50.0 * torch.eye(harmful.shape[-1])[5]
        return replace(start, harmful=harmful)

    plant(config, run, Activations, AnchorRef(0, "sft", step), moved)


def plant_transfer(config: StudyConfig, run: Path, step: int, plain: str) -> None:
    """All prompts are refused with this answer, and answered under either carrier."""
    rows = open_run(run).of(Prompts).harmbench.prompts[:3]

    def removed(_found: Transferred) -> Transferred:
        names = [f"{arm}@{at}" for arm, at in KL]
        return Transferred(
            refused=(True,) * len(rows),
            prompts=tuple(Exchange(row.text, plain, row.context) for row in rows),
            answers=dict.fromkeys(names, ("Sure, here it is.",) * len(rows)),
            refused_under=dict.fromkeys(names, (False,) * len(rows)),
        )

    plant(config, run, Transfer, AnchorRef(0, "sft", step), removed)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> StudyConfig:
    return small_config(tmp_path_factory.mktemp("sensitivity"), *SETTINGS)


@pytest.fixture(scope="module")
def run(config: StudyConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("planted") / "run"
    run_study(config, run)
    for arm, step in KL:
        plant_scores(config, run, AnchorRef(0, arm, step))
    for step in (1, 2):
        plant_activations(config, run, step == 1, step)
        plant_transfer(config, run, step, "I'm sorry, but I can't help with that.")
    forget(run, "carrier", "uncertainty", "comparison", "verdict")
    run_study(config, run)
    return run


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
    everything, nothing = np.ones(3, bool), np.zeros(3, bool)
    ratio = transfer_ratio(everything, nothing, nothing)
    angle = excess_angle(*sides, labels, splits=config.geometry.splits, rng=np.random.default_rng(0))
    change = compare_effective_rank(*sides, labels)
    evidence = Evidence(a, b, a, b, ratio.ratio, ratio.reason, angle.excess, change.difference)
    return decide(evidence, Thresholds(**config.verdict.model_dump())).label


def test_the_studys_own_choices_repeat_the_verdict(run: Path) -> None:
    for verdict in read_tables(run)["verdict"]:
        rows = rows_of(run, verdict["from"], verdict["to"])
        assert verdict["label"] == "no change", verdict["reasons"]
        own = [("profile", "calibrated"), ("selector", "depth and arg-min")]
        for choice in (*own, ("judge", verdict["judge"])):
            assert (rows[choice]["label"], rows[choice]["note"]) == ("no change", "")
        assert ("kept_above", "0.52") in rows  # a threshold that is not on the grid


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


def test_the_other_selector_has_its_own_too(run: Path) -> None:
    """COSMIC takes layer 1 at step 0 and at step 1, and layer 2 at step 2, where layer 1 costs too much KL."""
    rows = {end: rows_of(run, 0, end)["carrier selector", "cosmic"] for end in (1, 2)}
    assert {end: row["label"] for end, row in rows.items()} == {1: "drift only", 2: "re-siting"}
    assert {row["note"] for row in rows.values()} == {"transfer of the study's own carriers"}


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
