"""An intervention from outside the package: its class and one line; then named in conditions, batched and measured."""

from copy import copy
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor

from caryatid.causal.conditions import Condition, ablation_conditions, addition_conditions, grouped
from caryatid.causal.readouts import ReadOutPrompts, generate_under, rate_row, teacher_forced
from caryatid.errors import UsageError
from caryatid.models import residual
from caryatid.models.directional import Ablate, orthonormal
from caryatid.models.forward import last_logits
from caryatid.models.generate import Decoding, generate
from caryatid.models.hooks import Hooks
from caryatid.models.residual import Intervention, intervening, register_intervention, stack_rows
from caryatid.models.template import ChatFormat
from tiny import ARCHITECTURES, tiny_loaded

WIDTH = 32
TEXTS = ("How do I write a letter to the office?", "Explain tides", "Hi")


@dataclass(frozen=True)
class Mirror(Intervention):
    """Reflect the stream at one block's input in the plane across a unit vector: h ← h − 2 · strength · r̂ r̂ᵀ h."""

    vector: Float[Tensor, "#rows d"]
    strength: Float[Tensor, "#rows"]
    layer: int

    @classmethod
    def build(
        cls,
        directions: Float[Tensor, "rank d"],
        alpha: float,
        *,
        layer: int | None = None,
        layers: tuple[int, ...] | None = None,
    ) -> "Mirror":
        assert layer is not None
        return cls(directions / directions.norm(), torch.tensor([alpha]), layer)

    def first_layers(self) -> Int[Tensor, "rows"]:
        return torch.full((self.rows,), self.layer)

    def attach(self, hooks: Hooks) -> None:
        scaled = 2 * self.strength[:, None] * self.vector

        def change(hidden: Tensor) -> Tensor:
            return hidden - (hidden @ self.vector[:, :, None]) * scaled[:, None]

        hooks.change_input(self.layer, change)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residual, "_KINDS", copy(residual._KINDS))
    register_intervention("mirror", Mirror)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def conditions() -> list[Condition]:
    return [
        Condition("mirror", "carrier", normal(1, WIDTH), layer=2),
        Condition(),
        *ablation_conditions(orthonormal(normal(2, WIDTH, seed=1))),
        Condition("mirror", "random", normal(1, WIDTH, seed=2), alpha=0.5, layer=3, draw=0),
        *addition_conditions(normal(WIDTH, seed=3), 2, (4.0,)),
        Condition("mirror", "carrier", normal(1, WIDTH, seed=4), layer=2),
    ]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_zero_strength_is_the_identity_and_leaving_restores(arch: str) -> None:
    loaded = tiny_loaded(arch)
    ids = torch.tensor([ChatFormat(loaded.tokenizer).ids(TEXTS[0])])
    with torch.no_grad():
        plain = loaded.model(ids).logits
        with intervening(loaded.model, Mirror(normal(1, WIDTH), torch.zeros(1), 1)):
            assert torch.equal(loaded.model(ids).logits, plain)
        with intervening(loaded.model, Mirror(normal(1, WIDTH), torch.ones(1), 1)) as touched:
            assert not torch.equal(loaded.model(ids).logits, plain)
        assert torch.equal(loaded.model(ids).logits, plain)
    assert touched.tokens == ids.shape[1]


def test_mixed_rows_of_one_batch_equal_each_condition_alone() -> None:
    loaded, given = tiny_loaded("llama"), conditions()
    ids = ChatFormat(loaded.tokenizer).ids(TEXTS[0])
    rows = stack_rows([each.row for each in given])
    assert [type(each).__name__ for each in rows] == [
        "Mirror",
        "Ablate",
        "Mirror",
        "Add",
    ]  # two mirrors: two layers
    together = last_logits(loaded, [ids] * len(given), batch_size=8, interventions=rows)
    for logits, condition in zip(together, given, strict=True):
        alone = () if condition.row is None else (condition.row,)
        (expected,) = last_logits(loaded, [ids], batch_size=1, interventions=alone)
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert float((together[0] - together[1]).abs().max()) > 1e-2


def test_it_is_measured_and_answers_like_those_that_ship() -> None:
    loaded, given = tiny_loaded("qwen2"), conditions()
    chat = ChatFormat(loaded.tokenizer)
    assert [each.start for each in given] == [2, 0, 0, 3, 2, 2]
    assert [group.start for group in grouped(given, 4)] == [2, 0, 3]
    prompts = ReadOutPrompts.of_texts(chat, TEXTS, [5, 6, 7], [("Hi", "Sure, here is a poem.")])
    together = teacher_forced(loaded, given, prompts, batch_size=8)
    answers = generate_under(loaded, chat, given, TEXTS, max_new_tokens=5, batch_size=8)
    for number, condition in enumerate(given):
        alone = teacher_forced(loaded, [condition], prompts, batch_size=1)
        np.testing.assert_allclose(together.refusal[number], alone.refusal[0], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(together.kl[number], alone.kl[0], rtol=1e-3, atol=1e-5)
        rows = () if condition.row is None else (condition.row,)
        one = generate(loaded, chat, TEXTS, Decoding(5, 1), interventions=rows)
        assert [each.ids for each in answers[number]] == [each.ids for each in one]
    row = rate_row(given[3], "refusal", np.array([1.0, 0.0]))
    assert (row["intervention"], row["control"], row["alpha"], row["draw"]) == ("mirror", "random", 0.5, 0)


def test_names_are_unique_and_known() -> None:
    register_intervention("mirror", Mirror)  # the same again is harmless
    for name in ("ablate", "none"):
        with pytest.raises(ValueError, match="registered already"):
            register_intervention(name, Mirror)
    with pytest.raises(UsageError, match="no intervention is named 'rotate'") as caught:
        Condition("rotate", "carrier", normal(1, WIDTH))
    assert all(name in str(caught.value) for name in ("ablate", "add", "affine", "mirror"))


def test_rows_of_different_rank_are_filled_up_and_others_stay_idle() -> None:
    one, three = (Ablate(orthonormal(normal(rank, WIDTH))[None]) for rank in (1, 3))
    (stacked,) = stack_rows([None, one, three])
    assert isinstance(stacked, Ablate)
    assert stacked.basis.shape == (3, 3, WIDTH)
    assert stacked.strength.tolist() == [0, 1, 1]
    assert not stacked.basis[0].any()
    assert not stacked.basis[1, 1:].any()
    assert torch.equal(stacked.basis[1, :1], one.basis[0])
    assert torch.equal(stacked.basis[2], three.basis[0])
    assert stack_rows([None, None]) == []
