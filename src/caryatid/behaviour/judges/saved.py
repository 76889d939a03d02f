"""Judging in batches whose verdicts are kept, so that what was paid for is not paid again after a kill."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Protocol

from ...artifacts import content_key, nan_to_none, none_to_nan
from .base import Exchange, Judge, Judgement, judge_answers, judge_id

SAVED_AT_ONCE = 32
"""Exchanges of a batch: as many are judged again, at most, after a kill."""


class Chunks(Protocol):
    """Where finished batches are kept, so that a stopped run goes on at the first missing one."""

    def load(self) -> list[Any]: ...

    def append(self, index: int, value: object) -> None: ...


def judged(
    judge: Judge, pairs: Sequence[Exchange], chunks: Chunks | None = None, size: int = SAVED_AT_ONCE
) -> list[Judgement]:
    """One judgement per exchange, in order; with `chunks` in batches of `size` that are kept there and not asked again.

    A kept batch counts only for the same judge and the same exchanges; any other is judged anew in its place.
    """
    if chunks is None:
        return judge_answers(judge, pairs)
    done, found = chunks.load(), []
    for index, start in enumerate(range(0, len(pairs), size)):
        batch = list(pairs[start : start + size])
        key = content_key([judge_id(judge), json.dumps(batch)])  # ASCII: answers may hold lone surrogates
        if index < len(done) and done[index].get("key") == key:
            found += [Judgement(**none_to_nan(one, Judgement)) for one in done[index]["judgements"]]
            continue
        fresh = judge_answers(judge, batch)
        chunks.append(index, {"key": key, "judgements": [nan_to_none(asdict(one)) for one in fresh]})
        found += fresh
    return found
