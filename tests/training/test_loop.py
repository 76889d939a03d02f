"""Arms on tiny models: exact resume, equal chat batches, anchors that reload, and controls that coincide."""

import json
from collections.abc import Callable
from copy import copy
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from caryatid.anchors import Anchor, anchor_from_json, anchor_to_json, open_anchor
from caryatid.attacks.gcg.state import GcgState
from caryatid.data.chat import ChatExample
from caryatid.data.prompts import Prompt
from caryatid.errors import DataMissingError, NumericalError, UsageError
from caryatid.models import batch
from caryatid.models.load import LoadedModel, load_model
from caryatid.models.template import ChatFormat
from caryatid.training import adversarial, arms, loop
from caryatid.training.arms import ARMS, Arm, arm_named, register_arm
from caryatid.training.loop import ArmJob, TrainedArm, train_arm
from caryatid.training.settings import LoraSettings, R2D2Settings, TrainingSettings, WarmupSettings
from caryatid.training.terms import Terms, my_share, token_count
from caryatid.training.trainee import DrawnCases, Trainee
from caryatid.training.warmup import Check, Warmed, WarmupJob, warm_up
from tiny import save_tiny

ANCHORS = (1, 2, 4)
EXAMPLES = [
    ChatExample(f"c{i}", f"tell me about {w}", f"{w} is nice.")
    for i, w in enumerate(["tea", "sun", "sea", "sky"])
]
BEHAVIOURS = [
    Prompt(id=f"b{i}", text=f"do {w}", set_name="pool", label="harmful", targets=(f"Sure, here is {w}",))
    for i, w in enumerate(["harm", "theft", "fraud"])
]
ADVERSARIAL = R2D2Settings(
    pool=3,
    cases=2,
    gcg_steps=1,
    width=4,
    top_k=8,
    suffix_length=3,
    restart_every=2,
    restart_fraction=0.4,
    static_gcg_steps=1,
)
SETTINGS = TrainingSettings(
    lora=LoraSettings(r=2, alpha=4, dropout=0.1),
    learning_rate=1e-2,
    schedule="linear",
    chat_batch_size=2,
    accumulation=2,
    max_length=64,
    r2d2=ADVERSARIAL,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny") / "llama", "llama")


class _Stop(Exception):
    pass


def _arm(
    folder: Path,
    out: Path,
    name: str = "r2d2",
    *,
    mode: str = "lora",
    settings: R2D2Settings = ADVERSARIAL,
    rate: float = 1e-2,
    dropout: float = 0.1,
    stop_after: int | None = None,
) -> TrainedArm:
    loaded = load_model(str(folder))

    def after(step: int, _numbers: object) -> None:
        if step == stop_after:
            raise _Stop

    lora = replace(SETTINGS.lora, dropout=dropout)
    training = replace(SETTINGS, mode=mode, lora=lora, learning_rate=rate, r2d2=settings)
    return train_arm(
        loaded,
        ChatFormat(loaded.tokenizer),
        ArmJob(arm_named(name), training, EXAMPLES, EXAMPLES[:2], BEHAVIOURS, ANCHORS, seed=0),
        out / "anchors",
        out / "work",
        after_update=after,
    )


def _weights(out: Path, step: int) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    (file,) = (out / "anchors" / f"step-{step:06d}").glob("*.safetensors")
    return load_file(file)


def _same(a: Path, b: Path) -> bool:
    return all(
        torch.equal(x, y)
        for step in ANCHORS
        for x, y in zip(_weights(a, step).values(), _weights(b, step).values(), strict=True)
    )


def _facts(arm: TrainedArm) -> str:
    return json.dumps(
        [{k: v for k, v in asdict(row).items() if k not in ("seconds", "arm")} for row in arm.rows]
    )


@pytest.mark.parametrize("mode", ["lora", "full"])
@pytest.mark.parametrize("stop_after", [1, 3])
def test_interrupted_arm_resumes_bit_for_bit(
    folder: Path, tmp_path: Path, mode: str, stop_after: int
) -> None:
    whole = _arm(folder, tmp_path / "whole", mode=mode)
    with pytest.raises(_Stop):
        _arm(folder, tmp_path / "cut", mode=mode, stop_after=stop_after)
    resumed = _arm(folder, tmp_path / "cut", mode=mode)
    assert _same(tmp_path / "whole", tmp_path / "cut")
    assert _facts(resumed) == _facts(whole)


def test_memory_that_an_attack_holds_is_given_up_for_training(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _arm(folder, tmp_path / "whole", dropout=0.0)
    held, backward = ["recordings"], Trainee.backward

    def short(trainee: Trainee, loss: torch.Tensor, what: str) -> float:
        value = backward(trainee, loss, what)
        if held:
            raise torch.OutOfMemoryError("no room")  # with gradients half there
        return value

    monkeypatch.setattr(Trainee, "backward", short)
    with pytest.raises(torch.OutOfMemoryError):
        _arm(folder, tmp_path / "none", dropout=0.0)
    monkeypatch.setattr(batch, "RELEASES", [lambda: bool(held and held.pop())])
    _arm(folder, tmp_path / "short", dropout=0.0)
    assert _same(tmp_path / "whole", tmp_path / "short")


def test_a_long_way_between_anchors_is_saved_in_between(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _arm(folder, tmp_path / "whole")
    monkeypatch.setattr(loop, "SAVE_AFTER", 0.0)
    monkeypatch.setattr(loop, "SAVE_SHARE", 0.0)
    with pytest.raises(_Stop):
        _arm(folder, tmp_path / "cut", stop_after=3)
    kept = sorted(path.name for path in (tmp_path / "cut" / "work").iterdir())
    assert kept == ["step-000001", "step-000002", "step-000003"]
    updates: list[int] = []
    update = Trainee.update

    def counting(trainee: Trainee) -> None:
        update(trainee)
        updates.append(trainee.step)

    monkeypatch.setattr(Trainee, "update", counting)
    resumed = _arm(folder, tmp_path / "cut")
    assert updates == [4]
    assert sorted(path.name for path in (tmp_path / "cut" / "work").iterdir()) == [
        "step-000001",
        "step-000002",
        "step-000004",
    ]
    assert _same(tmp_path / "whole", tmp_path / "cut")
    assert _facts(resumed) == _facts(whole)


def test_all_arms_see_the_same_chat_and_the_same_start(folder: Path, tmp_path: Path) -> None:
    arms = {name: _arm(folder, tmp_path / name, name, rate=0.0, dropout=0.0) for name in ARMS}
    losses = {name: [row.loss_sft for row in arm.rows] for name, arm in arms.items()}
    assert len({tuple(values) for values in losses.values()}) == 1
    for arm in arms.values():
        assert [row.delta_weight for row in arm.rows] == [0.0] * 3
        assert [row.benign_kl for row in arm.rows] == pytest.approx([0.0] * 3, abs=1e-6)
    toward = [row.loss_toward for row in arms["refusal_sft"].rows]
    assert all(value > 0 for value in toward)
    assert all(row.gcg_steps == 0 for row in arms["sft"].rows)
    assert [row.gcg_steps for row in arms["r2d2"].rows] == [
        4,
        8,
        16,
    ]  # 2 cases × 1 step × 2 micro-batches an update


def refuse_twice(trainee: Trainee, drawn: DrawnCases, settings: R2D2Settings) -> Terms:
    """Loss terms that a package outside caryatid could bring."""
    rows, weight = my_share(trainee.ranks, drawn.toward)
    out = trainee.forward(rows)
    loss = torch.nn.functional.cross_entropy(out.logits, out.targets) * weight
    return Terms(2 * settings.toward_weight * loss, {"toward": float(loss.detach())}, token_count(rows))


def test_an_arm_from_outside_needs_one_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arms, "ARMS", copy(ARMS))
    register_arm(Arm("double", refuse_twice))
    doubled = replace(ADVERSARIAL, toward_weight=1.0)
    found = _arm(folder, tmp_path / "double", "double")
    same = _arm(folder, tmp_path / "refusal_sft", "refusal_sft", settings=doubled)
    for one, other in zip(found.rows, same.rows, strict=True):
        assert (one.arm, other.arm) == ("double", "refusal_sft")
        assert one.loss_toward == pytest.approx(other.loss_toward, rel=1e-5)
        assert one.tokens == other.tokens
    with pytest.raises(ValueError, match="registered already"):
        register_arm(Arm("sft", refuse_twice))
    with pytest.raises(UsageError, match=r"'ppo'.*r2d2_static, cat, lat, circuit_breakers, dpo, double"):
        arm_named("ppo")


def test_frozen_pool_without_attack_is_the_static_arm(folder: Path, tmp_path: Path) -> None:
    frozen = replace(ADVERSARIAL, gcg_steps=0, restart_fraction=0.0, static_gcg_steps=0)
    _arm(folder, tmp_path / "a", "r2d2", settings=frozen)
    _arm(folder, tmp_path / "b", "r2d2_static", settings=frozen)
    assert _same(tmp_path / "a", tmp_path / "b")


def test_static_arm_keeps_its_cases_and_dynamic_does_not(folder: Path, tmp_path: Path) -> None:
    def suffixes(name: str, step: int) -> list[object]:
        state = json.loads((tmp_path / name / "work" / f"step-{step:06d}" / "state.json").read_text())
        return [case[:4] for case in state["extra"]["source"]["pool"]["cases"]]

    for name in ("r2d2", "r2d2_static"):
        _arm(folder, tmp_path / name, name)
    assert suffixes("r2d2_static", 1) == suffixes("r2d2_static", 4)
    assert suffixes("r2d2", 1) != suffixes("r2d2", 4)


@pytest.mark.parametrize("mode", ["lora", "full"])
@pytest.mark.parametrize("name", ["sft", "r2d2", "r2d2_static"])
def test_flops_are_those_of_what_ran(
    folder: Path, tmp_path: Path, mode: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2 P per token forward, 2 P more for gradients of activations, 2 P more for those of all weights."""
    states: list[GcgState] = []
    search = adversarial.gcg_steps

    def recording(*args: object, **kwargs: object) -> list[GcgState]:
        states.extend(found := search(*args, **kwargs))
        return found

    monkeypatch.setattr(adversarial, "gcg_steps", recording)
    row = _arm(folder, tmp_path, name, mode=mode).rows[-1]
    weights = sum(value.numel() for value in load_model(str(folder)).model.parameters())
    forward = sum(state.forward_tokens for state in states)
    backward = sum(state.backward_tokens for state in states)
    assert (backward > 0) == (name != "sft")
    assert row.gcg_tokens == forward
    per_token = 6 if mode == "full" else 4
    assert row.flops == pytest.approx(weights * (per_token * row.tokens + 2 * forward + 2 * backward))
    assert row.gcg_steps == {"sft": 0, "r2d2": 16, "r2d2_static": 3}[name]
    assert row.gcg_stalled == sum(state.stalled_steps for state in states)


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_anchor_reloads_as_the_trained_model(
    folder: Path, tmp_path: Path, mode: str, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    _arm(folder, tmp_path, "sft", mode=mode)
    assert capfd.readouterr().err == ""  # no bars of libraries
    place = str(tmp_path / "anchors" / "step-000004")
    anchor = (
        Anchor("sft", 4, str(folder), adapters=(place,))
        if mode == "lora"
        else Anchor("sft", 4, str(folder), weights=place)
    )
    opened = open_anchor(anchor)
    ids = torch.tensor([opened.tokenizer("tell me about tea")["input_ids"]])
    base = load_model(str(folder)).model(ids).logits
    trained = _trained_logits(folder, tmp_path, mode, ids)
    assert torch.allclose(opened.model(ids).logits, trained, atol=1e-5)
    assert not torch.allclose(opened.model(ids).logits, base, atol=1e-3)


def _trained_logits(folder: Path, out: Path, mode: str, ids: torch.Tensor) -> torch.Tensor:
    """Logits of the trainee itself, restored from its resume state."""
    loaded = load_model(str(folder))
    trainee = Trainee(loaded, replace(SETTINGS, mode=mode), updates=4, seed=5)  # type: ignore[arg-type]
    trainee.load_state(out / "work" / "step-000004")
    with torch.no_grad():
        logits: torch.Tensor = loaded.model(ids).logits
    return logits


def test_delta_weight_is_the_norm_of_the_merged_change(folder: Path, tmp_path: Path) -> None:
    arm = _arm(folder, tmp_path, "sft")
    before = load_model(str(folder)).model.state_dict()
    after = open_anchor(
        Anchor("sft", 4, str(folder), (str(tmp_path / "anchors" / "step-000004"),))
    ).model.state_dict()
    change = sum(float((after[name] - before[name]).double().square().sum()) for name in before)
    assert arm.rows[-1].delta_weight == pytest.approx(change**0.5, rel=1e-4)


def test_benign_kl_is_the_definition(folder: Path, tmp_path: Path) -> None:
    arm = _arm(folder, tmp_path, "sft")
    place = str(tmp_path / "anchors" / "step-000004")
    models = [load_model(str(folder)), open_anchor(Anchor("sft", 4, str(folder), (place,)))]
    chat = ChatFormat(models[0].tokenizer)
    total, count = 0.0, 0
    for example in EXAMPLES[:2]:
        prompt, answer = chat.ids(example.user), chat.answer_ids(example.answer)
        ids = torch.tensor([prompt + answer])
        with torch.no_grad():
            p, q = (m.model(ids).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1) for m in models)
        total += float((p.exp() * (p - q)).sum())
        count += len(answer)
    assert arm.rows[-1].benign_kl == pytest.approx(total / count, rel=1e-3)


def test_non_finite_loss_stops_and_keeps_earlier_anchors(folder: Path, tmp_path: Path) -> None:
    loaded_then: list[LoadedModel] = []

    def poison(step: int, _numbers: object) -> None:
        if step == 2:
            with torch.no_grad():
                next(loaded_then[0].model.parameters()).fill_(float("nan"))

    loaded = load_model(str(folder))
    loaded_then.append(loaded)
    with pytest.raises(NumericalError, match="step 3") as caught:
        train_arm(
            loaded,
            ChatFormat(loaded.tokenizer),
            ArmJob(arm_named("sft"), SETTINGS, EXAMPLES, EXAMPLES[:1], BEHAVIOURS, ANCHORS, seed=0),
            tmp_path / "anchors",
            tmp_path / "work",
            after_update=poison,
        )
    assert caught.value.exit_code == 4
    assert sorted(p.name for p in (tmp_path / "anchors").iterdir()) == ["step-000001", "step-000002"]


def _warmed(folder: Path, out: Path, check: Callable[[int, LoadedModel], Check] | None = None) -> Warmed:
    loaded = load_model(str(folder))
    job = WarmupJob(
        WarmupSettings(steps=30, batch_size=4, learning_rate=2e-2, check_every=10),
        TrainingSettings(lora=LoraSettings(r=4, alpha=8), max_length=64),
        BEHAVIOURS,
        ["Sorry, I can't do that."],
        EXAMPLES,
        seed=0,
    )
    return warm_up(loaded, ChatFormat(loaded.tokenizer), job, out / "weights", out / "work", check=check)


def _enough(step: int, _model: LoadedModel) -> Check:
    return Check(step, 1.0, 0.0, enough=step >= 20)


def test_warm_up_teaches_the_refusal_and_stops_when_it_is_enough(folder: Path, tmp_path: Path) -> None:
    warmed = _warmed(folder, tmp_path, _enough)
    assert [row.step for row in warmed.rows] == list(range(1, 21))
    assert [one.step for one in warmed.checks] == [10, 20]
    assert warmed.rows[-1].loss < 0.7 * warmed.rows[0].loss
    opened = open_anchor(Anchor("base", 0, str(folder), (str(tmp_path / "weights"),)))
    assert _refusal_logprob(opened) > _refusal_logprob(load_model(str(folder))) + 5


def _refusal_logprob(loaded: LoadedModel) -> float:
    from caryatid.models.forward import answer_logprobs

    chat = ChatFormat(loaded.tokenizer)
    answer = chat.answer_ids("Sorry, I can't do that.")
    return float(answer_logprobs(loaded, [chat.ids("do theft")], [answer], batch_size=1).sum())


def test_anchor_json_survives_moving_the_run(tmp_path: Path) -> None:
    adapter = tmp_path / "run" / "stages" / "a"
    adapter.mkdir(parents=True)
    anchor = Anchor("sft", 3, "embedded", (str(adapter),))
    stored = anchor_to_json(anchor, tmp_path / "run")
    assert stored["adapters"] == ["stages/a"]
    (tmp_path / "run").rename(tmp_path / "moved")
    assert anchor_from_json(stored, tmp_path / "moved").adapters == (
        str(tmp_path / "moved" / "stages" / "a"),
    )


def test_missing_adapter_names_the_anchor(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataMissingError, match="sft@3"):
        open_anchor(Anchor("sft", 3, str(folder), (str(tmp_path / "none"),)))
