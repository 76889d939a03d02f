"""Arms beside R2D2 on tiny models: inner attacks and terms against plain reference loops."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from robust_cases import SETTINGS, drawn_of, entropy_sum, logprobs, shifted, tokens, trainee_of
from torch import Tensor
from transformers import LlamaConfig

from caryatid.models.layout import decoder_layers
from caryatid.training.arm_settings import CircuitBreakerSettings, LatSettings
from caryatid.training.cat import cat_terms
from caryatid.training.circuit_breakers import circuit_breaker_terms
from caryatid.training.dpo import dpo_terms
from caryatid.training.lat import lat_terms
from caryatid.training.perturb import EMBEDDING, perturbed, places, within
from tiny import tiny_loaded


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
