"""What all candidates share is measured once, and what is done faster gives the same numbers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from caryatid.causal import answer_reference, locate
from caryatid.causal.answer_reference import AnswerReference
from caryatid.causal.grid import GridBatch
from caryatid.causal.locate import Activations, CandidateScorer, CandidateSettings, Measured
from caryatid.causal.resamples import resampled_directions, rescored
from caryatid.causal.scores import ScoringSettings, SelectionPrompts, measure_unablated, score_candidates
from caryatid.models.directional import Ablate, orthonormal
from caryatid.models.load import LoadedModel
from tiny import tiny_loaded

PROMPTS = ([5, 17, 90, 33, 8], [5, 17, 42, 60], [5, 17, 8, 7, 6, 5])
ANSWERS = ([9, 8, 7], [11], [12, 13, 14, 15])
RESAMPLES = 5


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return tiny_loaded("llama")


def scorer_of(loaded: LoadedModel) -> CandidateScorer:
    sides = [draw(6, 4, 1, 32, seed=seed) for seed in (1, 2)]
    model = Measured(loaded, loaded.chat(), batch_size=4)
    prompts = SelectionPrompts(PROMPTS, PROMPTS, ANSWERS, (5, 6))
    settings = CandidateSettings(scored_depth=0.8)
    return CandidateScorer(model, Activations(sides[0], sides[1], (1, 2), ("x",)), prompts, settings)


@pytest.mark.parametrize("cosmic", [False, True])
def test_resamples_scored_together_in_parts_or_alone_have_the_same_scores(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, cosmic: bool
) -> None:
    measured: list[ScoringSettings] = []

    def counted(model: Any, prompts: Any, settings: ScoringSettings) -> Any:
        measured.append(settings)
        return measure_unablated(model, prompts, settings)

    monkeypatch.setattr(locate, "measure_unablated", counted)
    scorer = scorer_of(loaded)
    places = scorer.score_all().rows([1])
    measured.clear()
    grids = resampled_directions(scorer, RESAMPLES, seed=3)

    def parts(size: int) -> list[Any]:
        own = scorer_of(loaded)
        ends = range(0, RESAMPLES, size)
        return [
            one
            for start in ends
            for one in rescored(own, grids(range(start, min(start + size, RESAMPLES))), places, cosmic=cosmic)
        ]

    together, alone = parts(RESAMPLES), parts(1)
    assert len(measured) == 2  # once for each of the two scorers, not for each call
    assert [bool(one.cosmic_layers) for one in measured] == [cosmic] * 2
    for one, other in zip(together, alone, strict=True):
        assert set(one.arrays()) == set(other.arrays())
        for name, values in one.arrays().items():
            np.testing.assert_allclose(values, other.arrays()[name], rtol=1e-5, atol=1e-5, err_msg=name)


def test_scores_with_a_shared_measurement_are_those_without(loaded: LoadedModel) -> None:
    scorer = scorer_of(loaded)
    prompts, settings = scorer.selection, ScoringSettings(4, cosmic_layers=(1, 2))
    found = locate.CandidateDirections.of_grid(
        scorer.directions(), positions=scorer.positions, layers=scorer.layers
    )
    shared = measure_unablated(loaded, prompts, settings)
    one, other = (
        score_candidates(loaded, found, prompts, settings, unablated=given).arrays()
        for given in (shared, None)
    )
    for name, values in one.items():
        np.testing.assert_array_equal(values, other[name], err_msg=name)


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("strengths", [(1.0, 1.0), (0.3, 0.0)])
def test_an_ablation_is_the_product_with_the_projection_bit_for_bit(
    rank: int, strengths: Sequence[float]
) -> None:
    basis = torch.stack([orthonormal(draw(rank, 32, seed=seed)) for seed in (4, 5)])
    hidden, strength = draw(2, 7, 32, seed=6), torch.tensor(strengths)
    changed = Ablate(basis, strength)._removal(torch.device("cpu"))(hidden)
    plain = hidden - (hidden @ basis.mT) @ (basis * strength[:, None, None])
    expected = torch.where((strength != 0)[:, None, None], plain, hidden)
    assert torch.equal(changed, expected)


def test_how_many_logits_are_compared_at_once_changes_nothing(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = AnswerReference(loaded, PROMPTS, ANSWERS, answer_tokens=4, batch_size=4)
    vocabulary = int(loaded.model.config.vocab_size)
    batch = GridBatch(
        draw(6, reference.keep, vocabulary, seed=7), torch.zeros(6, dtype=torch.long), torch.arange(6) % 3
    )
    whole = reference.compare(batch)
    monkeypatch.setattr(answer_reference, "_CPU_CHUNK_ELEMENTS", reference.keep * vocabulary)
    assert torch.equal(reference.compare(batch), whole)
