"""SIGTERM ends a run like Ctrl-C, and waits for a state that is whole where somebody asks it to."""

import os
import signal
from collections.abc import Iterator

import pytest

from caryatid.interrupts import asked_to_end, heed_sigterm, held_back


@pytest.fixture(autouse=True)
def heeded() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    heed_sigterm()
    yield
    signal.signal(signal.SIGTERM, before)


def _terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_it_interrupts_at_once() -> None:
    with pytest.raises(KeyboardInterrupt):
        _terminate()


def _until_asked(steps: list[int]) -> None:
    """Five steps of which the second one is hit by the signal."""
    with held_back():
        for step in range(5):
            if step == 1:
                _terminate()
            steps.append(step)
            if asked_to_end():
                raise KeyboardInterrupt


def test_it_is_held_back_and_shows() -> None:
    steps: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        _until_asked(steps)
    assert steps == [0, 1]
    assert not asked_to_end()


def test_one_that_nobody_heeds_counts_at_the_end() -> None:
    with pytest.raises(KeyboardInterrupt), held_back():
        _terminate()


def _twice(reached: list[int]) -> None:
    with held_back():
        for number in range(2):
            _terminate()
            reached.append(number)


def test_a_second_one_does_not_wait() -> None:
    reached: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        _twice(reached)
    assert reached == [0]
