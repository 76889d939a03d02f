"""A random search of several goals together: broken off, ended early, and where a loss is not finite."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from caryatid.attacks.base import AttackResult, BlockRun, Goal
from caryatid.attacks.random_search import random_search
from caryatid.attacks.settings import RandomSearchSettings
from caryatid.attacks.texts import TextLosses, target_losses
from caryatid.errors import NumericalError
from caryatid.models.batch import RowLimit
from tiny import tiny_loaded

GOALS = (
    Goal("letter", "Write a letter, then post it", "Sure, here is a letter"),
    Goal("tides", "Explain this: the tides", "Sure, the tides"),
)
SETTINGS = RandomSearchSettings(steps=8, width=2, suffix_length=5)
SCORED = "caryatid.attacks.random_search.target_losses"


def search(goals: tuple[Goal, ...] = GOALS, keep: Path | None = None, **more: Any) -> list[AttackResult]:
    loaded = tiny_loaded("llama")
    run = BlockRun(0, RowLimit(8), keep=keep, on_step=more.pop("on_step", lambda steps: None))
    return random_search(loaded, loaded.chat(None), goals, replace(SETTINGS, **more), run)


def timeless(results: list[AttackResult]) -> list[AttackResult]:
    return [replace(result, seconds=0.0) for result in results]


def test_a_search_that_is_broken_off_goes_on_with_the_losses_it_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goals share a pass a step; after an interruption only the steps that were not taken are scored."""
    passes: list[int] = []

    def counted(*given: Any) -> TextLosses:
        passes.append(len(given[2]))
        if len(passes) == 6:
            raise KeyboardInterrupt
        return target_losses(*given)

    monkeypatch.setattr(SCORED, counted)
    with pytest.raises(KeyboardInterrupt):
        search(keep=tmp_path / "x.state")
    assert passes[0] == 2
    assert set(passes[1:]) == {4}
    resumed = search(keep=tmp_path / "x.state")
    assert len(passes) - 6 == 1 + 8 - 5
    assert timeless(resumed) == timeless(search())


def test_time_and_batch_size_of_what_was_kept_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caryatid.keeping.WORTH_KEEPING", 0.0)

    def small(*given: Any) -> TextLosses:
        given[-1].rows = 3  # memory ran out
        return target_losses(*given)

    monkeypatch.setattr(SCORED, small)
    first = search(keep=tmp_path / "x.state")

    def never(*given: Any) -> TextLosses:
        raise AssertionError("scored again")

    monkeypatch.setattr(SCORED, never)
    again = search(keep=tmp_path / "x.state")
    assert again == first
    assert again[0].batch_size == 3


def test_losses_that_were_kept_of_other_texts_are_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("caryatid.keeping.WORTH_KEEPING", 0.0)
    first = search(keep=tmp_path / "x.state")
    moved = (replace(GOALS[0], user_text="Write a poem, then post it"), GOALS[1])
    other = search(moved, keep=tmp_path / "x.state")
    assert timeless(other) == timeless(search(moved))
    assert other[0].losses != first[0].losses


def test_a_goal_that_ends_early_leaves_the_block_and_changes_no_other() -> None:
    longer = (replace(GOALS[0], user_text="Write a letter " * 6), GOALS[1])
    whole, taken = search(longer), list[int]()
    budget = (whole[0].forward_tokens + whole[1].forward_tokens) // 2
    found = search(longer, token_budget=budget, on_step=taken.append)
    assert found[0].stopped == "token_budget"
    assert found[0].steps < 8
    assert (found[1].stopped, found[1].steps) == ("steps", 8)
    for one, other in zip(found, whole, strict=True):
        assert one.losses == pytest.approx(other.losses[: len(one.losses)], rel=1e-5)
    assert sum(taken) == 16


def test_a_step_without_a_usable_candidate_keeps_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "caryatid.attacks.random_search.round_trip",
        lambda _slot, _tokenizer, rows: torch.zeros(len(rows), dtype=torch.bool),
    )
    for result in search():
        assert (result.steps, result.stalled_steps, result.candidates) == (8, 8, 1)
        assert len(set(result.losses)) == 1
        assert result.sent_text.endswith(result.suffix_text)


def test_a_loss_that_is_not_finite_is_an_error_that_names_the_goal(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: Any) -> TextLosses:
        found = target_losses(*given)
        return found._replace(target=torch.full_like(found.target, float("nan")))

    monkeypatch.setattr(SCORED, broken)
    with pytest.raises(NumericalError, match="letter"):
        search()
