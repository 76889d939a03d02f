"""Arms beside R2D2 on tiny models: training, exact resume, settings."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from robust_cases import NAMES, SETTINGS, drawn_of, trainee_of

from caryatid.data.chat import ChatExample
from caryatid.data.prompts import Prompt
from caryatid.errors import InputError
from caryatid.models.load import load_model
from caryatid.training.arm_settings import CircuitBreakerSettings, DpoSettings, LatSettings
from caryatid.training.arms import ARMS, arm_named
from caryatid.training.loop import ArmJob, TrainedArm, train_arm
from caryatid.training.terms import toward_only
from tiny import save_tiny


@pytest.mark.parametrize("name", ["lat", "circuit_breakers"])
def test_arms_that_hook_blocks_refuse_checkpointing(name: str) -> None:
    trainee = trainee_of(settings=replace(SETTINGS, gradient_checkpointing=True))
    terms = arm_named(name).terms
    assert terms is not None
    with pytest.raises(InputError, match="checkpointing"):
        terms(trainee, drawn_of(trainee), SETTINGS.r2d2)


@pytest.mark.parametrize("name", NAMES)
def test_each_arm_s_loss_falls_and_it_does_what_it_is_for(name: str) -> None:
    """The first eight of 150 updates, on two requests. Rerouting has no slope where nothing has moved yet: a push."""
    trainee = trainee_of(settings=replace(SETTINGS, learning_rate=3e-2), moved=0.02)
    trainee.updates = 150
    drawn, terms = drawn_of(trainee), arm_named(name).terms
    assert terms is not None
    before = toward_only(trainee, drawn, SETTINGS.r2d2).values["toward"]
    found = [terms(trainee, drawn, SETTINGS.r2d2)]
    for _ in range(8):
        with trainee.training():
            found.append(terms(trainee, drawn, SETTINGS.r2d2))
            total = found[-1].total
            assert total is not None
            trainee.backward(total, name)
            trainee.update()
    found.append(terms(trainee, drawn, SETTINGS.r2d2))
    if name == "circuit_breakers":
        assert found[-1].values["reroute"] < found[0].values["reroute"] - 0.8
    else:
        totals = [float(one.total.detach()) for one in found if one.total is not None]
        assert totals[-1] < totals[0]
        assert toward_only(trainee, drawn, SETTINGS.r2d2).values["toward"] < before


EXAMPLES = [
    ChatExample(f"c{i}", f"tell me about {w}", f"{w} is nice.") for i, w in enumerate(["tea", "sun", "sea"])
]
BEHAVIOURS = [
    Prompt(id=f"b{i}", text=f"do {w}", set_name="pool", label="harmful", targets=(f"Sure, here is {w}",))
    for i, w in enumerate(["harm", "theft", "fraud"])
]


class _Stop(Exception):
    pass


def train(
    folder: Path, out: Path, name: str, mode: str = "lora", stop_after: int | None = None
) -> TrainedArm:
    loaded = load_model(str(folder))

    def after(step: int, _numbers: object) -> None:
        if step == stop_after:
            raise _Stop

    settings = replace(SETTINGS, mode=mode, lora=replace(SETTINGS.lora, dropout=0.1))
    job = ArmJob(arm_named(name), settings, EXAMPLES, EXAMPLES[:2], BEHAVIOURS, (1, 2, 3), seed=0)
    return train_arm(loaded, loaded.chat(), job, out / "anchors", out / "work", after_update=after)


@pytest.mark.parametrize(
    ("name", "mode"), [*((name, "lora") for name in NAMES), ("circuit_breakers", "full")]
)
def test_arms_stop_at_anchors_and_go_on_exactly(name: str, mode: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    whole = train(folder, tmp_path / "whole", name, mode)
    with pytest.raises(_Stop):
        train(folder, tmp_path / "cut", name, mode, stop_after=2)
    resumed = train(folder, tmp_path / "cut", name, mode)
    facts = [
        json.dumps([{k: v for k, v in asdict(row).items() if k != "seconds"} for row in arm.rows])
        for arm in (whole, resumed)
    ]
    assert facts[0] == facts[1]
    row = whole.rows[-1]
    assert row.gcg_tokens > 0
    assert row.flops > 0
    assert row.gcg_steps == 0
    shown = {"loss_away", "loss_toward", "loss_reroute", "loss_retain", "loss_dpo"}
    named = {
        "cat": {"loss_away", "loss_toward"},
        "lat": {"loss_away", "loss_toward"},
        "circuit_breakers": {"loss_reroute", "loss_retain"},
        "dpo": {"loss_dpo"},
    }[name]
    assert {key for key in shown if not math.isnan(getattr(row, key))} == named


def test_settings_of_arms_are_checked() -> None:
    assert set(NAMES) < set(ARMS)
    with pytest.raises(ValueError, match="depths"):
        LatSettings(depths=(1.0,))
    with pytest.raises(ValueError, match="depths"):
        LatSettings(depths=(), embedding=False)
    with pytest.raises(ValueError, match="depths"):
        CircuitBreakerSettings(depths=())
    with pytest.raises(ValueError, match="beta"):
        DpoSettings(beta=0)
