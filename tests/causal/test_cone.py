"""Cones: the loss by hand and its slope, planted ones recovered and counted, and what the counting rests on."""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pytest
import torch

from caryatid.causal.cone import (
    ADDITION,
    MIXTURES,
    SOFTNESS,
    ConeLoss,
    ConeSearch,
    EdgeEffects,
    FoundCone,
    candidate_span,
    cone_dimension,
    edge_effects,
    find_cones,
    fit_cone,
    mixtures,
    split_cones,
)
from caryatid.causal.locate import (
    CandidateScorer,
    CandidateSettings,
    Measured,
    Site,
    extraction_activations,
    selection_prompts,
)
from caryatid.causal.scores import refusal_score
from caryatid.errors import InputError
from caryatid.geometry.angles import angle_summary
from caryatid.geometry.carriers import CandidateScores
from caryatid.geometry.directions import category_directions, mean_difference, unit
from caryatid.models.directional import Ablate, Add
from caryatid.models.forward import last_logits
from caryatid.models.generate import Decoding, generate
from caryatid.models.load import LoadedModel
from caryatid.models.residual import Intervention
from caryatid.models.template import ChatFormat
from caryatid.stats import Interval
from cone_plants import READER, SITE, chain, single
from planted import Plant, axis, categories, harmful_texts, harmless_texts, planted, refusal_ids

EXTRACTED, FITTED, MEASURED = 128, 8, 16


class Known(NamedTuple):
    loss: ConeLoss
    scorer: CandidateScorer
    direction: torch.Tensor
    space: torch.Tensor
    site: Site


@lru_cache(maxsize=4)
def known(make: Callable[[], LoadedModel], layer: int = SITE, below: int = READER) -> Known:
    """A planted model with a cone's loss on some prompts, a scorer of others, and the span of candidates below a block.

    With `layer`, the one at whose input directions are added.
    """
    loaded = make()
    chat = ChatFormat(loaded.tokenizer, "")
    model = Measured(loaded, chat, 128)
    activations = extraction_activations(model, harmful_texts(EXTRACTED), harmless_texts(EXTRACTED), 1)
    kept = harmless_texts(MEASURED, 3000)
    answers = [one.ids for one in generate(loaded, chat, kept, Decoding(3, MEASURED))]
    selection = selection_prompts(chat, harmful_texts(MEASURED, 2000), kept, answers, refusal_ids(loaded))
    here = activations.at(layer, -1)
    direction = mean_difference(here.harmful, here.harmless).float()
    rows = category_directions(
        activations.harmful[:, :below], activations.harmless[:, :below], categories(EXTRACTED)
    ).rows
    loss = ConeLoss(
        loaded,
        chat.ids_many(harmful_texts(FITTED)),
        chat.ids_many(harmless_texts(FITTED)),
        refusal_ids(loaded),
        layer=layer,
        length=float(direction.norm()),
        batch_size=64,
    )
    scorer = CandidateScorer(model, activations, selection, CandidateSettings(answer_tokens=2))
    return Known(loss, scorer, direction, candidate_span(rows, 32), Site(layer, -1, True))


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_loss_is_that_of_the_formula() -> None:
    """Against passes of the plain model under one intervention at a time."""
    loss = known(single).loss
    directions = unit(axis(0)[None] + 0.2 * normal(2, 64))
    harmful, harmless = loss.seqs[:FITTED], loss.seqs[FITTED : 2 * FITTED]

    def logits(rows: list[list[int]], *interventions: Intervention) -> torch.Tensor:
        return last_logits(loss.loaded, rows, batch_size=8, interventions=interventions)

    h, s = (refusal_score(logits(rows), loss.tokens).mean() for rows in (harmful, harmless))
    expected = 0.0
    for one in directions:
        ablated = Ablate(one[None, None])
        added = Add(loss.length * one[None], torch.tensor([SITE]))
        left = (refusal_score(logits(harmful, ablated), loss.tokens) - s) / (h - s)
        missing = (h - refusal_score(logits(harmless, added), loss.tokens)) / (h - s)
        reference, changed = (
            logits(harmless, *changes).log_softmax(-1).double() for changes in ([], [ablated])
        )
        kl = (reference.exp() * (reference - changed)).sum(-1).mean()
        bent = [SOFTNESS * torch.log1p((x.double() / SOFTNESS).exp()).mean() for x in (left, missing)]
        expected += float(bent[0] + ADDITION * bent[1] + kl) / 2
    assert loss(directions).value == pytest.approx(expected, rel=1e-4)


def test_the_slope_is_that_of_finite_differences() -> None:
    loss = known(single).loss
    at, along = unit(axis(0)[None] + 0.1 * normal(1, 64)), unit(normal(1, 64, seed=1))
    step = 1e-2
    rise = loss(unit(at + step * along)).value - loss(unit(at - step * along)).value
    inside = along - (along * at).sum() * at  # a unit vector moves along the sphere
    assert rise / (2 * step) == pytest.approx(float((loss(at).gradient * inside).sum()), rel=0.02)


def test_harmful_prompts_must_be_refused_more() -> None:
    loss = known(single).loss
    rows = loss.seqs[:FITTED], loss.seqs[FITTED : 2 * FITTED]
    with pytest.raises(InputError, match="refused no more"):
        ConeLoss(loss.loaded, rows[1], rows[0], loss.tokens.tolist(), layer=2, length=1.0, batch_size=8)


def test_the_span_holds_the_candidates_and_nothing_else() -> None:
    rows = torch.zeros(3, 2, 6)
    rows[0, 0, 0], rows[1, 0, 1], rows[2, 0] = 5.0, 0.01, torch.tensor([1.0, 1, 0, 0, 0, 0])
    space = candidate_span(rows, 32)  # two sites; that of the second is zero
    assert len(space) == 2
    assert torch.allclose(space @ space.T, torch.eye(2), atol=1e-6)
    assert float(space[:, 2:].abs().max()) < 1e-6
    assert len(candidate_span(rows, 1)) == 1
    with pytest.raises(InputError, match="zero"):
        candidate_span(torch.zeros(2, 6), 3)


def test_mixtures_are_the_edges_and_positive_directions_between() -> None:
    found = mixtures(3, 4, torch.Generator().manual_seed(0))
    assert torch.equal(found[:3], torch.eye(3))
    assert found.shape == (7, 3)
    assert bool((found >= 0).all())
    assert torch.allclose(found.norm(dim=1), torch.ones(7))
    assert mixtures(1, 4, torch.Generator()).tolist() == [[1.0]]


def test_a_split_cone_is_orthonormal_and_holds_no_dimension_more_than_its_parent() -> None:
    space = torch.linalg.qr(normal(20, 7)).Q.T
    cone = space[:2]
    found = split_cones(cone, space, 4, torch.Generator().manual_seed(0))
    assert found.shape == (4, 3, 20)
    for rows in found:
        assert torch.allclose(rows @ rows.T, torch.eye(3), atol=1e-5)
        assert float((rows @ cone.T).square().sum()) == pytest.approx(2.0, abs=1e-4)
    assert torch.allclose(
        (found[1] @ cone[1]).square().sort().values, torch.tensor([0.0, 0.5, 0.5]), atol=1e-5
    )
    alone = split_cones(cone[:0], space, 3, torch.Generator().manual_seed(0))
    assert alone.shape == (3, 1, 20)
    assert torch.allclose(alone.norm(dim=-1), torch.ones(3, 1))


def scores(bypass: list[float], harmful: float = 10.0, noise: float = 0.5, n: int = 40) -> CandidateScores:
    """Candidates whose scores on harmful prompts are these means, with noise; h 10, s 0."""
    rng = np.random.default_rng(0)
    count = len(bypass)
    zeros = np.zeros((count, 4))
    return CandidateScores(
        positions=np.full(count, -1),
        layers=np.zeros(count, dtype=np.int64),
        n_layers=8,
        harmful=harmful + rng.normal(0, noise, n),
        harmless=np.zeros(4),
        bypass=np.array(bypass)[:, None] + rng.normal(0, noise, (count, n)),
        induce=zeros,
        kl=zeros,
        kl_answer=zeros,
    )


def test_effects_by_hand() -> None:
    """Edges leave 1 and 2 of a gap of 10, controls' weakest 6 and 8; half of the single direction's 0.9 is more."""
    edges = scores([1.0, 2.0], noise=0.0)
    controls = np.array([[[0.0], [6.0]], [[8.0], [3.0]]]).repeat(40, axis=2)
    first = np.full(40, 1.0)
    found = edge_effects(edges, controls, first, np.random.default_rng(0))
    assert found.weakest == pytest.approx((0.8, 0.8, 0.8))
    assert found.control == pytest.approx((0.45, 0.45, 0.45))
    assert found.excess == pytest.approx((0.35, 0.35, 0.35))
    weaker = edge_effects(edges, controls, np.full(40, 9.0), np.random.default_rng(0))
    assert weaker.control.value == pytest.approx(0.3)  # the mean of 0.4 and 0.2
    assert (weaker.control.lo, weaker.control.hi) == pytest.approx(
        (0.2, 0.4)
    )  # both controls once, or one twice


def test_intervals_contain_the_noise_of_prompts() -> None:
    noisy = edge_effects(
        scores([1.0, 2.0], noise=3.0), np.full((3, 2, 40), 6.0), np.full(40, 1.0), np.random.default_rng(0)
    )
    assert noisy.excess.lo < noisy.excess.value - 0.03
    assert noisy.excess.hi > noisy.excess.value + 0.03


def test_dimensions_are_counted_up_to_the_first_that_fails() -> None:
    def cone(lo: float, value: float, hi: float, kept: bool = True) -> FoundCone:
        nothing = Interval(0.0, 0.0, 0.0)
        effects = EdgeEffects(nothing, nothing, Interval(value, lo, hi))
        return FoundCone(torch.eye(2), 0.0, effects, 0.0, 0.0, 0.0, kept)

    sure, likely, unlikely = cone(0.3, 0.4, 0.5), cone(0.0, 0.2, 0.4), cone(-0.2, 0.0, 0.2)
    assert cone_dimension([sure, likely, unlikely], 0.1) == (2.0, 1.0, 3.0)
    assert cone_dimension([sure, unlikely, sure], 0.1) == (1.0, 1.0, 3.0)
    assert cone_dimension([cone(0.3, 0.4, 0.5, kept=False), sure], 0.1) == (0.0, 0.0, 0.0)


SEARCH = ConeSearch(max_dimension=3, starts=2, draws=4, kl_max=0.35)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_planted_direction_is_recovered_from_random_beginnings(seed: int) -> None:
    case = known(single)
    start = normal(1, len(case.space), seed=seed)
    assert angle_summary(start @ case.space, axis(0)[None]).max > 20
    found = fit_cone(case.loss, case.space, start, torch.eye(1), steps=20)
    assert angle_summary(found.basis, axis(0)[None]).max <= 5


@pytest.mark.parametrize("seed", [0, 1])
def test_a_planted_cone_of_two_is_recovered_from_random_beginnings(seed: int) -> None:
    case = known(chain)
    start, mixed = (
        normal(2, len(case.space), seed=seed),
        mixtures(2, MIXTURES, torch.Generator().manual_seed(0)),
    )
    found = fit_cone(case.loss, case.space, start, mixed, steps=30)
    assert angle_summary(found.basis, torch.stack([axis(0), axis(1)])).max <= 5


def test_a_planted_direction_has_dimension_one() -> None:
    case = known(single)
    found = find_cones(case.scorer, case.loss, case.site, case.direction, case.space, SEARCH, 0)
    assert cone_dimension(found, 0.1) == (1.0, 1.0, 1.0)
    assert found[0].effects.weakest.value > 0.9
    assert found[1].effects.weakest.value < 0.6


@pytest.mark.parametrize("dimensions", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_planted_cone_of_two_has_dimension_two(dimensions: int) -> None:
    case, search = known(chain), replace(SEARCH, max_dimension=dimensions)
    found = find_cones(case.scorer, case.loss, case.site, case.direction, case.space, search, 0)
    assert len(found) == dimensions
    assert cone_dimension(found, 0.1) == (2.0, 2.0, 2.0)
    assert angle_summary(found[1].basis, torch.stack([axis(0), axis(1)])).max <= 5
    assert found[1].mixed > 0.9


def with_threshold() -> LoadedModel:
    return planted(Plant())


def test_where_the_loss_is_flat_the_mean_direction_stays() -> None:
    """The published loss and Adam turned it by 31° here (docs/log.md)."""
    case = known(with_threshold, layer=4, below=5)  # candidates hold nothing of what the reader writes
    start = unit(case.direction)[None] @ case.space.T
    found = fit_cone(case.loss, case.space, start, torch.eye(1), steps=20)
    assert angle_summary(found.basis, axis(0)[None]).max <= 5
