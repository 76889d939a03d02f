"""What is said of R2D2 with one part left out, and of the larger model, holds in the published tables."""

import pytest

import across_seeds
import publish
from shares import share

WHOLE = publish.seed_of("qwen-0.5b-trajectory-seed3", 3)
AWAY, TOWARD, SINGLE, STILL = (
    publish.seed_of(f"qwen-0.5b-seed3-{name}", 3) for name in ("away", "toward", "gcg1", "restart")
)
RERUN = publish.seed_of("qwen-0.5b-arm-seed3-again", 3)
SEEDS = publish.runs_by_seed()
LARGE = publish.seed_of("qwen-1.5b-seed0", 0)
FIXED, DIRECT, SAFE = "fixed-source answered", "direct answered", "XSTest safe refused"
START = " ".join((publish.RESULTS.parents[1] / "README.md").read_text(encoding="utf-8").split())
Span = tuple[float, float]


def span(seed: across_seeds.Seed, step: int, name: str, arm: str = "r2d2") -> Span:
    cell = seed.rate(arm, step, name)
    assert cell.lo is not None
    assert cell.hi is not None
    return cell.lo, cell.hi


def known(value: float | None) -> float:
    assert value is not None
    return value


def turned(seed: across_seeds.Seed, end: int, arm: str = "r2d2") -> Span:
    cell = seed.angle(arm, (0, end))
    assert cell.lo is not None
    assert cell.hi is not None
    return cell.lo, cell.hi


def attacked(seed: across_seeds.Seed, step: int, metric: str) -> float:
    where = {"arm": "r2d2", "step": step, "suite": "harmbench", "attack": "fixed_source"}
    row = publish.Published(seed.name).row("behaviour", metric=metric, **where)
    return float(row["value"])


@pytest.mark.parametrize("step", [50, 100, 250])
def test_without_the_toward_term_attacked_answers_break(step: int) -> None:
    assert span(TOWARD, step, FIXED)[0] > span(WHOLE, step, FIXED)[1]
    assert attacked(TOWARD, step, "degenerate") > attacked(TOWARD, step, "any_refusal")
    assert attacked(TOWARD, step, "any_refusal") < 0.2
    assert attacked(WHOLE, step, "any_refusal") == 1
    if step != 100:
        assert span(TOWARD, step, DIRECT)[0] > max(span(seed, step, DIRECT)[1] for seed in SEEDS)


def test_without_away_it_closes_and_what_seed_0_showed_besides_is_half_there() -> None:
    for step in (50, 100, 250):
        assert attacked(AWAY, step, "any_refusal") > 0.97
    assert span(AWAY, 50, SAFE)[0] > span(WHOLE, 50, SAFE)[1]
    assert span(AWAY, 100, DIRECT)[1] > span(WHOLE, 100, DIRECT)[0]
    for step in (100, 250):
        for whole in (WHOLE, RERUN):
            assert span(AWAY, step, DIRECT)[1] > span(whole, step, DIRECT)[0]
    assert span(AWAY, 50, SAFE)[1] > span(RERUN, 50, SAFE)[0]  # of the second run it cannot be told apart


def test_with_one_attack_step_it_closes_later_and_answers_more() -> None:
    assert span(SINGLE, 50, FIXED)[0] > span(WHOLE, 50, FIXED)[1]
    assert span(SINGLE, 100, FIXED) == span(WHOLE, 100, FIXED)
    assert span(SINGLE, 50, DIRECT)[0] > max(span(seed, 50, DIRECT)[1] for seed in SEEDS)


def test_direct_requests_reopen_without_restarts_as_in_all_seeds_but_this() -> None:
    assert span(STILL, 50, DIRECT)[1] < span(STILL, 250, DIRECT)[0]
    reopened = [span(seed, 50, DIRECT)[1] < span(seed, 250, DIRECT)[0] for seed in SEEDS]
    assert [seed.number for seed, there in zip(SEEDS, reopened, strict=True) if not there] in ([3], [1, 3])
    values = [[known(seed.rate("r2d2", step, DIRECT).value) for step in (50, 250)] for seed in SEEDS]
    assert [before < after for before, after in values] == [True, True, True, False]
    assert span(RERUN, 50, DIRECT)[1] < span(RERUN, 250, DIRECT)[0]
    assert all(attacked(STILL, step, "any_refusal") == 1 for step in (50, 100, 250))


@pytest.mark.parametrize("seed", [AWAY, TOWARD, SINGLE, STILL])
def test_none_relocates_and_each_turns_less_than_any_seed(seed: across_seeds.Seed) -> None:
    decided = seed.verdict("r2d2", (0, 250))
    assert decided is not None
    assert decided["label"] == "drift only"
    assert turned(seed, 250)[1] < min(turned(one, 250)[0] for one in SEEDS)
    removed = seed.removal("r2d2", (0, 250))
    assert removed.lo is not None
    assert removed.lo > 0.5
    assert WHOLE.verdict("r2d2", (0, 250)) is None
    assert known(WHOLE.anchor("r2d2", 250).depth.value) < known(seed.anchor("r2d2", 250).depth.value)
    assert share(known(RERUN.anchor("r2d2", 250).depth.value)) == ".75"
    assert share(known(seed.anchor("r2d2", 250).depth.value)) in (".71", ".75")
    assert (turned(seed, 250)[1] < turned(RERUN, 250)[0]) == (seed is not STILL)


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


def test_the_larger_model_closes_and_reopens() -> None:
    for step in (50, 100, 250, 500):
        assert span(LARGE, step, FIXED)[1] < span(LARGE, step, FIXED, "sft")[0]
        assert span(LARGE, step, SAFE)[0] <= span(LARGE, 0, SAFE)[1]
    assert span(LARGE, 50, DIRECT)[1] < span(LARGE, 500, DIRECT)[0]
    assert span(LARGE, 500, DIRECT)[1] <= span(LARGE, 0, DIRECT)[0] < span(LARGE, 500, DIRECT, "sft")[0]
    assert sum(span(seed, 50, DIRECT)[1] < span(seed, 500, DIRECT)[0] for seed in SEEDS) == 3


def test_the_larger_model_turns_less_and_its_first_carrier_controls_more() -> None:
    assert turned(LARGE, 500, "sft")[1] < turned(LARGE, 500)[0]
    assert turned(LARGE, 500)[1] < min(turned(seed, 500)[0] for seed in SEEDS)
    here, there = LARGE.removal("r2d2", (0, 500)), [seed.removal("r2d2", (0, 500)) for seed in SEEDS]
    assert here.lo is not None
    assert all(one.hi is not None and here.lo > one.hi for one in there)
    assert LARGE.anchor("base", 0).profile == "published"
    assert {seed.anchor("base", 0).profile for seed in SEEDS} == {"calibrated"}


def test_the_larger_models_place_alone_is_open() -> None:
    decided = LARGE.verdict("r2d2", (0, 500))
    assert decided is not None
    assert decided["label"] == "undetermined"
    assert decided["reasons"].endswith(
        "Missing: neither a move nor its absence has a probability of 0.9 or more."
    )


def test_the_start_page_quotes_them() -> None:
    broken, refused = (
        sorted(attacked(TOWARD, step, metric) for step in (50, 100, 250))
        for metric in ("degenerate", "any_refusal")
    )
    quoted = [share(value) for value in (broken[0], broken[-1], refused[0], refused[-1])]
    assert "break ({} to {} of them) more often than they refuse ({} to {});".format(*quoted) in START
    turns = [f"{known(LARGE.angle(arm, (0, 500)).value):.0f}°" for arm in ("r2d2", "sft")]
    removed = share(known(LARGE.removal("r2d2", (0, 500)).value))
    assert "by {} (SFT {}), step 0's carrier still removes {} of".format(*turns, removed) in START
