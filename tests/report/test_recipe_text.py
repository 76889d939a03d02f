"""What is said of R2D2 with one part left out, and of the larger model, holds in the published tables."""

import pytest

import across_seeds
import publish

WHOLE = publish.seed_of("qwen-0.5b-trajectory-seed3", 3)
AWAY, TOWARD, SINGLE, STILL = (
    publish.seed_of(f"qwen-0.5b-seed3-{name}", 3) for name in ("away", "toward", "gcg1", "restart")
)
LARGE = publish.seed_of("qwen-1.5b-seed0", 0)
FIXED, DIRECT = "fixed-source answered", "direct answered"


def span(seed: across_seeds.Seed, step: int, name: str, arm: str = "r2d2") -> tuple[float, float]:
    cell = seed.rate(arm, step, name)
    assert cell.lo is not None
    assert cell.hi is not None
    return cell.lo, cell.hi


@pytest.mark.parametrize("step", [50, 100, 250])
def test_without_the_toward_term_it_does_not_close(step: int) -> None:
    for name in (FIXED, DIRECT):
        assert span(TOWARD, step, name)[0] > span(WHOLE, step, name)[1]
    assert span(TOWARD, step, FIXED)[1] < span(WHOLE, 0, FIXED)[0]  # though not as open as step 0


def test_without_away_it_closes() -> None:
    for step in (50, 100, 250):
        assert span(AWAY, step, FIXED)[1] < span(WHOLE, 0, FIXED)[0]
        assert span(AWAY, step, FIXED)[1] <= 0.12


def test_with_one_attack_step_it_closes_later_and_answers_more() -> None:
    assert span(SINGLE, 50, FIXED)[0] > span(WHOLE, 50, FIXED)[1]
    assert span(SINGLE, 100, FIXED) == span(WHOLE, 100, FIXED)
    for step in (50, 250):
        assert span(SINGLE, step, DIRECT)[0] > span(WHOLE, step, DIRECT)[1]


def test_without_restarts_direct_requests_reopen() -> None:
    assert span(STILL, 50, DIRECT)[1] < span(STILL, 250, DIRECT)[0]
    assert span(WHOLE, 50, DIRECT)[1] >= span(WHOLE, 250, DIRECT)[0]
    assert all(span(STILL, step, FIXED)[1] <= 0.08 for step in (50, 100, 250))


@pytest.mark.parametrize("seed", [AWAY, TOWARD, SINGLE, STILL])
def test_none_moves_the_carrier_and_each_turns_less(seed: across_seeds.Seed) -> None:
    decided, turn, whole = (
        seed.verdict("r2d2", (0, 250)), seed.angle("r2d2", (0, 250)), WHOLE.angle("r2d2", (0, 250)),
    )  # fmt: skip
    assert decided is not None
    assert decided["label"] == "drift only"
    assert turn.hi is not None
    assert whole.lo is not None
    assert turn.hi < whole.lo
    removed = seed.removal("r2d2", (0, 250))
    assert removed.lo is not None
    assert removed.lo > 0.5


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("away", {"away_weight": "0.0"}), ("toward", {"toward_weight": "0.0"}), ("gcg1", {"gcg_steps": "1"}),
        ("restart", {"restart_fraction": "0.0"}),
    ],
)  # fmt: skip
def test_runs_differ_in_one_setting_of_the_recipe(name: str, changed: dict[str, str]) -> None:
    one, whole = publish.Published(f"qwen-0.5b-seed3-{name}"), publish.Published(WHOLE.name)
    for key in (
        "pool", "cases", "gcg_steps", "width", "top_k", "suffix_length", "restart_every", "restart_fraction",
        "away_weight", "toward_weight", "away_variant", "toward_text",
    ):  # fmt: skip
        expected = changed.get(key, whole.setting("training", "r2d2", key))
        assert one.setting("training", "r2d2", key) == expected
    for path in (("learning_rate",), ("chat_batch_size",), ("lora", "r"), ("lora", "alpha"), ("max_length",)):
        assert one.setting("training", *path) == whole.setting("training", *path)


def test_step_zeros_carrier_controls_the_larger_model_more_than_the_smaller() -> None:
    here = LARGE.removal("r2d2", (0, 500))
    assert here.lo is not None
    assert here.lo > 0.9
    assert LARGE.anchor("base", 0).profile == "published"
    there = {seed.anchor("base", 0).profile for seed in publish.trajectory_seeds()}
    assert there == {"calibrated"}
    decided = LARGE.verdict("r2d2", (0, 500))
    assert decided is not None
    assert decided["label"] == "undetermined"
    assert "neither a move nor its absence" in decided["reasons"]
