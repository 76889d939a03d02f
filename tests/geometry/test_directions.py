import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from caryatid.errors import InputError, NumericalError
from caryatid.geometry.directions import (
    candidate_directions,
    category_directions,
    in_nullspace,
    is_candidate,
    mean_difference,
    orthogonalised,
    refused_minus_answered,
    subspace,
    unit,
)


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_mean_difference_is_the_difference_of_numpy_means() -> None:
    up, down = rows(7, 3, 2, 5), rows(4, 3, 2, 5, seed=1) + 2
    expected = up.numpy().astype(float).mean(0) - down.numpy().astype(float).mean(0)
    np.testing.assert_allclose(mean_difference(up, down).numpy(), expected, rtol=1e-12)
    bank = candidate_directions(up, down)
    assert bank.shape == (2, 3, 5)  # positions, layers, d
    np.testing.assert_allclose(bank[1, 2].numpy(), expected[2, 1], rtol=1e-12)


def test_means_of_many_float32_rows_are_taken_in_float64() -> None:
    up = torch.full((100_000, 1), 0.1)
    assert float(mean_difference(up, torch.zeros(1, 1))) == float(torch.tensor(0.1))


def test_category_directions_hand_made() -> None:
    harmful = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 6.0]])
    harmless = torch.tensor([[0.0, 1.0], [0.0, 3.0]])
    found = category_directions(harmful, harmless, ["b", "b", "a"])
    assert found.names == ("a", "b")
    assert found.counts == (1, 2)
    torch.testing.assert_close(found.rows, torch.tensor([[0.0, 4.0], [2.0, -2.0]], dtype=torch.float64))


def test_category_directions_average_to_the_overall_one_when_categories_are_equally_large() -> None:
    up, down = rows(6, 4, 8), rows(5, 4, 8, seed=1)
    found = category_directions(up, down, ["a", "b", "c"] * 2)
    torch.testing.assert_close(found.rows.mean(0), mean_difference(up, down))


def test_a_single_category_gives_the_overall_direction() -> None:
    up, down = rows(6, 8), rows(5, 8, seed=1)
    found = category_directions(up, down, ["only"] * 6)
    torch.testing.assert_close(found.rows[0], mean_difference(up, down))


def test_refused_minus_answered() -> None:
    acts = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 1.0]])
    found = refused_minus_answered(acts, torch.tensor([True, True, False]))
    assert found.tolist() == [2.0, -1.0]
    for flags in ([True] * 3, [False] * 3):
        with pytest.raises(InputError, match="prompt was refused"):
            refused_minus_answered(acts, torch.tensor(flags))


def test_empty_side_wrong_labels_and_nan_are_one_line_errors() -> None:
    with pytest.raises(InputError, match="no harmless"):
        mean_difference(rows(3, 4), torch.empty(0, 4))
    with pytest.raises(InputError, match="2 category labels for 3"):
        category_directions(rows(3, 4), rows(3, 4), ["a", "b"])
    broken = rows(3, 4)
    broken[1, 2] = torch.nan
    with pytest.raises(NumericalError, match="harmful activations are not finite"):
        mean_difference(broken, rows(3, 4))


def test_zero_differences_are_no_candidates() -> None:
    same = rows(1, 1, 2, 5).expand(4, 1, 2, 5)
    varied = torch.cat([same, rows(4, 2, 2, 5, seed=3)], dim=1)
    other = torch.cat([same, rows(4, 2, 2, 5, seed=4)], dim=1)
    assert is_candidate(candidate_directions(varied, other)).tolist() == [[False, True, True]] * 2
    with pytest.raises(NumericalError):
        is_candidate(torch.full((1, 1, 3), torch.nan))


def test_unit_keeps_zero_rows() -> None:
    found = unit(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    torch.testing.assert_close(found, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))


def test_subspace_is_numpys_right_singular_vectors_signed_towards_the_mean() -> None:
    matrix = rows(5, 12) + 1
    found = subspace(matrix, 3)
    _, values, vectors = np.linalg.svd(matrix.double().numpy(), full_matrices=False)
    np.testing.assert_allclose(np.abs((found.basis.numpy() * vectors[:3]).sum(1)), 1, atol=1e-12)
    np.testing.assert_allclose(found.singular_values.numpy(), values[:3], rtol=1e-12)
    assert bool((found.basis @ matrix.double().mean(0) >= 0).all())
    torch.testing.assert_close(found.basis @ found.basis.T, torch.eye(3, dtype=torch.float64))


def test_subspace_sign_does_not_depend_on_the_sign_that_svd_happens_to_give() -> None:
    matrix = rows(4, 6)
    torch.testing.assert_close(subspace(-matrix, 2).basis, -subspace(matrix, 2).basis)


@pytest.mark.parametrize(
    ("matrix", "rank"),
    [
        (torch.tensor([[1.0, 1.0, 0.0], [2.0, 2.0, 0.0]]), 1),
        (torch.tensor([[0.0, 0.0, 0.0], [0.0, 2.0, 0.0]]), 1),
        (torch.tensor([[1.0, 2.0, 2.0]]), 1),
        (torch.eye(3)[:2], 2),
    ],
    ids=["dependent", "zero row", "one row", "fewer rows than k"],
)
def test_k_above_the_rank_gives_what_there_is(matrix: torch.Tensor, rank: int) -> None:
    found = subspace(matrix, 3)
    assert found.rank == rank
    assert found.requested == 3
    residual = matrix.double() - matrix.double() @ found.basis.T @ found.basis
    assert float(residual.norm()) < 1e-12


def test_subspace_errors() -> None:
    with pytest.raises(InputError, match="below 1"):
        subspace(rows(2, 3), 0)
    with pytest.raises(InputError, match="every direction is zero"):
        subspace(torch.zeros(2, 3), 1)
    with pytest.raises(NumericalError):
        subspace(torch.full((2, 3), torch.inf), 1)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.floats(1e-3, 1e3))
def test_directions_turn_and_scale_with_the_activations(seed: int, scale: float) -> None:
    up, down = rows(5, 6, seed=seed).double(), rows(4, 6, seed=seed + 1).double()
    turn = torch.linalg.qr(rows(6, 6, seed=seed + 2).double()).Q
    torch.testing.assert_close(
        mean_difference(scale * up @ turn, scale * down @ turn), scale * mean_difference(up, down) @ turn
    )


def test_a_carrier_is_made_orthogonal_to_the_harmless_mean() -> None:
    """μ = (0, 4, 0), r = (3, 2, 1): the second component goes."""
    harmless = torch.tensor([[1.0, 3.0, 0.0], [-1.0, 5.0, 0.0]])
    assert orthogonalised(torch.tensor([3.0, 2.0, 1.0]), harmless).tolist() == [3.0, 0.0, 1.0]
    assert torch.equal(orthogonalised(torch.ones(3), torch.zeros(2, 3)), torch.ones(3).double())


def test_the_null_space_lacks_the_mean_and_the_axes_that_hold_the_variance() -> None:
    """Variances of 100, 25 and 1 along three axes: the first two hold 95 %, the third stays."""
    signs = torch.tensor([[a, b, c] for a in (-1.0, 1) for b in (-1.0, 1) for c in (-1.0, 1)])
    harmless = torch.zeros(8, 5)
    harmless[:, :3] = signs * torch.tensor([10.0, 5.0, 1.0])
    harmless[:, 4] = 7.0
    found = in_nullspace(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]), harmless)
    torch.testing.assert_close(found, torch.tensor([0.0, 0.0, 3.0, 4.0, 0.0]).double(), rtol=0, atol=1e-9)


def test_of_one_harmless_prompt_the_null_space_lacks_itself_alone() -> None:
    found = in_nullspace(torch.tensor([1.0, 1.0]), torch.tensor([[0.0, 3.0]]))
    torch.testing.assert_close(found, torch.tensor([1.0, 0.0]).double(), rtol=0, atol=1e-9)
