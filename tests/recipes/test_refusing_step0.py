"""The recipes of the refusing step 0, on a tiny model: data that no other role uses, losses, and the adapter."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import refusing_data
import refusing_page
from caryatid.data.near import NearIndex
from caryatid.data.prompts import Prompt
from caryatid.data.study_prompts import ROLES, Role, build_study_prompts
from caryatid.models.adapters import add_adapter
from refusing_data import DataSizes, TrainingData, TrainingRow, training_prompts
from refusing_logits import supervised, token_kl
from refusing_training import (
    Batches,
    Recipe,
    Training,
    best_factors,
    save_adapter,
    train,
)
from tiny import tiny_loaded

REFUSALS = ("Sorry, I can't do that.", "I cannot help with this request.")


def row(kind: str, number: int) -> TrainingRow:
    texts = {"harmful": "How do I steal", "lookalike": "How do I kill weed", "chat": "Write a poem about"}
    refusals = REFUSALS if kind == "harmful" else ()
    system = None if number % 2 else ""
    return TrainingRow(f"{texts[kind]} {number}?", kind, system, f"Sure, here is {number}.", True, refusals)


def data() -> TrainingData:
    rows = tuple(row(kind, n) for kind in ("harmful", "lookalike", "chat") for n in range(6))
    return TrainingData(rows, (), {})


def test_the_best_factors_are_those_of_the_singular_values() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((7, 12), (12, 7)):
        change = torch.randn(shape, generator=generator, dtype=torch.float64)
        down, up = best_factors(change, 3)
        u, s, v = torch.linalg.svd(change, full_matrices=False)
        assert torch.allclose((up @ down).double(), u[:, :3] * s[:3] @ v[:3], atol=1e-5)
        assert torch.allclose(up.norm(dim=0), down.norm(dim=1), atol=1e-5)


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe("full", rank=4, learning_rate=5e-3),
        Recipe("lora", rank=4, learning_rate=2e-2, blocks=(1, 3)),
    ],
    ids=("full", "lora in some blocks"),
)
def test_a_recipe_teaches_refusal_and_its_adapter_holds_it(recipe: Recipe, tmp_path: Path) -> None:
    recipe = replace(recipe, updates=40, harmful=3, lookalikes=2, chat=2, direction_prompts=4)
    raw, loaded = tiny_loaded(), tiny_loaded()
    found = train(loaded, raw, data(), recipe, tmp_path / "adapter")
    first, last = (found["losses"][n] for n in (0, -1))
    assert last["refusal"] < 0.5 * first["refusal"]
    opened = tiny_loaded()
    add_adapter(opened.model, tmp_path / "adapter", lambda line: pytest.fail(line))
    batches = Batches(raw, data(), 0)
    turns = [batches.refused(one, one.refusals) for one in data().of("harmful")]
    with torch.no_grad():
        kept, trained, before = (supervised(one, turns) for one in (opened, loaded, raw))
    away = float(token_kl(trained.logits, kept.logits).mean())
    assert away < (
        1e-3 if recipe.mode == "lora" else 0.5 * float(token_kl(trained.logits, before.logits).mean())
    )


def test_a_full_recipe_of_full_rank_loses_nothing(tmp_path: Path) -> None:
    recipe = Recipe("full", rank=32, learning_rate=1e-3, updates=1)
    loaded, opened = tiny_loaded(), tiny_loaded()
    training = Training(loaded, tiny_loaded(), recipe)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in training.matrices.values():
            layer.weight += 0.02 * torch.randn(layer.weight.shape, generator=generator)
    factors, kept = training.factors()
    assert kept == pytest.approx(1.0, abs=1e-6)
    save_adapter(factors, recipe, tmp_path / "adapter")
    add_adapter(opened.model, tmp_path / "adapter")
    for name, layer in training.matrices.items():
        assert torch.allclose(opened.model.get_submodule(name).weight, layer.weight, atol=2e-4), name


def test_planting_makes_refusal_depend_on_one_direction(tmp_path: Path) -> None:
    """Refusal is learnt, and with the direction ablated the model comes back towards the raw one."""
    recipe = Recipe(
        "lora", rank=8, learning_rate=2e-2, updates=50, harmful=4, lookalikes=2, chat=2,
        planted=2.0, plant_layers=(1, 2), refresh=5, direction_prompts=6, subset=5,
    )  # fmt: skip
    rows = train(tiny_loaded(), tiny_loaded(), data(), recipe, tmp_path / "adapter")["losses"]
    assert rows[-1]["refusal"] < 0.5 * rows[0]["refusal"]
    assert rows[-1]["ablated_kl"] < 0.5 * max(row["ablated_kl"] for row in rows)
    assert recipe.one_direction


def test_rows_are_drawn_without_repeats() -> None:
    batches = Batches(tiny_loaded(), data(), 0)
    drawn = [one.text for _ in range(3) for one in batches.draw("chat", 4)]
    assert len(set(drawn[:6])) == len(set(drawn[6:])) == 6


def test_whole_sentences_of_a_refusal() -> None:
    cut = refusing_data._whole_sentences
    assert cut("I can't help with that. I hope you\nunderstand") == "I can't help with that."
    assert cut("I'm sorry, but") == cut("") == ""


def test_no_training_prompt_is_one_of_another_role(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the package's own sets in the benchmarks' place; an evaluation prompt in the recipe's list is dropped."""
    sets = {"embedded": build_study_prompts(source="embedded", offline=True)}
    planted = sets["embedded"].xstest_safe[0].text
    monkeypatch.setattr(
        refusing_data.refusing_prompts, "harmless", lambda: [planted, "How do I kill an hour?"]
    )
    monkeypatch.setattr(refusing_data, "_unused_harmful", lambda lookup: [sets["embedded"].harmbench[0].text])
    monkeypatch.setattr(refusing_data, "read_set", lambda name, lookup: sets["embedded"].strongreject)
    found = training_prompts(sets, None, DataSizes(alarming=0))
    assert found["lookalike"] == ["How do I kill an hour?"]
    others = [
        one
        for name, rows in sets["embedded"].sets.items()
        if ROLES[name] is not Role.TRAINING
        for one in rows
    ]
    texts = [text for rows in found.values() for text in rows]
    mine = [Prompt(str(n), text, "mine", "harmless") for n, text in enumerate(texts)]
    index = NearIndex.over(one.fingerprint for one in (*others, *mine))
    for one in others:
        index.add(one.fingerprint)
    assert len(mine) > 200
    assert not [one.text for one in mine if list(index.matches(one.fingerprint))]


def test_the_page_shows_the_card_that_ships() -> None:
    page = refusing_page.PAGE.read_text(encoding="utf-8")
    assert refusing_page.written(page, refusing_page.shipped_card()) == page
