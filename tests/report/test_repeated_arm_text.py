"""What is said of seed 3's R2D2, trained, attacked and measured a second time, holds in the published tables."""

from dataclasses import replace

import pytest

import publish
import repeated_run
from caryatid.config import load_config
from compared_arms import Cell

NAMES = ("qwen-0.5b-arm-seed3-again", "qwen-0.5b-trajectory-seed3")
AGAIN, BEFORE = (publish.seed_of(name, 3) for name in NAMES)
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
