"""What is said of R2D2 without its away term holds in the published tables."""

from typing import Any

import publish

AWAY = publish.Published("qwen-0.5b-seed0-away-off")
SEED0 = publish.Published("qwen-0.5b-trajectory-seed0")


def rate(run: publish.Published, step: int, suite: str, metric: str, attack: str, arm: str = "r2d2") -> Any:
    return run.row("behaviour", arm=arm, step=step, suite=suite, metric=metric, attack=attack)


def test_it_answers_fewer_direct_requests_and_as_few_attacked_ones() -> None:
    for step in (50, 100):
        asked = [rate(run, step, "harmbench", "compliance", "direct") for run in (AWAY, SEED0)]
        assert asked[0]["hi"] < asked[1]["lo"]
        assert rate(AWAY, step, "harmbench", "compliance", "fixed_source")["value"] == 0
    taught = rate(SEED0, 100, "harmbench", "compliance", "fixed_source", "refusal_sft")
    assert taught["lo"] > rate(AWAY, 100, "harmbench", "compliance", "fixed_source")["hi"]


def test_harmless_look_alikes_are_refused_as_often_at_100() -> None:
    safe = [round(rate(run, 100, "xstest_safe", "any_refusal", "none")["value"], 2) for run in (AWAY, SEED0)]
    assert safe[0] == safe[1]


def test_the_two_runs_differ_in_nothing_else_that_trains() -> None:
    assert AWAY.setting("training", "r2d2", "away_weight") == "0.0"
    assert SEED0.setting("training", "r2d2", "away_weight") == "0.5"
    for path in (("learning_rate",), ("chat_batch_size",), ("lora", "r"), ("mode",), ("max_length",)):
        assert AWAY.setting("training", *path) == SEED0.setting("training", *path)
    for name in ("pool", "cases", "gcg_steps", "width", "toward_weight", "restart_every", "suffix_length"):
        assert AWAY.setting("training", "r2d2", name) == SEED0.setting("training", "r2d2", name)
