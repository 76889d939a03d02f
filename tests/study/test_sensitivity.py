"""What another profile or selector would have said, places and site included, from a planted study."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import reseal, small_config, stage_of

from caryatid.artifacts import RunDirectory
from caryatid.causal.activations import at_site
from caryatid.causal.transfer import transfer_ratio
from caryatid.config import StudyConfig
from caryatid.data.study_prompts import StudyPrompts
from caryatid.geometry.angles import excess_angle
from caryatid.geometry.rank import compare_effective_rank
from caryatid.report.tables import read_tables
from caryatid.study.runner import planned, run_study
from caryatid.study.verdict import Evidence, Thresholds, decide

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


def plant_scores(config: StudyConfig, run: Path, arm: str, step: int) -> None:
    """Calibrated takes layer 2, published layer 1 where layer 2 costs too much KL, COSMIC layer 1."""
    bank = stage_of(config, run, "bank", arm, step)
    scores = bank.read_tensors("scores.safetensors")
    noise = torch.linspace(-0.1, 0.1, scores["harmful"].shape[0], dtype=torch.float64)
    scores["harmful"], scores["harmless"] = 4 + noise, -4 + noise
    scores["induce"] = (4 + noise).expand_as(scores["induce"]).clone()
    for name in (
        "ablated",
        "added",
        "harmful",
        "harmless",
    ):  # all activations alike, but for what is set below
        scores[f"cosmic_{name}"] = torch.ones_like(scores[f"cosmic_{name}"])
    for row, layer in enumerate(scores["layers"].tolist()):
        scores["bypass"][row] = BYPASS.get(layer, 3.0) + noise
        scores["kl"][row] = KL[arm, step].get(layer, 3.0)
        cosine = 1.0 - abs(layer - 1) / 4
        scores["cosmic_ablated_harmless"][row] = scores["cosmic_added_harmful"][row] = cosine
    bank.write_tensors("scores.safetensors", scores)
    reseal(bank, gap=8.0)
    reseal(stage_of(config, run, "selection", arm, step), harmful_refusal_rate=1.0, harmless_refusal_rate=0.0)


def plant_activations(config: StudyConfig, run: Path, turned: bool, step: int) -> None:
    """Those of step 0; at layer 1, if `turned`, harmful prompts stand apart in another direction."""
    stored = stage_of(config, run, "activations", "base", 0).read_tensors("activations.safetensors")
    stored = {name: value.clone() for name, value in stored.items()}
    if turned:
        stored["harmful"][:, 1] += 50.0 * torch.eye(stored["harmful"].shape[-1])[5]
    stage = stage_of(config, run, "activations", "sft", step)
    stage.write_tensors("activations.safetensors", stored)
    reseal(stage)


def plant_transfer(config: StudyConfig, run: Path, step: int) -> None:
    """All prompts are refused, and answered under either carrier."""
    stage = stage_of(config, run, "transfer", "sft", step)
    found = stage.read_json("transfer.json")
    names = found["prompts"]
    answers = {f"{arm}@{at}": ["Sure, here it is."] * len(names) for arm, at in KL}
    gone = {name: [False] * len(names) for name in answers}
    facts = {"refused": [True] * len(names), "asked": names, "refused_under": gone, "answers": answers}
    stage.write_json("transfer.json", {**found, **facts})
    reseal(stage)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> StudyConfig:
    return small_config(tmp_path_factory.mktemp("sensitivity"), *SETTINGS)


@pytest.fixture(scope="module")
def run(config: StudyConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("planted") / "run"
    run_study(config, run)
    for arm, step in KL:
        plant_scores(config, run, arm, step)
    for step in (1, 2):
        plant_activations(config, run, step == 1, step)
        plant_transfer(config, run, step)
    shutil.rmtree(run / "stages" / "analysis")
    run_study(config, run)
    return run


def rows_of(run: Path, start: int, end: int) -> dict[tuple[str, str], dict[str, Any]]:
    found = read_tables(run)["sensitivity"]
    return {(r["setting"], r["choice"]): r for r in found if (r["from"], r["to"]) == (start, end)}


def prompts_of(config: StudyConfig, run: Path) -> StudyPrompts:
    stage = planned(config, run)[0]["prompts"].stage(RunDirectory(run))
    return StudyPrompts.from_json(stage.read_json("prompts.json"))


def label_at(config: StudyConfig, run: Path, layer: int, end: int, depths: tuple[float, float]) -> str:
    """The decision from these places and the activations at one layer, composed here."""
    sides = []
    for arm, step in (("base", 0), ("sft", end)):
        stored = stage_of(config, run, "activations", arm, step).read_tensors("activations.safetensors")
        sides.append(at_site(stored["harmful"], stored["harmless"], layer, -1))
    labels = [row.category for row in prompts_of(config, run).extraction_harmful]
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
    stage = stage_of(config, copied, "answers", "sft", 2)
    rows = stage.read_json("answers.json")
    stage.write_json("answers.json", [{**row, "text": "la " * 40} for row in rows])
    reseal(stage)
    shutil.rmtree(copied / "stages" / "analysis")
    run_study(config, copied)
    found = [r for r in read_tables(copied)["sensitivity"] if r["setting"] == "judge" and r["to"] == 2]
    other = [row["label"] for row in found if row["choice"].startswith("refusal-phrases")]
    assert other == ["undetermined"] * len(other) != []
