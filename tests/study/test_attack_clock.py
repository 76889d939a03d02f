"""A step of an attack is timed apart from what comes before it."""

import time
from typing import Any

import pytest
import torch

from caryatid.attacks.base import Goal
from caryatid.attacks.gcg.engine import gcg_engine
from caryatid.attacks.gcg.settings import GcgSettings
from caryatid.attacks.gcg.steps import gcg_step
from caryatid.study import attack_clock
from caryatid.study.attack_clock import STEPS, Clock, Stepped, timed_attack
from tiny import tiny_loaded

CPU = torch.device("cpu")
SETTINGS = GcgSettings(steps=1, width=4, top_k=8, suffix_length=4)


def timed() -> Stepped:
    loaded = tiny_loaded("llama")
    goals = [Goal(name, "Tell me how boats sail", "Sure, boats") for name in "ab"]
    return timed_attack(loaded, loaded.chat(None), goals, SETTINGS, 4, 8)


def test_the_first_step_gives_the_beginning_and_the_later_ones_the_step() -> None:
    clock = Clock(CPU)
    clock.times = [0.0, 25.0, 26.0, 27.5, 28.5]
    assert clock.stepped(2) == Stepped(step=0.5, begin=12.0)
    clock.times = [0.0, 25.0]
    assert clock.stepped(2) == Stepped(step=12.5, begin=0.0, apart=False)


def test_steps_that_record_and_compile_on_cuda_are_not_counted() -> None:
    clock = Clock(torch.device("cuda"))
    clock.times = [0.0, 25.0, 55.0, 56.0, 60.0, 60.5, 61.0, 61.5]
    assert clock.stepped(1) == Stepped(step=0.5, begin=58.0)
    clock.times = [0.0, 25.0, 26.0, 27.5]  # broken off before the steps that count
    assert clock.stepped(1) == Stepped(step=1.0, begin=24.5)


def test_what_an_attack_does_before_its_steps_is_not_taken_for_candidates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def slow(*given: Any) -> Any:
        time.sleep(1.5)
        return gcg_engine(*given)

    monkeypatch.setattr("caryatid.attacks.gcg.steps.gcg_engine", slow)
    monkeypatch.setattr(attack_clock, "FEW_SECONDS", 600.0)
    found = timed()
    assert found.begin > 0.7
    assert 0.0 < found.step < 0.7


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for every step that is taken."""
    steps: list[int] = []

    def counted(*given: Any) -> Any:
        steps.append(1)
        return gcg_step(*given)

    monkeypatch.setattr("caryatid.attacks.gcg.steps.gcg_step", counted)
    return steps


def test_on_a_slow_cpu_one_step_must_do(taken: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attack_clock, "FEW_SECONDS", 0.0)
    found = timed()
    assert len(taken) == 1
    assert found.step > 0
    assert found.begin == 0


def test_all_steps_are_taken_where_there_is_time(taken: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attack_clock, "FEW_SECONDS", 600.0)
    assert timed().apart
    assert len(taken) == 1 + STEPS
