"""What a context costs a decoding step is told apart from what reading the prompts costs."""

import time
from collections.abc import Sequence
from typing import Any

import pytest

from caryatid.models.generate import Decoding
from caryatid.study import decode_clock
from caryatid.study.decode_clock import LONG, SHORT, STEPS, seconds_per_attended
from tiny import tiny_loaded

TOKEN, PROMPT, STEP = 2e-6, 1e-6, 1e-3  # seconds a token before a step, a token of a prompt, and a step take


def test_reading_the_prompts_and_the_step_itself_are_taken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts of two lengths; the first call of each length takes longer."""
    now, seen = [0.0], list[tuple[int, int, int]]()

    def decode(_: Any, prompts: Sequence[Sequence[int]], decoding: Decoding, *, stop: Any) -> None:
        length, new, rows = len(prompts[0]), decoding.max_new_tokens, len(prompts)
        if length not in [one for one, *_ in seen]:
            now[0] += 30.0
        seen.append((length, new, rows))
        before = sum(length + done for done in range(new))
        now[0] += rows * (PROMPT * length + TOKEN * before) + STEP * new

    monkeypatch.setattr(decode_clock, "generate_ids", decode)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    loaded = tiny_loaded("llama")
    longest = min(LONG, loaded.model.config.max_position_embeddings // 2)
    assert seconds_per_attended(loaded, 3) == pytest.approx(TOKEN, rel=1e-6)
    assert {(length, rows) for length, _, rows in seen} == {(longest, 3), (SHORT, 3)}
    assert {new for _, new, _ in seen} == {1, 1 + STEPS}


def test_few_rows_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a model that decodes is timed without an error."""
    rows = list[int]()
    decode = decode_clock.generate_ids

    def counted(loaded: Any, prompts: Sequence[Sequence[int]], *given: Any, **named: Any) -> Any:
        rows.append(len(prompts))
        return decode(loaded, prompts, *given, **named)

    monkeypatch.setattr(decode_clock, "generate_ids", counted)
    monkeypatch.setattr(decode_clock, "ROWS", 2)
    assert seconds_per_attended(tiny_loaded("llama"), 64) >= 0.0
    assert set(rows) == {2}
