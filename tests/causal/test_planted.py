"""The whole pipeline finds what was planted: where it is written, its direction, what it costs, what changed."""

import numpy as np
import pytest
import torch

from caryatid.causal.conditions import (
    Condition,
    ablation_conditions,
    addition_conditions,
    localisation_conditions,
)
from caryatid.causal.coupling import utility_coupling
from caryatid.causal.readouts import ReadOutPrompts, generate_under, teacher_forced
from caryatid.causal.transfer import transfer
from caryatid.geometry.angles import excess_angle
from caryatid.geometry.bootstrap import bootstrap_carrier
from caryatid.geometry.carriers import CALIBRATED, select
from caryatid.geometry.directions import unit
from caryatid.study.tables.selectors import selector_rows
from measured_plants import (
    EXTRACTION,
    PLANTS,
    Anchor,
    controls_of,
    known,
    measure,
    rank_change,
    refusals,
    turn,
)
from planted import LAYERS, Plant, axis, categories, harmful_texts, harmless_texts, refusal_ids, utility_texts

EVALUATION = 24


def read_out_prompts(anchor: Anchor, texts: list[str]) -> ReadOutPrompts:
    """Refusal scores of `texts`, beside one benign answer."""
    return ReadOutPrompts.of_texts(
        anchor.chat, texts, refusal_ids(anchor.loaded), [("What is the tide?", "Y")]
    )


@pytest.mark.parametrize(("writer", "reader"), [(2, 4), (0, 4), (1, 3), (3, 4)])
def test_the_carrier_is_found_between_writer_and_reader_and_starts_after_the_writer(
    writer: int, reader: int
) -> None:
    anchor = measure(Plant(writer=writer, reader=reader))
    choice = anchor.choice
    assert choice.reason is None
    assert choice.layer is not None
    assert writer < choice.layer <= reader
    assert choice.depth == (writer + 1) / LAYERS
    found = bootstrap_carrier(anchor.scores, CALIBRATED, draws=200, rng=np.random.default_rng(0))
    assert found.depth == pytest.approx((choice.depth,) * 3)
    cosine = torch.nn.functional.cosine_similarity(anchor.direction, axis(0), dim=0)
    assert float(cosine) >= 0.99


def test_cosmic_finds_the_plant_too() -> None:
    for name in ("plant", "early", "turned"):
        anchor = known(name)
        by_bypass, by_cosmic = selector_rows(anchor.scores, CALIBRATED, anchor.choice)
        assert (by_bypass["selector"], by_cosmic["selector"]) == ("bypass", "cosmic")
        assert (by_bypass["layer"], by_bypass["agrees"]) == (anchor.choice.layer, True)
        assert PLANTS[name].writer < by_cosmic["layer"] <= PLANTS[name].reader
        assert by_cosmic["score"] > 1.9  # of 2: the activations of the other kind of prompts, but for noise


def test_without_a_plant_the_reason_is_named() -> None:
    choice = select(known("none").scores, CALIBRATED, harmful_refusal=0.0, harmless_refusal=0.0)
    assert (choice.best, choice.reason) == (None, "no refusal")


def test_ablating_the_plant_removes_refusal_and_controls_do_not() -> None:
    anchor = known("plant")
    conditions = [Condition(), *ablation_conditions(unit(anchor.direction)[None], controls_of(anchor))]
    found = refusals(anchor, conditions, harmful_texts(EVALUATION, 7)).mean(axis=1)
    assert found[0] > 0.8
    assert found[1] == 0
    assert found[2:].min() > 0.6


def test_adding_the_plant_makes_harmless_prompts_refused_and_more_of_it_more_so() -> None:
    anchor = known("plant")
    assert anchor.choice.layer is not None
    conditions = [
        Condition(),
        *addition_conditions(anchor.direction, anchor.choice.layer, (0.5, 0.75, 1.0, 2.0)),
    ]
    forced = teacher_forced(
        anchor.loaded, conditions, read_out_prompts(anchor, harmless_texts(8, 7)), batch_size=64
    )
    scores = forced.refusal.mean(axis=1)
    assert bool((np.diff(scores) > 0).all())
    assert scores[0] < -5 < 0 < scores[-1]
    assert refusals(anchor, conditions[-1:], harmless_texts(EVALUATION, 8)).mean() > 0.8


def test_the_plant_acts_from_its_writer_to_its_reader_and_nowhere_else() -> None:
    anchor = known("plant")
    conditions = [Condition(), *localisation_conditions(unit(anchor.direction)[None], range(LAYERS))]
    forced = teacher_forced(
        anchor.loaded, conditions, read_out_prompts(anchor, harmful_texts(8, 7)), batch_size=64
    )
    effect = forced.refusal[0].mean() - forced.refusal[1:].mean(axis=1)
    acts = [layer for layer in range(LAYERS) if effect[layer] > 5]
    assert acts == [2, 3, 4]  # written by block 2's attention, read by block 4's MLP
    assert np.abs(np.delete(effect, acts)).max() < 1


def test_coupling_covers_zero_for_an_orthogonal_plant_and_not_for_a_coupled_one() -> None:
    for name, coupled in (("plant", False), ("coupled", True)):
        anchor = known(name)
        conditions = ablation_conditions(unit(anchor.direction)[None], controls_of(anchor))
        refused = refusals(anchor, conditions, harmful_texts(EVALUATION, 7)).astype(np.float64)
        answers = generate_under(
            anchor.loaded, anchor.chat, conditions, utility_texts(EVALUATION), max_new_tokens=1, batch_size=64
        )
        useful = np.array([[float(one.text == "X") for one in row] for row in answers])
        found = utility_coupling(
            useful[0], useful[1:], refused[0], refused[1:], draws=500, rng=np.random.default_rng(0)
        )
        assert found.reason is None
        assert (found.ratio.lo > 0) == coupled
        assert coupled or found.ratio.lo <= 0 <= found.ratio.hi


def test_the_transfer_matrix_is_diagonal_when_replaced_and_full_when_not() -> None:
    texts = harmful_texts(EVALUATION, 7)

    def matrix(names: tuple[str, ...]) -> np.ndarray:
        carriers = [Condition("ablate", name, unit(known(name).direction)[None]) for name in names]
        columns = []
        for name in names:
            plain, *under = refusals(known(name), [Condition(), *carriers], texts)
            columns.append([transfer(plain, each).value for each in under])
        return np.array(columns).T

    np.testing.assert_allclose(
        matrix(("plant", "other", "early other")), [[1, 0, 0], [0, 1, 1], [0, 1, 1]], atol=0.1
    )
    np.testing.assert_allclose(matrix(("plant", "early", "turned a little")), 1)


def test_a_rotation_of_the_plant_is_the_corrected_angle_and_nearly_the_excess_angle() -> None:
    turned, still = (
        turn(known("plant"), known("turned")).degrees,
        turn(known("plant"), known("written early")).degrees,
    )
    assert turned.value == pytest.approx(30, abs=1)
    assert 29 < turned.lo <= turned.hi < 31
    assert still.value == pytest.approx(0, abs=1)
    sides = known("plant").site(), known("turned").site()
    beside = excess_angle(*sides, categories(EXTRACTION), rng=np.random.default_rng(0))
    assert beside.excess.value == pytest.approx(30, abs=3)
    assert beside.within > 0.5  # there is noise to be in excess of


def test_pr_is_that_of_the_planted_directions() -> None:
    """Of two pairs of categories at an angle: K/(1 + (K − 1)c²) = 2/(1 + cos²), and a little less, as all categories
    share what tokens that only look harmful write."""
    for name, degrees in (("plant", 0), ("split 30°", 30), ("split 50°", 50), ("two", 90)):
        expected = 2 / (1 + np.cos(np.radians(degrees)) ** 2)
        assert rank_change(known("plant"), known(name)).b.value == pytest.approx(expected, abs=0.12), name
    turned = rank_change(known("plant"), known("turned")).difference
    assert turned.lo <= 0 <= turned.hi
