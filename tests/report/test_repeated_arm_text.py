"""What is said of seed 3's R2D2, trained, attacked and measured a second time, holds in the published tables."""

from dataclasses import replace

import pytest

import publish
import repeated_run
from caryatid.config import load_config
from compared_arms import Cell

NAMES = ("qwen-0.5b-arm-seed3-again", "qwen-0.5b-trajectory-seed3")
AGAIN, BEFORE = (publish.seed_of(name, 3) for name in NAMES)
STATIC = publish.seed_of("qwen-0.5b-static-again-seed0", 0)
FIRST = publish.seed_of("qwen-0.5b-trajectory-seed0", 0)
PAIRS = ((0, 50), (50, 100), (100, 250), (250, 500), (0, 500))


def test_both_runs_have_the_settings_that_r2d2_depends_on() -> None:
    again, before = (load_config(file=publish.RESULTS / name / "config.yaml") for name in NAMES)
    assert before.arms != again.arms == ("r2d2",)
    assert before.nulls.redraws != again.nulls.redraws == 0
    same = {"name": again.name, "arms": again.arms, "nulls": again.nulls}
    assert before.model_copy(update=same) == again


@pytest.mark.parametrize("pair", PAIRS)
def test_all_labels_are_the_same(pair: tuple[int, int]) -> None:
    for run in (AGAIN, BEFORE):
        decided = run.verdict("r2d2", pair)
        assert decided is not None
        assert decided["label"] == "drift only"


def test_no_fixed_source_case_gets_an_answer_at_any_anchor() -> None:
    for run in (AGAIN, BEFORE):
        assert {run.rate("r2d2", step, "fixed-source answered").value for step in (50, 100, 250, 500)} == {0}


def test_of_the_one_run_the_attack_takes_answers_away_and_of_the_other_it_is_not_shown() -> None:
    gains = [run.rate("r2d2", 500, "adaptive − direct, paired").hi for run in (AGAIN, BEFORE)]
    assert gains[0] > 0 > gains[1]


def test_every_rate_turn_and_depth_that_lies_apart_is_named() -> None:
    every = [one for one in repeated_run.compared(AGAIN, BEFORE, "r2d2") if one[1].there and one[2].there]
    apart = [one[0] for one in every if one[1].lo > one[2].hi or one[2].lo > one[1].hi]
    said = repeated_run.differences(AGAIN, BEFORE)
    assert said.startswith(f"{len(apart)} of {len(every)}: ")
    assert all(f"{name} " in said for name in apart)
    assert f"these lie apart, {said}." in (publish.RESULTS / "README.md").read_text(encoding="utf-8")


def test_what_touches_is_not_apart_and_what_is_missing_is_not_counted() -> None:
    low, high, touching = Cell(0.2, 0.1, 0.3), Cell(0.5, 0.4, 0.6), Cell(0.4, 0.3, 0.5)
    assert repeated_run.apart(low, high)
    assert repeated_run.apart(high, low)
    assert not repeated_run.apart(low, touching)
    assert not repeated_run.apart(low, Cell(why="not measured"))
    rates = replace(AGAIN, tables={"behaviour": AGAIN.tables["behaviour"]})
    every = [one for one in repeated_run.compared(rates, AGAIN, "r2d2") if one[1].there and one[2].there]
    assert not any(name.startswith("the ") for name, *_ in every)
    assert repeated_run.differences(rates, AGAIN) == f"none of {len(every)}"


def test_the_arm_that_had_no_verdicts_was_run_again_with_the_same_settings() -> None:
    again, before = (load_config(file=publish.RESULTS / run.name / "config.yaml") for run in (STATIC, FIRST))
    adaptive = before.attacks.model_copy(update={"adaptive": again.attacks.adaptive})
    same = {"name": again.name, "arms": again.arms, "nulls": again.nulls, "attacks": adaptive}
    # The default radius of `lat`, an arm of neither run, changed in between.
    training = replace(before.training, lat=again.training.lat)
    assert before.model_copy(update={**same, "training": training}) == again
    assert again.arms == ("r2d2_static",)
    assert not again.attacks.adaptive.enabled
    assert again.nulls.redraws == 0
    assert not STATIC.unfinished
    assert [one.name for one in publish.runs_by_seed("again")] == [STATIC.name]


def test_its_verdicts_and_how_they_compare_are_in_the_text() -> None:
    assert {pair for pair in FIRST.pairs("r2d2_static") if FIRST.verdict("r2d2_static", pair)} == set()
    labels = [row["label"] for pair in PAIRS if (row := STATIC.verdict("r2d2_static", pair))]
    assert labels == ["drift only", "no change", "drift only", "drift only", "undetermined"]
    text = (publish.RESULTS / "README.md").read_text(encoding="utf-8")
    section = text[text.index("#### An arm without verdicts, run again") :]
    section = section[: section.index("### Carriers, seed by seed")]
    for pair, label in zip(PAIRS, labels, strict=True):
        (line,) = (one for one in section.splitlines() if f"r2d2_static {pair[0]} → {pair[1]} | *" in one)
        assert f"*{label}*, {STATIC.angle('r2d2_static', pair).text('.1f', '°')}" in line
    every = [
        one for one in repeated_run.compared(STATIC, FIRST, "r2d2_static") if one[1].there and one[2].there
    ]
    assert not any(one[1].lo > one[2].hi or one[2].lo > one[1].hi for one in every)
    assert not any(name.startswith("the carrier's depth") for name, *_ in every)
    assert f"(it has no carriers' depths of this arm to compare): none of {len(every)}." in section
    assert "4 of 5 labels are those of seed 3; 0 → 500 is *undetermined* here, *drift only* there." in section


def test_labels_are_compared_where_both_runs_have_one() -> None:
    assert repeated_run.same_labels(STATIC, FIRST, "r2d2_static") == (0, 0)
    assert repeated_run.same_labels(STATIC, STATIC, "r2d2_static") == (5, 5)
    assert repeated_run.same_labels(AGAIN, BEFORE, "r2d2") == (5, 5)
    assert repeated_run.same_labels(STATIC, BEFORE, "r2d2_static") == (4, 5)
