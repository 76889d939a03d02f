"""Training that runs out of memory: what goes again, in which order, and what nothing helps."""

import logging
from pathlib import Path

import pytest
import torch
from test_loop import _arm, _same

from caryatid.models import batch
from caryatid.training.trainee import Trainee
from tiny import save_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny") / "llama", "llama")


def _short(monkeypatch: pytest.MonkeyPatch, what: str, until_update: int = 0) -> list[bool]:
    """Memory runs out in every backward pass of a term, half way through, unless activations are computed again;
    from one update on. The list fills with whether they were."""
    backward, seen = Trainee.backward, []

    def short(trainee: Trainee, loss: torch.Tensor, named: str) -> float:
        value = backward(trainee, loss, named)
        if named == what and trainee.step >= until_update:
            seen.append(trainee.checkpointing)
            if not trainee.checkpointing:
                raise torch.OutOfMemoryError("no room")  # with this term's gradients added already
        return value

    monkeypatch.setattr(Trainee, "backward", short)
    return seen


@pytest.mark.parametrize("term", ["sft", "toward and away"])
def test_activations_are_computed_again_and_the_weights_are_the_same(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, term: str
) -> None:
    _arm(folder, tmp_path / "whole")  # with dropout, whose draws have to be the same
    seen = _short(monkeypatch, term, 1)
    with caplog.at_level(logging.WARNING):
        _arm(folder, tmp_path / "short")
    assert _same(tmp_path / "whole", tmp_path / "short")
    assert seen[:2] == [False, True]
    assert all(seen[1:])
    assert [line for line in caplog.messages if "computed again" in line] == [caplog.messages[-1]]


def test_what_attacks_hold_goes_first(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held, backward, tries = ["recordings"], Trainee.backward, []

    def short(trainee: Trainee, loss: torch.Tensor, what: str) -> float:
        value = backward(trainee, loss, what)
        if what == "toward and away":
            tries.append(trainee.checkpointing)
            if held:
                raise torch.OutOfMemoryError("no room")
        return value

    _arm(folder, tmp_path / "whole")
    monkeypatch.setattr(Trainee, "backward", short)
    monkeypatch.setattr(batch, "RELEASES", [lambda: bool(held and held.pop())])
    _arm(folder, tmp_path / "short")
    assert _same(tmp_path / "whole", tmp_path / "short")
    assert not any(tries)


@pytest.mark.parametrize("arm", ["lat", "circuit_breakers"])
def test_arms_that_hook_blocks_end(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arm: str
) -> None:
    seen = _short(monkeypatch, "sft")
    with pytest.raises(torch.OutOfMemoryError):
        _arm(folder, tmp_path / arm, arm)
    assert seen == [False]


def test_full_training_ends_where_gradients_of_another_term_are_there(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _short(monkeypatch, "toward and away")
    with pytest.raises(torch.OutOfMemoryError):
        _arm(folder, tmp_path / "full", mode="full")


def test_full_training_goes_on_where_the_first_term_finds_no_room(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _arm(folder, tmp_path / "whole", mode="full")
    _short(monkeypatch, "sft")
    _arm(folder, tmp_path / "short", mode="full")
    assert _same(tmp_path / "whole", tmp_path / "short")
