from typing import NamedTuple

import numpy as np
import pytest
import torch

from caryatid.errors import InputError
from caryatid.geometry.cosmic import CosmicScores, cosmic_products, least_alike_layers, select_cosmic
from caryatid.geometry.profiles import COSMIC


def test_least_alike_layers_are_a_tenth_of_them_with_the_lowest_cosine() -> None:
    generator = torch.Generator().manual_seed(0)
    harmless = torch.randn(30, 8, generator=generator)
    harmful = harmless.clone()
    for layer, mix in ((4, -1.0), (17, 0.1), (25, 0.3)):
        other = torch.randn(8, generator=generator)
        harmful[layer] = mix * harmless[layer] + (1 - abs(mix)) * other
    cosines = torch.nn.functional.cosine_similarity(harmful, harmless, dim=1)
    expected = tuple(sorted(np.argsort(cosines.numpy())[:3].tolist()))
    assert least_alike_layers(harmful, harmless) == expected == (4, 17, 25)
    assert len(least_alike_layers(harmful[:9], harmless[:9])) == 1
    with pytest.raises(InputError):
        least_alike_layers(harmful, harmless[:9])


class Outputs(NamedTuple):
    """Made-up block outputs, [candidates or nothing, prompts, layers, d]."""

    ablated: np.ndarray
    added: np.ndarray
    harmful: np.ndarray
    harmless: np.ndarray


def outputs(candidates: int = 4, up: int = 5, down: int = 7, seed: int = 0) -> Outputs:
    rng = np.random.default_rng(seed)
    return Outputs(
        rng.normal(size=(candidates, up, 3, 6)) + 0.3,
        rng.normal(size=(candidates, down, 3, 6)) + 0.3,
        rng.normal(size=(up, 3, 6)) + 0.3,
        rng.normal(size=(down, 3, 6)) + 0.3,
    )


def cosine(x: np.ndarray, y: np.ndarray) -> float:
    return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))


def by_definition(given: Outputs, up: np.ndarray, down: np.ndarray) -> list[tuple[float, float]]:
    """Each cosine of one mean over the chosen prompts and all layers."""
    harmful, harmless = given.harmful[up].mean((0, 1)), given.harmless[down].mean((0, 1))
    return [
        (cosine(one[up].mean((0, 1)), harmless), cosine(other[down].mean((0, 1)), harmful))
        for one, other in zip(given.ablated, given.added, strict=True)
    ]


def test_scores_are_two_cosines_of_global_means() -> None:
    given = outputs()
    found = cosmic_products(*map(torch.tensor, given)).scores()
    expected = np.array(by_definition(given, np.arange(5), np.arange(7)))
    np.testing.assert_allclose(found.ablated[0], expected[:, 0], rtol=1e-12)
    np.testing.assert_allclose(found.added[0], expected[:, 1], rtol=1e-12)
    np.testing.assert_allclose(found.total[0], expected.sum(axis=1), rtol=1e-12)


def test_scores_of_resampled_prompts_need_only_the_products() -> None:
    given, rng = outputs(), np.random.default_rng(1)
    up, down = rng.integers(0, 5, (6, 5)), rng.integers(0, 7, (6, 7))
    weights = [
        np.stack([np.bincount(row, minlength=n) / n for row in index]) for index, n in ((up, 5), (down, 7))
    ]
    found = cosmic_products(*map(torch.tensor, given)).scores(*weights)
    for draw in range(6):
        expected = np.array(by_definition(given, up[draw], down[draw]))
        np.testing.assert_allclose(found.ablated[draw], expected[:, 0], rtol=1e-12)
        np.testing.assert_allclose(found.added[draw], expected[:, 1], rtol=1e-12)


def test_what_was_not_scored_is_nan_and_no_candidate_no_score() -> None:
    given = outputs()
    given.ablated[1, 3:] = np.nan
    found = cosmic_products(*map(torch.tensor, given)).scores()
    assert np.isnan(found.total[0]).tolist() == [False, True, False, False]
    assert cosmic_products(*map(torch.tensor, outputs(candidates=0))).scores().total.shape == (1, 0)


def test_selection_takes_the_highest_score_within_its_cuts() -> None:
    total = np.array([1.9, 1.5, 1.7, np.nan, 1.8])
    scores = CosmicScores(total, total, total)
    kl, layers = [0.2, 0.1, 0.1, 0.0, 0.0], [3, 4, 5, 1, 8]
    assert select_cosmic(scores, kl, layers, n_layers=10) == 2  # 0: KL, 3: NaN, 4: too deep
    assert select_cosmic(scores, [1.0] * 5, layers, n_layers=10) is None
    assert COSMIC.depth_cut(10) == 8
