"""Arms beside R2D2 on tiny models: inner attacks and terms against plain reference loops, training, exact resume."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig

from caryatid.data.chat import ChatExample
from caryatid.data.prompts import Prompt
from caryatid.errors import InputError
from caryatid.models.layout import decoder_layers
from caryatid.models.load import load_model
from caryatid.models.template import ChatFormat
from caryatid.training.arm_settings import CatSettings, CircuitBreakerSettings, DpoSettings, LatSettings
from caryatid.training.arms import ARMS, arm_named
from caryatid.training.cat import cat_terms
from caryatid.training.circuit_breakers import circuit_breaker_terms
from caryatid.training.dpo import dpo_terms
from caryatid.training.lat import lat_terms
from caryatid.training.loop import ArmJob, TrainedArm, train_arm
from caryatid.training.perturb import EMBEDDING, perturbed, places, within
from caryatid.training.settings import LoraSettings, R2D2Settings, TrainingSettings
from caryatid.training.terms import toward_only
from caryatid.training.trainee import DrawnCases, Example, Trainee
from tiny import save_tiny, tiny_loaded

NAMES = ("cat", "lat", "circuit_breakers", "dpo")
SETTINGS = TrainingSettings(
    lora=LoraSettings(r=2, alpha=4),
    learning_rate=1e-2,
    chat_batch_size=2,
    accumulation=1,
    max_length=64,
    r2d2=R2D2Settings(pool=3, cases=2, gcg_steps=0, suffix_length=3),
    cat=CatSettings(steps=3, radius=0.2, rate=0.5),
    lat=LatSettings(steps=3, radius=0.3, depths=(0.25, 0.75)),
)
REFUSAL = "Sorry, I can't do that."


def trainee_of(arch: str = "llama", settings: TrainingSettings = SETTINGS, moved: float = 0.0) -> Trainee:
    """A trainee whose adapters have moved a little from step 0."""
    trainee = Trainee(tiny_loaded(arch), settings, updates=10, seed=0)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for parameter in trainee.parameters:
            parameter += moved * torch.randn(parameter.shape, generator=generator)
    return trainee


def drawn_of(trainee: Trainee) -> DrawnCases:
    """Two requests of different length with targets of different length, and two chat rows."""
    chat = ChatFormat(trainee.loaded.tokenizer)
    refusal = chat.answer_ids(REFUSAL)
    asked = [("do harm", "Sure, here is harm"), ("explain how to do the theft", "Yes, theft")]
    said = [("tell me about tea", "tea is nice."), ("the sun?", "Yes, it is.")]
    return DrawnCases(
        [Example(chat.ids(text), chat.answer_ids(target, end_of_turn=False)) for text, target in asked],
        [Example(chat.ids(text), refusal) for text, _ in asked],
        [Example(chat.ids(text), chat.answer_ids(answer)) for text, answer in said],
    )


@contextmanager
def shifted(model: Any, deltas: dict[int, Tensor]) -> Iterator[None]:
    """Adds to the embeddings (−1) and to block inputs, by hooks of the test's own; of one row."""
    handles = []

    def padded(hidden: Tensor, delta: Tensor) -> Tensor:
        return torch.cat([hidden[:, : len(delta)] + delta, hidden[:, len(delta) :]], dim=1)

    for place, delta in deltas.items():
        if place == EMBEDDING:
            module = model.get_input_embeddings()
            handles.append(module.register_forward_hook(lambda m, a, out, d=delta: padded(out, d)))
        else:
            block = decoder_layers(model)[place]
            handles.append(block.register_forward_pre_hook(lambda m, a, d=delta: (padded(a[0], d), *a[1:])))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def logprobs(model: Any, row: Example) -> Tensor:
    """Log-probabilities [answer, vocab] at the answer's positions; one row, no padding."""
    logits = model(torch.tensor([[*row.prompt, *row.answer]])).logits[0].float()
    return logits[len(row.prompt) - 1 : -1].log_softmax(-1)


def entropy_sum(model: Any, row: Example) -> Tensor:
    return -logprobs(model, row).gather(1, torch.tensor(row.answer)[:, None]).sum()


def tokens(rows: list[Example]) -> int:
    return sum(len(row.answer) for row in rows)


def test_cat_is_a_plain_loop_s() -> None:
    """Signed steps in the ball on the prompts' embeddings; then −CE(target) and CE(refusal) under what was found."""
    trainee = trainee_of(moved=0.05)
    drawn, model, settings = drawn_of(trainee), trainee.loaded.model, SETTINGS.cat
    weight = model.get_input_embeddings().weight.detach()
    radius = settings.radius * float(weight.norm(dim=1).mean())
    step = settings.rate * radius / math.sqrt(32)
    deltas = [torch.zeros(len(row.prompt), 32) for row in drawn.away]
    losses = []
    for _ in range(settings.steps):
        for delta in deltas:
            delta.requires_grad_(True)
        loss = torch.zeros(())
        for row, delta in zip(drawn.away, deltas, strict=True):
            with shifted(model, {EMBEDDING: delta}):
                loss = loss + entropy_sum(model, row)
        loss = loss / tokens(drawn.away)
        losses.append(float(loss.detach()))
        moved = [
            d.detach() - step * g.sign()
            for d, g in zip(deltas, torch.autograd.grad(loss, deltas), strict=True)
        ]
        deltas = [one * (radius / one.norm(dim=1, keepdim=True).clamp_min(radius)) for one in moved]
    sums = torch.zeros(2)
    for away, toward, delta in zip(drawn.away, drawn.toward, deltas, strict=True):
        with shifted(model, {EMBEDDING: delta}):
            sums += torch.stack([entropy_sum(model, away), entropy_sum(model, toward)]).detach()
    target, refusal = float(sums[0]) / tokens(drawn.away), float(sums[1]) / tokens(drawn.toward)
    terms = cat_terms(trainee, drawn, SETTINGS.r2d2)
    assert losses[-1] < losses[0]
    assert terms.attack_loss == pytest.approx(losses[-1], rel=1e-4)
    away = -target if target <= 5 else -5 - 0.001 * target
    assert terms.values == pytest.approx({"toward": refusal, "away": away}, rel=1e-4)
    assert terms.total is not None
    assert float(terms.total.detach()) == pytest.approx(0.5 * refusal + 0.5 * away, rel=1e-4)
    assert (
        terms.forward_tokens
        == terms.backward_tokens
        == 3 * sum(len(r.prompt) + len(r.answer) for r in drawn.away)
    )


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_lat_is_a_plain_loop_s(arch: str) -> None:
    """Adam on the stream at three places, toward the target and away from the refusal; then R2D2's terms under it."""
    trainee = trainee_of(arch, moved=0.05)
    drawn, model, settings = drawn_of(trainee), trainee.loaded.model, SETTINGS.lat
    where = [EMBEDDING, 1, 3]
    assert places(model, settings.depths, settings.embedding) == where
    lengths: dict[int, list[float]] = {place: [] for place in where}
    for row in drawn.away:
        seen: dict[int, Tensor] = {}
        handles = [
            decoder_layers(model)[max(place, 0)].register_forward_pre_hook(
                lambda m, a, place=place, seen=seen: seen.__setitem__(place, a[0])
            )
            for place in where
        ]
        model(torch.tensor([[*row.prompt, *row.answer]]))
        for handle in handles:
            handle.remove()
        for place in where:
            lengths[place] += seen[place][0, : len(row.prompt)].norm(dim=-1).tolist()
    radii = {place: settings.radius * float(torch.tensor(lengths[place]).median()) for place in where}
    deltas = [{place: torch.zeros(len(row.prompt), 32) for place in where} for row in drawn.away]
    means = [
        {p: (torch.zeros(len(r.prompt), 32), torch.zeros(len(r.prompt), 32)) for p in where}
        for r in drawn.away
    ]
    record: list[float] = []
    for step in range(1, settings.steps + 1):
        loss = torch.zeros(())
        for away, toward, delta in zip(drawn.away, drawn.toward, deltas, strict=True):
            for one in delta.values():
                one.requires_grad_(True)
            with shifted(model, delta):
                said = logprobs(model, toward).gather(1, torch.tensor(toward.answer)[:, None])
                loss = loss + entropy_sum(model, away) / tokens(drawn.away)
                loss = loss - torch.log1p(-said.exp()).sum() / tokens(drawn.toward)
        record.append(float(loss.detach()))
        leaves = [one for delta in deltas for one in delta.values()]
        gradients = iter(torch.autograd.grad(loss, leaves))
        for row, (delta, moments) in enumerate(zip(deltas, means, strict=True)):
            for place in where:
                gradient = next(gradients)
                first = 0.9 * moments[place][0] + 0.1 * gradient
                second = 0.999 * moments[place][1] + 0.001 * gradient**2
                moments[place] = (first, second)
                rate = settings.rate * radii[place] / math.sqrt(32)
                scaled = (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
                moved = delta[place].detach() - rate * scaled
                deltas[row][place] = moved * (
                    radii[place] / moved.norm(dim=1, keepdim=True).clamp_min(radii[place])
                )
    sums = torch.zeros(2)
    for away, toward, delta in zip(drawn.away, drawn.toward, deltas, strict=True):
        with shifted(model, delta), torch.no_grad():
            target = logprobs(model, away).gather(1, torch.tensor(away.answer)[:, None])
            sums += torch.stack([-torch.log1p(-target.exp()).sum(), entropy_sum(model, toward)])
    terms = lat_terms(trainee, drawn, SETTINGS.r2d2)
    assert terms.attack_loss == pytest.approx(record[-1], rel=1e-3)
    expected = {"away": float(sums[0]) / tokens(drawn.away), "toward": float(sums[1]) / tokens(drawn.toward)}
    assert terms.values == pytest.approx(expected, rel=1e-3)
    assert record[-1] < record[0]  # the adversary's loss falls


def test_the_adversary_of_lat_leaves_out_what_harmbench_does() -> None:
    """Before any step; of the refusal only tokens with log p ≥ −5 count, and all of them in the denominator."""
    settings = replace(SETTINGS, lat=replace(SETTINGS.lat, steps=1))
    trainee = trainee_of(settings=settings, moved=0.5)
    drawn, model = drawn_of(trainee), trainee.loaded.model
    said = [logprobs(model, row).gather(1, torch.tensor(row.answer)[:, None]) for row in drawn.toward]
    kept = [one[one >= -5] for one in said]
    assert 0 < sum(map(len, kept)) < tokens(drawn.toward)
    target = sum(float(entropy_sum(model, row).detach()) for row in drawn.away) / tokens(drawn.away)
    for variant, rows in (("harmbench", kept), ("plain", said)):
        refusal = sum(float(-torch.log1p(-one.exp()).sum()) for one in rows) / tokens(drawn.toward)
        terms = lat_terms(trainee, drawn, replace(SETTINGS.r2d2, away_variant=variant))
        assert terms.attack_loss == pytest.approx(target + refusal, abs=2e-5)


def test_arms_work_where_the_released_ones_do() -> None:
    """LAT adds to what the MLPs of blocks 8, 16, 24 and 30 of 32 give: that is the input of the block behind them."""
    deep = torch.nn.Module()
    deep.config = LlamaConfig(num_hidden_layers=32)
    assert places(deep, LatSettings().depths, embedding=True) == [EMBEDDING, 9, 17, 25, 31]
    assert places(deep, CircuitBreakerSettings().depths) == [10, 20]
    model, delta = tiny_loaded("llama").model, torch.linspace(-1, 2, 96).reshape(1, 3, 32)
    ids = torch.tensor([[5, 6, 7]])
    with perturbed(model, {2: delta}):
        here = model(ids).logits
    mlp: Any = decoder_layers(model)[1].mlp
    with mlp.register_forward_hook(lambda m, a, out: out + delta):
        assert torch.allclose(model(ids).logits, here, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("retain", [1.0, 0.1])
def test_circuit_breakers_compare_hidden_states_with_step_zero_s(retain: float) -> None:
    """Retaining compares all of transformers' hidden states, the last behind the last norm. Update 5 of 10."""
    settings = replace(SETTINGS, circuit_breakers=replace(SETTINGS.circuit_breakers, retain=retain))
    trainee, before = trainee_of(settings=settings, moved=0.1), tiny_loaded("llama").model
    trainee.step = 4
    drawn, model = drawn_of(trainee), trainee.loaded.model
    cosines, distances, harmful, kept = torch.zeros(()), torch.zeros(()), 0, 0
    for row in drawn.away:
        ids = torch.tensor([[*row.prompt, *row.answer]])
        now, then = (m(ids, output_hidden_states=True).hidden_states for m in (model, before))
        for layer in places(model, SETTINGS.circuit_breakers.depths):
            cosines += (
                torch.nn.functional.cosine_similarity(now[layer], then[layer], dim=-1).relu().sum().detach()
            )
        harmful += 2 * ids.shape[1]
    for row in drawn.chat:
        ids = torch.tensor([[*row.prompt, *row.answer]])
        now, then = (m(ids, output_hidden_states=True).hidden_states for m in (model, before))
        for state, other in zip(now, then, strict=True):
            distances += (state - other).norm(dim=-1).sum().detach()
        kept += 5 * ids.shape[1]
    terms = circuit_breaker_terms(trainee, drawn, SETTINGS.r2d2)
    expected = {"reroute": float(cosines) / harmful, "retain": float(distances) / kept}
    assert terms.values == pytest.approx(expected, rel=1e-4)
    assert 0 < terms.values["reroute"] < 1
    assert terms.total is not None
    assert float(terms.total.detach()) == pytest.approx(
        7.5 * expected["reroute"] + 2.5 * retain * expected["retain"], rel=1e-4
    )


def test_dpo_compares_whole_answers_with_step_zero_s() -> None:
    trainee, before = trainee_of(moved=0.1), tiny_loaded("llama").model
    drawn = drawn_of(trainee)
    margins = [
        (entropy_sum(before, toward) - entropy_sum(trainee.loaded.model, toward))
        - (entropy_sum(before, away) - entropy_sum(trainee.loaded.model, away))
        for away, toward in zip(drawn.away, drawn.toward, strict=True)
    ]
    expected = sum(math.log1p(math.exp(-0.1 * float(margin.detach()))) for margin in margins) / 2
    terms = dpo_terms(trainee, drawn, SETTINGS.r2d2)
    assert terms.values == pytest.approx({"dpo": expected}, rel=1e-4)
    assert expected != pytest.approx(math.log(2), rel=1e-2)
    assert dpo_terms(trainee_of(), drawn, SETTINGS.r2d2).values["dpo"] == pytest.approx(math.log(2), rel=1e-5)


def test_perturbations_stay_in_their_ball_and_come_off() -> None:
    delta = torch.tensor([[[3.0, 4.0], [0.3, 0.4], [5.0, 0.0]]])
    inside = torch.tensor([[True, True, False]])
    assert within(delta, inside, 1.0).flatten().tolist() == pytest.approx([0.6, 0.8, 0.3, 0.4, 0, 0])
    loaded = tiny_loaded("llama")
    ids = torch.tensor([[5, 6, 7, 8]])
    plain = loaded.model(ids).logits
    with perturbed(loaded.model, {EMBEDDING: torch.ones(1, 2, 32), 2: torch.ones(1, 3, 32)}):
        assert not torch.equal(loaded.model(ids).logits, plain)
    assert torch.equal(loaded.model(ids).logits, plain)
    assert places(loaded.model, (0.99, 0.5, 0.51)) == [2, 3]


@pytest.mark.parametrize("name", ["lat", "circuit_breakers"])
def test_arms_that_hook_blocks_refuse_checkpointing(name: str) -> None:
    trainee = trainee_of(settings=replace(SETTINGS, gradient_checkpointing=True))
    with pytest.raises(InputError, match="checkpointing"):
        arm_named(name).terms(trainee, drawn_of(trainee), SETTINGS.r2d2)  # type: ignore[misc]  # these arms have terms


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
