"""Training that runs out of memory: what goes again, in which order, and what nothing helps."""

import logging
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_loop import _arm, _same
from test_trainee import trained, trainee_of
from transformers import LlamaForCausalLM

from caryatid.attacks.gcg import recordings
from caryatid.models import batch
from caryatid.training.adapters import MergedCopy
from caryatid.training.kl import benign_kl
from caryatid.training.terms import with_room
from caryatid.training.trainee import Example, Supervised, Trainee
from tiny import save_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny") / "llama", "llama")


def _short(monkeypatch: pytest.MonkeyPatch, what: str, until_update: int = 0) -> list[bool]:
    """Memory runs out after every backward pass of a term, unless activations are computed again; from one update on.
    The list fills with whether they were."""
    backward, seen, losses = Trainee.backward, [], list[weakref.ref[torch.Tensor]]()

    def short(trainee: Trainee, loss: torch.Tensor, named: str) -> float:
        assert not [one for one in losses if one() is not None]  # nothing holds what the pass before computed
        value = backward(trainee, loss, named)
        if named == what and trainee.step >= until_update:
            seen.append(trainee.recomputing)
            losses.append(weakref.ref(loss))
            if not trainee.recomputing:
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
            tries.append(trainee.recomputing)
            if held:
                raise torch.OutOfMemoryError("no room")
        return value

    _arm(folder, tmp_path / "whole")
    monkeypatch.setattr(Trainee, "backward", short)
    monkeypatch.setattr(batch, "RELEASES", [lambda: bool(held and held.pop())])
    _arm(folder, tmp_path / "short")
    assert _same(tmp_path / "whole", tmp_path / "short")
    assert not any(tries)


HOOKED = {"lat": "toward and away", "circuit_breakers": "reroute and retain"}


@pytest.mark.parametrize("arm", HOOKED)
@pytest.mark.parametrize("term", ["sft", "cases"])
def test_arms_that_hook_blocks_end(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arm: str, term: str
) -> None:
    seen = _short(monkeypatch, HOOKED[arm] if term == "cases" else term)
    with pytest.raises(torch.OutOfMemoryError):
        _arm(folder, tmp_path / arm, arm)
    assert seen == [False]


@pytest.mark.parametrize("arm", ["cat", "dpo", "refusal_sft"])
def test_other_arms_come_to_the_same_weights(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arm: str
) -> None:
    _arm(folder, tmp_path / "whole", arm)
    seen = _short(monkeypatch, "sft", 1)
    _arm(folder, tmp_path / "short", arm)
    assert seen[:2] == [False, True]
    assert _same(tmp_path / "whole", tmp_path / "short")


def test_a_model_that_cannot_compute_again_ends(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = _short(monkeypatch, "sft")
    monkeypatch.setattr(LlamaForCausalLM, "supports_gradient_checkpointing", False)
    with pytest.raises(torch.OutOfMemoryError):
        _arm(folder, tmp_path / "arm")
    assert seen == [False]


def test_in_lockstep_nothing_goes_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainee = trainee_of("llama", "lora")
    trainee.ranks = replace(trainee.ranks, lockstep=True)
    monkeypatch.setattr(batch, "RELEASES", [lambda: True])
    tries: list[int] = []

    def compute() -> None:
        tries.append(1)
        raise torch.OutOfMemoryError("no room")

    with pytest.raises(torch.OutOfMemoryError):
        with_room(trainee, compute, recomputes=True)
    assert tries == [1]


def test_benign_kl_takes_fewer_examples_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainee = trainee_of("llama", "lora")
    trained(trainee)
    examples = [Example([3, 4, 5 + i], [7, 8 + i]) for i in range(6)]
    whole, forward, sizes = benign_kl(trainee, examples, 6), Trainee.forward, list[int]()

    def short(trainee: Trainee, rows: list[Example]) -> Supervised:
        sizes.append(len(rows))
        if len(rows) > 2:
            raise torch.OutOfMemoryError("no room")
        return forward(trainee, rows)

    monkeypatch.setattr(Trainee, "forward", short)
    assert whole > 0
    assert benign_kl(trainee, examples, 6) == pytest.approx(whole, rel=1e-4)
    assert sizes[:3] == [6, 3, 1]


def test_the_copy_that_attacks_run_on_bears_no_hook_of_checkpointing() -> None:
    trainee = trainee_of("llama", "lora", gradient_checkpointing=True)
    copied = MergedCopy(trainee.peft).model
    assert trainee.loaded.model.get_input_embeddings()._forward_hooks
    assert not any(module._forward_hooks for module in copied.modules())
    assert recordings._frozen(list(copied.modules())) is not None


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
