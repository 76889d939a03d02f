"""What is said of arms that were trained and measured a second time holds in the published tables."""

from dataclasses import replace

import pytest

import publish
import repeated_run
from across_seeds import Seed
from caryatid.config import load_config
from compared_arms import Cell

NAMES = ("qwen-0.5b-arm-seed3-again", "qwen-0.5b-trajectory-seed3")
AGAIN, BEFORE = (publish.seed_of(name, 3) for name in NAMES)
SEEDS, RERUNS = publish.runs_by_seed(), publish.runs_by_seed("again")
STATIC = publish.seed_of("qwen-0.5b-static-again-seed0", 0)
FIRST = publish.seed_of("qwen-0.5b-trajectory-seed0", 0)
PAIRS = ((0, 50), (50, 100), (100, 250), (250, 500), (0, 500))


def again_section() -> str:
    """The text on arms that were run again."""
    text = (publish.RESULTS / "README.md").read_text(encoding="utf-8")
    return text[text.index("#### Arms run again") : text.index("### Carriers, seed by seed")]


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


def first_of(again: Seed) -> Seed:
    """The first run with the same seed."""
    (found,) = (run for run in SEEDS if run.number == again.number)
    return found


@pytest.mark.parametrize("again", RERUNS, ids=lambda run: run.name)
def test_arms_were_run_again_with_the_same_settings(again: Seed) -> None:
    first = first_of(again)
    new, before = (load_config(file=publish.RESULTS / run.name / "config.yaml") for run in (again, first))
    fixed = replace(before.attacks.fixed_source, enabled=new.attacks.fixed_source.enabled)
    attacks = before.attacks.model_copy(update={"adaptive": new.attacks.adaptive, "fixed_source": fixed})
    same = {"name": new.name, "arms": new.arms, "nulls": new.nulls, "attacks": attacks}
    # The default radius of `lat`, an arm of no run, changed in between.
    training = replace(before.training, lat=new.training.lat)
    assert before.model_copy(update={**same, "training": training}) == new
    assert set(new.arms) < set(before.arms)
    assert not new.attacks.adaptive.enabled
    if not new.attacks.fixed_source.enabled:
        assert "Without the fixed-source attack" in again.provenance["note"]
    assert new.nulls.redraws == 0


def test_which_were_run_again_and_what_is_still_missing() -> None:
    assert [(run.number, run.arms) for run in RERUNS] == [
        (0, ["sft", "refusal_sft"]),
        (0, ["r2d2_static"]),
        (1, ["sft", "refusal_sft", "r2d2_static"]),
        (2, ["refusal_sft", "r2d2_static"]),
    ]
    text = (publish.RESULTS / "README.md").read_text(encoding="utf-8")
    missing = [
        f"{arm} {pair[0]} → {pair[1]}, seed {run.number}"
        for run in SEEDS
        for arm in ("sft", "r2d2", "refusal_sft", "r2d2_static")
        for pair in PAIRS
        if not any(one.verdict(arm, pair) for one in (run, *(two for two in RERUNS if first_of(two) == run)))
    ]
    (line,) = (one for one in text.splitlines() if one.startswith("Without a verdict in any run: "))
    assert set(line.removeprefix("Without a verdict in any run: ").rstrip(".").split("; ")) == set(missing)
    assert {name[-1] for name in missing} == {"2"}  # three seeds are whole


@pytest.mark.parametrize("again", RERUNS, ids=lambda run: run.name)
def test_how_they_compare_is_in_the_text(again: Seed) -> None:
    section, first = again_section(), first_of(again)
    for arm in again.arms:
        every = [one for one in repeated_run.compared(again, first, arm) if one[1].there and one[2].there]
        apart = [one[0] for one in every if one[1].lo > one[2].hi or one[2].lo > one[1].hi]
        (line,) = (one for one in section.splitlines() if one.startswith(f"- `{arm}`, seed {again.number}: "))
        assert f": {len(apart) or 'none'} of {len(every)}" in line
        assert all(name in line for name in apart)
        both = [
            (a["label"], b["label"])
            for pair in PAIRS
            if (a := again.verdict(arm, pair)) and (b := first.verdict(arm, pair))
        ]
        if both:
            assert f"{sum(a == b for a, b in both)} of {len(both)} labels are the same" in line


@pytest.mark.parametrize("again", RERUNS, ids=lambda run: run.name)
def test_their_verdicts_fill_the_table_with_a_dagger(again: Seed) -> None:
    text, first = (publish.RESULTS / "README.md").read_text(encoding="utf-8"), first_of(again)
    main = text[text.index("### Verdicts, seed by seed") : text.index("#### Arms run again")]
    for arm in again.arms:
        for pair in PAIRS:
            row = next(
                one for one in main.splitlines() if one.startswith(f"| {arm} {pair[0]} → {pair[1]} | ")
            )
            shown = row.split(" | ")[1 + again.number]
            own, later = first.verdict(arm, pair), again.verdict(arm, pair)
            assert ("†" in shown) == bool(later and not own)
            if said := own or later:
                assert shown.startswith(f"*{said['label']}*, ")
            if later and not own:
                assert again.angle(arm, pair).text(".1f", "°") in shown


def test_labels_are_compared_where_both_runs_have_one() -> None:
    assert repeated_run.same_labels(STATIC, FIRST, "r2d2_static") == (0, 0)
    assert repeated_run.same_labels(STATIC, STATIC, "r2d2_static") == (5, 5)
    assert repeated_run.same_labels(AGAIN, BEFORE, "r2d2") == (5, 5)
    assert repeated_run.same_labels(STATIC, BEFORE, "r2d2_static") == (4, 5)
