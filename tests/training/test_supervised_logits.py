"""What a model in training computes, against plain forwards of one row at a time."""

import pytest
import torch
from torch import nn

from caryatid.models.heads import picked_head
from caryatid.training.settings import TrainingSettings
from caryatid.training.trainee import Example, Trainee
from tiny import ARCHITECTURES, tiny_loaded

ROWS = [Example([5, 6, 7], [8, 9, 10]), Example([5, 6, 7, 8, 9, 11], [4]), Example([7], [3, 2])]


def _trainee(arch: str, mode: str) -> Trainee:
    settings = TrainingSettings(mode=mode, learning_rate=1e-3)  # type: ignore[arg-type]
    return Trainee(tiny_loaded(arch), settings, updates=3, seed=0)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_supervised_logits_are_those_of_each_row_alone(arch: str) -> None:
    trainee = _trainee(arch, "full")
    found = trainee.forward(ROWS)
    assert found.lengths == [3, 1, 2]
    assert found.tokens == 16
    assert found.targets.tolist() == [8, 9, 10, 4, 3, 2]
    expected = []
    for row in ROWS:
        ids = torch.tensor([[*row.prompt, *row.answer]])
        expected.append(trainee.loaded.model(ids).logits[0, len(row.prompt) - 1 : -1])
    torch.testing.assert_close(found.logits, torch.cat(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("mode", ["lora", "full"])
def test_gradients_are_the_sum_of_those_of_each_row(arch: str, mode: str) -> None:
    trainee = _trainee(arch, mode)

    def gradients(rows: list[Example]) -> list[torch.Tensor]:
        found = trainee.forward(rows)
        nn.functional.cross_entropy(found.logits, found.targets, reduction="sum").backward()
        taken = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in trainee.parameters]
        for parameter in trainee.parameters:
            parameter.grad = None
        return taken

    together, alone = gradients(ROWS), [gradients([row]) for row in ROWS]
    for index, gradient in enumerate(together):
        expected = sum(each[index] for each in alone)
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5)


def test_a_model_without_a_named_output_matrix_computes_all_logits() -> None:
    class Plain(nn.Module):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return 2 * hidden

    hidden, rows, columns = torch.randn(2, 3, 4), torch.tensor([0, 1]), torch.tensor([2, 0])
    model = Plain()
    with picked_head(model, rows, columns) as picked:
        found = picked(model(hidden))
    torch.testing.assert_close(found, 2 * hidden[rows, columns])
