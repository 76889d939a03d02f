"""What is said of seed 3's R2D2, trained, attacked and measured a second time, holds in the published tables."""

import pytest

import publish

AGAIN, BEFORE = (
    publish.Published("qwen-0.5b-arm-seed3-again"),
    publish.Published("qwen-0.5b-trajectory-seed3"),
)
BOTH = (AGAIN, BEFORE)
PAIRS = ((0, 50), (50, 100), (100, 250), (250, 500), (0, 500))


def turned(run: publish.Published, start: int, end: int) -> tuple[float, float]:
    row = run.row("drift", arm="r2d2", of=start, to=end, quantity="corrected_angle", site="first anchor")
    return row["lo"], row["hi"]


def answered(run: publish.Published, step: int, attack: str) -> tuple[float, float]:
    where = {"arm": "r2d2", "suite": "harmbench", "metric": "compliance"}
    row = run.row("behaviour", step=step, attack=attack, **where)
    return row["lo"], row["hi"]


def apart(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one[0] > other[1] or other[0] > one[1]


def test_both_runs_have_the_settings_they_share() -> None:
    for path in (
        ("training", "learning_rate"),
        ("training", "r2d2", "width"),
        ("training", "chat_batch_size"),
    ):
        assert AGAIN.setting(*path) == BEFORE.setting(*path)


@pytest.mark.parametrize("pair", PAIRS)
def test_all_labels_are_the_same(pair: tuple[int, int]) -> None:
    labels = {run.row("verdict", arm="r2d2", of=pair[0], to=pair[1])["label"] for run in BOTH}
    assert labels == {"drift only"}


def test_no_fixed_source_case_gets_an_answer_at_any_anchor() -> None:
    for run in BOTH:
        for step in (50, 100, 250, 500):
            where = {"arm": "r2d2", "suite": "harmbench", "attack": "fixed_source", "metric": "compliance"}
            assert run.row("behaviour", step=step, **where)["value"] == 0


def test_what_lies_further_apart_than_its_intervals_is_named() -> None:
    assert not apart(turned(AGAIN, 0, 500), turned(BEFORE, 0, 500))
    assert not apart(answered(AGAIN, 500, "adaptive"), answered(BEFORE, 500, "adaptive"))
    steps = [
        s for s in (50, 100, 250, 500) if apart(answered(AGAIN, s, "direct"), answered(BEFORE, s, "direct"))
    ]
    assert steps == [250]
    turns = [pair for pair in PAIRS if apart(turned(AGAIN, *pair), turned(BEFORE, *pair))]
    assert turns == [(0, 50), (100, 250), (250, 500)]
