"""Sentences for people: what they say of planted evidence, for every label."""

import json
from typing import Any

import pytest

from caryatid.report.story import SENTENCES, Change, percent, sentences, stories

Row = dict[str, Any]
PAIR = {"seed": 0, "arm": "r2d2", "from": 0, "to": 100}


def tables(
    label: str, reasons: str = "Nothing.", sensitivity: tuple[tuple[str, str], ...] = ()
) -> dict[str, list[Row]]:
    """A run with one arm of two anchors: layer 17 → 9 of 24, 76 % removed, turned by 34°."""
    verdict = {**PAIR, "label": label, "rank_change": "none", "reasons": reasons, "profile": "calibrated"}
    verdict["thresholds"] = json.dumps({"angle": 10.0, "depth_shift": 0.25})

    def rate(arm: str, step: int, suite: str, attack: str, metric: str, value: float) -> Row:
        row = {"seed": 0, "arm": arm, "step": step, "suite": suite, "attack": attack, "metric": metric}
        return {**row, "value": value, "lo": value - 0.05, "hi": value + 0.05, "group": ""}

    def place(arm: str, step: int, layer: int) -> Row:
        row = {"seed": 0, "arm": arm, "step": step, "profile": "calibrated", "quantity": "depth"}
        return {**row, "depth_layer": layer}

    def removed(arm: str, step: int, quantity: str, value: float) -> Row:
        row = {
            "seed": 0,
            "arm": "r2d2",
            "to": 100,
            "from_arm": arm,
            "from": step,
            "rank": 1,
            "quantity": quantity,
        }
        return {**row, "value": value, "lo": value - 0.1, "hi": value + 0.1, "n": 146}

    drift = {**PAIR, "site": "first anchor", "lo": 32.0, "hi": 36.0}
    return {
        "verdict": [verdict],
        "carriers": [{"layer": 18, "depth": 0.75}],
        "carrier_summary": [place("base", 0, 17), place("r2d2", 100, 9)],
        "transfer": [
            removed("base", 0, "transfer", 0.76),
            removed("r2d2", 100, "transfer", 0.93),
            removed("base", 0, "transfer_random", 0.08),
        ],
        "drift": [
            {**drift, "quantity": "corrected_angle", "value": 34.0},
            {**drift, "quantity": "p_depth_stayed", "value": 0.98},
            {**drift, "quantity": "p_depth_moved", "value": 0.0},
        ],
        "behaviour": [
            rate("base", 0, "harmbench", "direct", "compliance", 0.72),
            rate("r2d2", 100, "harmbench", "direct", "compliance", 0.39),
            rate("base", 0, "utility", "none", "pass", 0.92),
            rate("r2d2", 100, "utility", "none", "pass", 0.88),
            rate("r2d2", 100, "xstest_safe", "none", "any_refusal", 0.13),
        ],
        "sensitivity": [
            {**PAIR, "setting": setting, "choice": "x", "label": found} for setting, found in sensitivity
        ],
    }


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ("relocation", "refusal moved (layer 17 → 9 of 24): another direction carries it now"),
        ("replacement in place", "stayed about where it was (layer 17 → 9 of 24), but another direction, 34° away"),
        ("re-siting", "elsewhere now (layer 17 → 9 of 24), but taking out step 0's direction still removes 76"),
        ("drift only", "but the direction turned by 34°"),
        ("no change", "the direction turned by no more than 36°"),
    ],
)  # fmt: skip
def test_each_label_has_its_sentence_with_the_measured_numbers(label: str, said: str) -> None:
    (story,) = stories(tables(label))
    assert story.headline.startswith("Under r2d2, ")
    assert said in story.headline
    assert "76\u00a0% of 146 refusals" in story.headline
    assert label in SENTENCES


def test_undetermined_says_what_is_missing_and_what_was_measured() -> None:
    (story,) = stories(
        tables("undetermined", "D(0.5) = +0.1. Missing: the corrected angle's interval contains 10°.")
    )
    assert story.headline.endswith(
        "cannot be said: the angle cannot be told from 10°, from which on it counts as a turn."
    )
    assert "removes 76\u00a0% of 146 refusals" in story.certainty[0]
    bare = tables("undetermined", "The second anchor has no carrier: no refusal. More.")
    bare |= {"transfer": [], "drift": [], "carrier_summary": []}
    (story,) = stories(bare)
    assert story.headline == (
        "Under r2d2, what happened to refusal cannot be said: at step 100 the model hardly refuses."
    )
    assert [line.split(":")[0] for line in story.certainty] == ["No direction of step 100 qualifies"]
    bare["verdict"][0]["reachable"] = "No label can be reached: 3 refusals cannot show control."
    assert stories(bare)[0].headline.endswith("A study of this size could not have settled it.")


def test_certainty_names_intervals_counts_and_thresholds() -> None:
    (story,) = stories(tables("drift only"))
    control, turn, place = (line.replace("\u00a0", " ") for line in story.certainty)
    assert "step 0's direction removes 76 % of 146 refusals (66 to 86 %); " in control
    assert control.endswith("step 100's own 93 %, random directions 8 %.")
    assert "34.0° (32.0° to 36.0°); 10° or more counts as a turn" in turn
    assert "unmoved in 98 %, moved in 0 % of the draws of prompts; 6 of 24 layers or more" in place


def test_what_it_cost_tells_changes_from_noise() -> None:
    (story,) = stories(tables("drift only"))
    (asked,) = story.answered
    assert asked == Change("asked directly", "72\u00a0%", "39\u00a0%", "−33")
    refused, passed = story.costs  # gibberish was not measured
    assert refused == Change("harmless look-alikes refused", "–", "13\u00a0%", "–")  # not measured at step 0
    assert passed == Change("everyday tasks passed", "92\u00a0%", "88\u00a0%", "within noise")


def test_what_would_have_changed_it_counts_labels_and_names_settings() -> None:
    same = (("angle", "drift only"), ("judge", "drift only"))
    (story,) = stories(tables("drift only", sensitivity=same))
    assert story.otherwise.startswith("Nothing that was tried. 2 settings were tried")
    (story,) = stories(tables("drift only", sensitivity=(*same, ("kl_max", "undetermined"))))
    assert story.otherwise == (
        "3 settings were tried, each changed alone: 2 give the same verdict, the others 1 undetermined; "
        "none gives another finding."
    )
    assert story.variations == (
        "how much a direction may disturb harmless answers (kl max x): undetermined.",
    )
    (story,) = stories(tables("drift only", sensitivity=(*same, ("angle", "no change"))))
    assert "so some give another finding" in story.otherwise
    (story,) = stories(tables("drift only"))
    assert "was not measured" in story.otherwise


def test_a_storys_pair_is_the_longest_of_its_arm() -> None:
    found = tables("drift only")
    found["verdict"] = [{**found["verdict"][0], "to": 50, "label": "no change"}, *found["verdict"]]
    (story,) = stories(found)
    assert (story.start, story.end, story.label) == (0, 100, "drift only")


def test_sentences_and_shares() -> None:
    assert sentences("A is 0.5. B is 1. of 2. C.") == ("A is 0.5.", "B is 1. of 2.", "C.")
    assert percent(0.764) == "76\u00a0%"
    assert percent(float("nan")) == "–"
