"""Reach: a label is within reach exactly where the clearest evidence of these sizes gets it from `decide`."""

import math
from dataclasses import replace

import numpy as np
import pytest

from caryatid.causal.transfer import transfer_counts
from caryatid.config import StudyConfig, load_config
from caryatid.config.load import preset_names
from caryatid.config.names import PromptSetName
from caryatid.data.prompts import Prompt, PromptSet, Role
from caryatid.data.study_prompts import StudyPrompts, build_study_prompts
from caryatid.stats import Interval
from caryatid.study.decision import Evidence, Places, Thresholds, decide
from caryatid.study.nulls import Planted, planted_geometry, planted_transfer
from caryatid.study.reach import Sizes, _cosine_sd, planned_sizes, reach, reach_lines

T = Thresholds()
FULL = Sizes(prompts=128, transfer_prompts=159, refusal_rate=0.6)


def clearest(label: str, sizes: Sizes) -> Evidence:
    """All resamples and all refusals agree, and the angle is seen exactly."""
    moved = label in ("relocation", "re-siting")
    n, draws = sizes.refusals, max(sizes.resamples, 1)
    a, b = np.full(draws, 0.7), np.full(draws, 0.2 if moved else 0.7)
    refused = np.ones(n, bool)
    under_old = np.full(n, label in ("relocation", "replacement in place"))
    counts = transfer_counts(refused, under_old, ~refused, np.ones((8, n), bool))
    turn = math.radians(0 if label == "no change" else 90)
    cosine = Interval(math.cos(turn), math.cos(turn) - 1e-3, math.cos(turn) + 1e-3)
    return Evidence(Places(a, b, a, b, a, b, np.arange(draws)), counts, cosine)


@pytest.mark.parametrize("refusals", [0, 3, 7, 8, 13, 15, 16, 17, 60])
@pytest.mark.parametrize("resamples", [1, 20, 28, 29, 50, 100])
def test_labels_within_reach_are_those_that_decide_can_give(refusals: int, resamples: int) -> None:
    sizes = Sizes(prompts=128, transfer_prompts=100, refusal_rate=refusals / 100, resamples=resamples)
    found = reach(sizes, T)
    for label in ("relocation", "replacement in place", "re-siting", "drift only", "no change"):
        assert (label in found.labels) == (decide(clearest(label, sizes), T).label == label), label
    assert bool(found.obstacles) == (len(found.labels) < 5)


def test_an_anchor_that_answers_most_prompts_leaves_too_few_refusals() -> None:
    """13 of 64 refusals cannot show “no change”, which a table that only says undetermined does not tell."""
    found = reach(replace(FULL, transfer_prompts=64, refusal_rate=0.2), T)
    assert found.refusals == 13
    assert "no change" not in found.labels
    assert "13 refusals cannot show that the old carrier is kept" in found.obstacles
    assert "13 refusals" in found.text
    assert set(reach(FULL, T).labels) == {
        "relocation",
        "replacement in place",
        "re-siting",
        "drift only",
        "no change",
    }


def test_few_prompts_cannot_show_that_nothing_turned() -> None:
    found = reach(replace(FULL, prompts=24, shared=0.0), T)
    assert "no change" not in found.labels
    assert "24 prompts cannot show that nothing turned" in found.obstacles
    assert found.turn > reach(FULL, T).turn > T.angle


@pytest.mark.parametrize(
    ("degrees", "shared", "prompts"), [(0, 0.8, 128), (30, 0.8, 48), (30, 0.0, 128), (90, 0.0, 48)]
)
def test_the_variance_of_the_cosine_is_that_of_planted_pairs(
    degrees: float, shared: float, prompts: int
) -> None:
    truth = Planted(turn=degrees, shared=shared, prompts=prompts)
    rng = np.random.default_rng(0)
    drawn = np.std([planted_geometry(truth, rng).cosine.value for _ in range(200)])
    sizes = Sizes(prompts=prompts, transfer_prompts=1, refusal_rate=1, shared=shared)
    assert _cosine_sd(sizes, degrees) == pytest.approx(drawn, rel=0.25)


def test_the_least_turn_is_seen_in_four_cases_of_five() -> None:
    least = reach(replace(FULL, prompts=48), T).turn
    rng, limit = np.random.default_rng(1), math.cos(math.radians(10))
    found = [planted_geometry(Planted(turn=least, prompts=48), rng).cosine.hi <= limit for _ in range(200)]
    assert 0.7 <= np.mean(found) <= 0.95


def test_ratios_are_seen_in_four_cases_of_five() -> None:
    found, rng = reach(FULL, T), np.random.default_rng(2)
    for ratio, factor, side in (
        (found.replaced_below, 0.5, "hi"), (found.controls_above, 0.5, "lo"), (found.kept_above, 0.8, "lo"),
    ):  # fmt: skip
        truth = Planted(control=ratio, refusals=found.refusals)
        bounds = [planted_transfer(truth, rng).contrast(factor) for _ in range(300)]
        seen = [each.hi < 0 if side == "hi" else each.lo >= 0 for each in bounds]
        assert 0.68 <= np.mean(seen) <= 0.92, (ratio, factor)


def test_a_move_must_be_larger_than_the_threshold() -> None:
    assert reach(FULL, T).move == pytest.approx(0.25 + (1.751 + 0.842) * math.sqrt(2) * 0.03, abs=1e-3)
    assert math.isnan(reach(replace(FULL, resamples=20), T).move)
    assert "20 re-extraction resamples" in reach(replace(FULL, resamples=20), T).text


def planned(
    name: str, harmful: int, harmless: int, requests: int, copyrighted: int
) -> tuple[StudyConfig, StudyPrompts]:
    """A preset's configuration, and prompt sets of these sizes cut to its limits."""
    config = load_config(preset=name)

    def rows(field: PromptSetName, count: int, copies: int = 0) -> PromptSet:
        kinds = ["standard"] * (count - copies) + ["copyright"] * copies
        limit = config.prompts.limits.get(field, 0) or count
        found = [
            Prompt(f"{field}{i}", f"{field} {i}", field, "harmful", kind=kind) for i, kind in enumerate(kinds)
        ]
        return PromptSet(field, Role.EVALUATION, tuple(found[:limit]), "made up", "none")

    sets = build_study_prompts(source="embedded", limits={}, files={}, offline=True)
    return config, replace(
        sets,
        extraction_harmful=rows("extraction_harmful", harmful),
        extraction_harmless=rows("extraction_harmless", harmless),
        harmbench=rows("harmbench", requests, copyrighted),
    )


@pytest.mark.parametrize("name", sorted({*preset_names()} - {"quick"}))
@pytest.mark.parametrize("refusal_rate", [0.2, 0.5, 0.9])
def test_no_shipped_preset_has_a_label_out_of_reach_for_lack_of_prompts(
    name: str, refusal_rate: float
) -> None:
    """With the real benchmarks, whose sizes these are, also where a model answers four requests of five."""
    config, prompts = planned(name, 260, 18_793, 320, 80)
    sizes = planned_sizes(config, prompts, refusal_rate)
    assert (sizes.prompts, sizes.transfer_prompts, sizes.resamples) == (128, 240, 100)
    found = reach(sizes, config.verdict)
    assert (len(found.labels), found.obstacles) == (5, ())
    assert found.unturned
    assert config.prompts.limits["selection_harmless"] == 64


def test_quick_says_what_it_can_reach() -> None:
    config, prompts = planned("quick", 260, 18_793, 320, 80)
    first, *arms = reach_lines(config, prompts, 0.5)
    assert "50% of 48 requests (assumed)" in first
    assert [line.split(":")[0] for line in arms] == ["sft 0 → 10", "r2d2 0 → 10"]
    for rate, refusals in ((0.5, 24), (0.9, 43)):
        found = reach_lines(config, prompts, rate)[1:]
        labels = "relocation, replacement in place, re-siting, drift only, no change;"
        five = f"Within reach with {refusals} refusals: {labels}"
        assert all(five in line for line in found)
