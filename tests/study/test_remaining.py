"""Remaining time: learned from finished stages, by kind where a kind has some."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from caryatid.models.machine import Threads
from caryatid.study.costs import WorkUnits
from caryatid.study.forecast import size, spoken
from caryatid.study.nominal import nominal_rates
from caryatid.study.plan import Plan, Planned
from caryatid.study.remaining import OVERRUN, Remaining
from caryatid.study.stage import Study

LAST = 15.0  # seconds


def stage_of(name: str, *needs: SimpleNamespace, key: str = "") -> SimpleNamespace:
    """A stage of the kind that its name begins with."""
    return SimpleNamespace(
        id=name, key=key or name, needs=needs, stage=SimpleNamespace(kind=name.partition("/")[0])
    )


def plan_of(**counts: int) -> Plan:
    """A plan with so many stages of each kind."""
    stages = [stage_of(f"{kind}/{number}") for kind, count in counts.items() for number in range(count)]
    return Plan(cast(Study, None), cast(tuple[Planned, ...], tuple(stages)))


def test_without_anything_finished_it_is_the_forecast() -> None:
    plan = plan_of(train=2, answers=3)
    remaining = Remaining(plan, {entry.id: 10.0 for entry in plan})
    assert remaining.left() == pytest.approx(50)
    assert remaining.pace() == 1.0


def test_a_device_twice_as_slow_is_found_out_after_a_tenth() -> None:
    plan = plan_of(train=2, answers=18)
    remaining = Remaining(plan, {entry.id: 10.0 for entry in plan})
    for entry in plan.stages[:2]:
        remaining.finished(entry, 20.0)
    assert remaining.pace() == pytest.approx(2)
    assert remaining.left() == pytest.approx(2 * 180, rel=0.1)


def test_a_kind_has_a_factor_of_its_own() -> None:
    plan = plan_of(train=10, answers=10)
    remaining = Remaining(plan, {entry.id: 10.0 for entry in plan})
    for entry in plan.stages[:9]:
        remaining.finished(entry, 10.0)
    for entry in plan.stages[10:19]:
        remaining.finished(entry, 40.0)
    assert remaining.left() == pytest.approx(10 + 40, rel=0.1)  # not twice the mean of both


def test_one_stage_alone_does_not_decide_its_kind() -> None:
    """An outlier among many finished stages: the next of its kind is between its factor and that of all."""
    plan = plan_of(answers=20, train=2)
    remaining = Remaining(plan, {entry.id: 10.0 for entry in plan})
    for entry in plan.stages[:20]:
        remaining.finished(entry, 10.0)
    remaining.finished(plan.stages[20], 100.0)
    assert 20 < remaining.left() < 80


def test_a_stage_in_hand_counts_down_and_never_to_nothing() -> None:
    plan = plan_of(train=1, answers=1)
    remaining = Remaining(plan, {"train/0": 100.0, "answers/0": 10.0})
    assert remaining.left({"train/0": 30.0}) == pytest.approx(80)
    assert remaining.left({"train/0": 1000.0}) == pytest.approx(10 + OVERRUN * 1000)
    assert remaining.said({"train/0": 50.0}) == "about 1 min left"


def test_stages_without_a_forecast_take_what_their_kind_took() -> None:
    plan = plan_of(answers=3, train=1)
    remaining = Remaining(plan)
    assert (remaining.left(), remaining.said()) == (0.0, "")
    remaining.finished(plan.stages[0], 7.0)
    assert remaining.left() == pytest.approx(14)
    assert not remaining.known
    assert remaining.said() == "at least 14 s left"
    remaining.finished(plan.stages[3], 1.0)
    assert remaining.said() == "about 14 s left"


def test_a_stage_that_was_taken_to_need_no_time_takes_what_its_kind_took() -> None:
    plan = plan_of(verdict=3)
    remaining = Remaining(plan, dict.fromkeys((entry.id for entry in plan), 0.0))
    assert (remaining.left(), remaining.known) == (0.0, True)
    remaining.finished(plan.stages[0], 4.0)
    assert remaining.left() == pytest.approx(8)


def test_stages_that_do_not_differ_are_counted_once() -> None:
    twin, other = (stage_of(f"cases/{n}", key="same") for n in "ab")
    plan = Plan(cast(Study, None), cast(tuple[Planned, ...], (twin, other)))
    remaining = Remaining(plan, {"cases/a": 10.0, "cases/b": 0.0})
    assert [entry.id for entry in remaining.entries] == ["cases/a"]
    remaining.finished(plan.stages[0], 12.0)
    assert remaining.left() == 0.0


def test_several_runners_share_what_is_left_but_not_a_chain_of_stages() -> None:
    first = stage_of("train/0")
    chain = (first, second := stage_of("answers/0", first), stage_of("verdict/0", second))
    others = tuple(stage_of(f"probe/{number}") for number in range(6))
    plan = Plan(cast(Study, None), cast(tuple[Planned, ...], (*chain, *others)))
    remaining = Remaining(plan, {entry.id: 10.0 for entry in plan})
    assert [remaining.left(runners=runners) for runners in (1, 2, 3, 9)] == pytest.approx([90, 45, 30, 30])
    assert remaining.left({"train/0": 5.0, "probe/0": 5.0}, runners=2) == pytest.approx(40)
    assert remaining.left({"train/0": 5.0, "probe/0": 5.0}, runners=9) == pytest.approx(25)
    remaining.finished(plan["train/0"], 10.0)
    assert remaining.left(runners=9) == pytest.approx(20)


def test_what_was_guessed_is_said_to_be_and_is_no_plan() -> None:
    plan = plan_of(answers=9, train=1)
    remaining = Remaining(plan, {entry.id: 10.0 for entry in plan}, guessed=True)
    remaining.finished(plan.stages[0], 30.0)
    assert remaining.said().startswith("roughly ")
    planned_so = Remaining(plan, {entry.id: 10.0 for entry in plan})
    planned_so.finished(plan.stages[0], 30.0)
    assert remaining.left() > planned_so.left() + 10  # it holds less to what was guessed
    assert remaining.pace() == 1.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.6, "1 min"),
        (500, "8 min 20 s"),
        (3600 * 3 + 300, "3 h 5 min"),
        (86400 * 2 + 3600 * 4, "2 d 4 h"),
    ],
)
def test_durations_in_words(seconds: float, text: str) -> None:
    assert spoken(seconds) == text


def test_bytes_in_words() -> None:
    found: list[Any] = [size(200 * 2**20), size(1.5 * 2**30)]
    assert found == ["200 MiB", "1.5 GiB"]


QUICK = json.loads((Path(__file__).parent / "quick_run.json").read_text(encoding="utf-8"))


def replayed(forecast: dict[str, float]) -> Iterator[tuple[float, float, float]]:
    """The recorded run, event by event: seconds since it began, those that it was taken to need still, and those that
    it needed."""
    events = [(time, event, name) for time, event, name in QUICK["events"]]
    names = [name for _, event, name in events if event == "started"]
    stages = tuple(stage_of(name) for name in names)
    plan = Plan(cast(Study, None), cast(tuple[Planned, ...], stages))
    remaining, begun, end = Remaining(plan, forecast), dict[str, float](), events[-1][0]
    for time, event, name in events[:-1]:
        if event == "started":
            begun[name] = time
        if event == "done":
            remaining.finished(plan[name], time - begun.pop(name))
        yield time, remaining.left({one: time - start for one, start in begun.items()}), end - time


def worst(forecast: dict[str, float]) -> float:
    """The largest factor between what was said and what it took, after a tenth of the run, until `LAST` seconds before
    its end (the last ones write tables and the report, which are no stages)."""
    found = list(replayed(forecast))
    total = found[0][0] + found[0][2]
    ratios = [said / true for time, said, true in found if time >= total / 10 and true >= LAST]
    assert len(ratios) > 40
    return max(max(ratio, 1 / ratio) for ratio in ratios)


def test_after_a_tenth_of_a_real_run_the_remaining_time_is_never_off_by_a_factor_of_two() -> None:
    """`quick` on two cores, one of which another program took from a seventh of the run on, nearly to its end."""
    assert worst(QUICK["forecast"]) <= 2


@pytest.mark.parametrize("times", [0.25, 0.5, 2.0, 4.0])
def test_nor_where_the_device_was_timed_as_so_many_times_as_slow(times: float) -> None:
    assert worst({name: times * seconds for name, seconds in QUICK["forecast"].items()}) <= 2


TWO = json.loads((Path(__file__).parent / "quick_two_runners.json").read_text(encoding="utf-8"))


def guessed(times: float) -> dict[str, float]:
    """What `nominal_rates` says of its stages on one thread of a CPU, and so many times that."""
    study = cast(Study, SimpleNamespace(facts=SimpleNamespace(device="cpu")))
    rates = nominal_rates(study, TWO["parameters"])
    seconds = [times * rates.of(WorkUnits(**units)) for units in TWO["units"]]
    return dict(zip(TWO["stages"], seconds, strict=True))


def said_beside_another(run: str, guess: dict[str, float]) -> Iterator[tuple[float, float, float]]:
    """A recorded run of two runners, at each stage that begins: seconds so far, said, true."""
    made: list[SimpleNamespace] = []
    for name, needs in zip(TWO["stages"], TWO["needs"], strict=True):
        made.append(stage_of(name, *(made[need] for need in needs)))
    plan = Plan(cast(Study, None), cast(tuple[Planned, ...], tuple(made)))
    remaining = Remaining(plan, guess, guessed=True)
    begun, end = dict[str, float](), TWO[run][-1][0]
    for time, event, number in TWO[run]:
        name = TWO["stages"][number]
        if event == "done":
            remaining.finished(plan[name], time - begun.pop(name))
            continue
        begun[name] = time
        running = {one: time - start for one, start in begun.items()}
        yield time, remaining.left(running, runners=2), end - time


@pytest.mark.parametrize("times", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("run", ["alone", "busy"])
def test_two_runners_on_a_device_that_was_not_timed_are_not_off_by_a_factor_of_two(
    run: str, times: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where the guess is a tenth of what it should be, or ten times that: the run's first tenth corrects it."""
    monkeypatch.setattr("caryatid.study.nominal.threads", lambda: Threads(1, 2))
    found = list(said_beside_another(run, guessed(times)))
    total = found[0][0] + found[0][2]
    ratios = [said / true for time, said, true in found if time >= total / 10 and true >= LAST]
    assert len(ratios) > 35
    assert max(max(ratio, 1 / ratio) for ratio in ratios) <= 2
    if times == 1:  # as docs/scale.md says
        assert (min(ratios), max(ratios)) == pytest.approx(
            {"alone": (0.83, 1.2), "busy": (0.85, 1.26)}[run], abs=0.005
        )
