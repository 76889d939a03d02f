"""Training that is broken off goes on from what it kept: warm-up, an arm at SIGTERM, the static arm's attacks."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
from test_loop import _arm, _enough, _facts, _same, _warmed

from caryatid.errors import DataMissingError
from caryatid.interrupts import heed_sigterm
from caryatid.models.load import LoadedModel
from caryatid.training import loop, warmup
from caryatid.training.adversarial import Attacked, CaseSource
from caryatid.training.trainee import Trainee
from tiny import save_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny") / "llama", "llama")


def test_a_warm_up_that_is_broken_off_goes_on_bit_for_bit(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _warmed(folder, tmp_path / "whole", _enough)
    monkeypatch.setattr(warmup, "SAVE_AFTER", 0.0)
    update, steps = Trainee.update, list[int]()

    def stopping(trainee: Trainee) -> None:
        if steps == list(range(1, 14)):
            steps.append(0)
            raise KeyboardInterrupt
        update(trainee)
        steps.append(trainee.step)

    monkeypatch.setattr(Trainee, "update", stopping)
    with pytest.raises(KeyboardInterrupt):
        _warmed(folder, tmp_path / "cut", _enough)
    (state,) = (tmp_path / "cut" / "work").glob("*/state.safetensors")
    content = state.read_bytes()
    state.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DataMissingError, match="damaged") as caught:
        _warmed(folder, tmp_path / "cut", _enough)
    assert caught.value.where == str(state)
    state.write_bytes(content)
    again = _warmed(folder, tmp_path / "cut", _enough)
    assert steps == [*range(1, 14), 0, *range(14, 21)]
    assert again == whole
    weights = [(tmp_path / name / "weights" / "adapter_model.safetensors") for name in ("whole", "cut")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_sigterm_ends_training_with_its_state_saved(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _arm(folder, tmp_path / "whole")
    before = signal.getsignal(signal.SIGTERM)
    heed_sigterm()
    update = Trainee.update

    def hit(trainee: Trainee) -> None:
        update(trainee)
        if trainee.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Trainee, "update", hit)
    with pytest.raises(KeyboardInterrupt):
        _arm(folder, tmp_path / "cut")
    monkeypatch.undo()
    signal.signal(signal.SIGTERM, before)
    assert (tmp_path / "cut" / "work" / "step-000003" / "state.json").exists()
    assert _facts(_arm(folder, tmp_path / "cut")) == _facts(whole)
    assert _same(tmp_path / "whole", tmp_path / "cut")


def test_the_static_arms_cases_are_kept_while_they_are_made(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _arm(folder, tmp_path / "whole", "r2d2_static")
    monkeypatch.setattr(loop, "SAVE_AFTER", 0.0)
    monkeypatch.setattr(loop, "SAVE_SHARE", 0.0)
    attack, attacked = CaseSource.attack, list[tuple[int, ...]]()

    def stopping(source: CaseSource, loaded: LoadedModel, indices: Sequence[int], steps: int) -> Attacked:
        if len(attacked) == 1:
            attacked.append(())
            raise KeyboardInterrupt
        attacked.append(tuple(indices))
        return attack(source, loaded, indices, steps)

    monkeypatch.setattr(CaseSource, "attack", stopping)
    with pytest.raises(KeyboardInterrupt):
        _arm(folder, tmp_path / "cut", "r2d2_static")
    assert _facts(_arm(folder, tmp_path / "cut", "r2d2_static")) == _facts(whole)
    made = [indices for indices in attacked if indices]
    assert len(made) == len(set(made)) > 1
    assert _same(tmp_path / "whole", tmp_path / "cut")
