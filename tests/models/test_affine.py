"""Affine concept editing against a hand computation, and what every intervention owes."""

import pytest
import torch

from caryatid.causal.conditions import Condition, affine_conditions, row_interventions
from caryatid.errors import InputError
from caryatid.models.affine import Affine
from caryatid.models.batch import left_pad
from caryatid.models.capture import capture_block_inputs
from caryatid.models.directional import Ablate
from caryatid.models.residual import intervening
from tiny import ARCHITECTURES, tiny_model

SEQS = [[5, 17, 90, 33, 8, 61, 7], [40, 41, 42], [9, 8, 7, 6, 5]]


def forward(model, layer: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and the stream at a block's input."""
    batch = left_pad(SEQS, 0)
    with torch.no_grad(), capture_block_inputs(model, [layer], 3) as captured:
        out = model(batch.ids, attention_mask=batch.mask, position_ids=batch.position_ids, use_cache=False)
    return out.logits, captured.of_layer(layer)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_formula_by_hand() -> None:
    """r = (0, 2), μ = (7, 5), α = 0.5: the second component of every token becomes 5 + 0.5 · 2, the first stays."""
    edit = Affine.build(torch.tensor([[0.0, 2.0], [7.0, 5.0]]), 0.5, layer=1)
    changes = []

    class Recorder:
        device = torch.device("cpu")

        def change_input(self, layer: int, change) -> None:
            changes.append((layer, change))

    edit.attach(Recorder())  # type: ignore[arg-type]  # stands in for the stream's hooks
    ((layer, change),) = changes
    assert layer == 1
    assert change(torch.tensor([[[3.0, -1.0], [0.0, 9.0]]])).tolist() == [[[3.0, 6.0], [0.0, 6.0]]]


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.7])
def test_the_component_is_set_and_the_rest_stays(arch: str, alpha: float) -> None:
    model, r, mean = tiny_model(arch), draw(32), draw(32, seed=1)
    plain, before = forward(model)
    with intervening(model, Affine.build(torch.stack([r, mean]), alpha, layer=2)):
        changed, after = forward(model)
    projected = torch.outer(r, r) / (r @ r)
    expected = before - before @ projected + mean @ projected + alpha * r
    assert torch.allclose(after, expected, atol=1e-4)
    assert (changed - plain).abs().max() > 1e-3
    assert torch.equal(forward(model)[0], plain)


def test_ablation_at_one_input_is_the_edit_toward_the_origin() -> None:
    model, r = tiny_model("llama"), draw(32)
    with intervening(model, Affine.build(torch.stack([r, torch.zeros(32)]), 0.0, layer=2)):
        after = forward(model)[1]
    assert (after @ r).abs().max() < 1e-4
    with intervening(model, Ablate((r / r.norm())[None, None], layers=(2,))):
        assert torch.allclose(forward(model)[1], after, atol=1e-5)


def test_rows_of_zeros_are_untouched_beside_others_and_conditions_name_it() -> None:
    model, rows = tiny_model("llama"), torch.stack([draw(32), draw(32, seed=1)])
    plain = forward(model)[0]
    conditions = [
        Condition(),
        Condition("affine", "carrier", rows, 0.0, layer=1),
        Condition("affine", "carrier", rows, 1.0, layer=3),
    ]
    (stacked,) = row_interventions(conditions)
    with intervening(model, stacked) as touched:
        found = forward(model)[0]
    assert torch.equal(found[0], plain[0])
    for number in (1, 2):
        with intervening(model, conditions[number].row):  # type: ignore[arg-type]  # a row where none is None
            assert torch.allclose(forward(model)[0][number], found[number], atol=1e-5)
    assert touched.per_intervention == [15]  # a row of zeros counts where its layer, 0, is
    for wrong in (rows[:1], torch.zeros(2, 32)):
        with pytest.raises(InputError, match="two rows"):
            Affine.build(wrong, 1.0, layer=1)
    with pytest.raises(InputError, match="layer"):
        Affine.build(rows, 1.0)


def test_conditions_set_the_carrier_and_as_much_along_random_controls() -> None:
    vector, mean = draw(32), draw(32, seed=1)
    controls = torch.nn.functional.normalize(draw(2, 1, 32, seed=2), dim=-1)
    found = affine_conditions(vector, mean, 2, (0.0, 1.0), controls)
    assert [(one.control, one.alpha, one.draw, one.rank) for one in found] == [
        ("carrier", 0.0, None, 1), ("random", 0.0, 0, 1), ("random", 0.0, 1, 1),
        ("carrier", 1.0, None, 1), ("random", 1.0, 0, 1), ("random", 1.0, 1, 1),
    ]  # fmt: skip
    model, along = tiny_model("llama"), controls[1, 0]
    (row,) = row_interventions([found[5]])
    with intervening(model, row):
        after = forward(model)[1]
    assert torch.allclose(after @ along, mean @ along + vector.norm(), atol=1e-4)
