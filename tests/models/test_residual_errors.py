"""Interventions that cannot be used: each is one line, before anything runs."""

import pytest
import torch
from jaxtyping import TypeCheckError

from caryatid.errors import InputError
from caryatid.models.capture import capture_block_inputs
from caryatid.models.directional import Ablate, Add, orthonormal
from caryatid.models.residual import intervening
from tiny import tiny_model

WIDTH = 32


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def basis(rows: int, rank: int, seed: int = 0) -> torch.Tensor:
    return torch.stack([orthonormal(draw(rank, WIDTH, seed=seed + 100 * row)) for row in range(rows)])


def test_orthonormal_spans_the_same_space() -> None:
    rows = draw(3, WIDTH)
    q = orthonormal(rows)
    torch.testing.assert_close(q @ q.T, torch.eye(3), rtol=0, atol=1e-6)
    torch.testing.assert_close(rows @ q.T @ q, rows, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(q[0], rows[0] / rows[0].norm(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Ablate(torch.zeros(1, 1, WIDTH)), "zero"),
        (lambda: Ablate(draw(1, 2, WIDTH)), "orthonormal"),
        (lambda: Ablate(basis(1, 1), torch.tensor([float("nan")])), "not finite"),
        (lambda: Ablate(torch.eye(WIDTH + 1)[None, :, :WIDTH]), "rank 33 is above the width 32"),
        (lambda: Ablate(basis(1, 1), layers=()), "no layer"),
        (lambda: Add(torch.zeros(1, WIDTH), torch.tensor([0])), "zero vector"),
        (lambda: Add(draw(1, WIDTH), torch.tensor([0]), torch.tensor([float("inf")])), "not finite"),
        (lambda: orthonormal(torch.stack([draw(WIDTH), draw(WIDTH)])), "linearly dependent"),
        (lambda: orthonormal(torch.zeros(1, WIDTH)), "zero"),
        (lambda: orthonormal(draw(3, 2)), "rank 3 is above the width 2"),
    ],
)
def test_unusable_interventions_are_refused(build, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build()


@pytest.mark.parametrize(
    "build",
    [
        lambda: Ablate(basis(2, 1), torch.ones(3)),
        lambda: Ablate(basis(1, 1)[0]),
        lambda: Add(draw(1, WIDTH), torch.tensor([0, 1, 2]), torch.ones(2)),
    ],
)
def test_shapes_that_do_not_agree_are_refused(build) -> None:
    """By our own check, or before it by jaxtyping where its run-time checks are on."""
    with pytest.raises(
        (InputError, TypeCheckError),
        match=r"row counts do not agree|2 dimensions instead of 3|Type-check error",
    ):
        build()


def test_interventions_that_do_not_fit_the_model_are_refused() -> None:
    model = tiny_model("llama")
    with (
        pytest.raises(InputError, match=r"width 16, the model has 32"),
        intervening(model, Ablate(torch.eye(16)[None, :1])),
    ):
        pass
    with (
        pytest.raises(InputError, match=r"layer 4 is not one of 0 … 3"),
        intervening(model, Ablate(basis(1, 1), layers=(4,))),
    ):
        pass
    with (
        pytest.raises(InputError, match="layer -1"),
        intervening(model, Add(draw(1, WIDTH), torch.tensor([-1]))),
    ):
        pass
    for layers, positions in (([4], 1), ([0, 0], 1), ([], 1), ([0], 0)):
        with pytest.raises(InputError), capture_block_inputs(model, layers, positions):
            pass
