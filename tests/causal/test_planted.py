"""The whole pipeline finds what was planted: where it is written, its direction, what it costs, what changed."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pytest
import torch
from caryatid.study.verdict import Evidence, Thresholds, Verdict, decide

from caryatid.causal.activations import at_site, prompt_activations
from caryatid.causal.conditions import (
    Condition,
    ablation_conditions,
    addition_conditions,
    localisation_conditions,
    random_bases,
)
from caryatid.causal.coupling import utility_coupling
from caryatid.causal.readouts import ReadOutPrompts, generate_under, teacher_forced
from caryatid.causal.scores import CandidateDirections, ScoringSettings, SelectionPrompts, score_candidates
from caryatid.causal.transfer import transfer, transfer_ratio
from caryatid.geometry.angles import ExcessAngle, excess_angle
from caryatid.geometry.bootstrap import bootstrap_carrier
from caryatid.geometry.carriers import CALIBRATED, CandidateScores, CarrierChoice, select
from caryatid.geometry.cosmic import least_alike_layers
from caryatid.geometry.directions import candidate_directions, unit
from caryatid.geometry.rank import RankComparison, SiteActivations, compare_effective_rank
from caryatid.models.generate import generate
from caryatid.models.load import LoadedModel
from caryatid.models.template import ChatFormat
from caryatid.study.tables.selectors import selector_rows
from planted import (
    LAYERS,
    Plant,
    axis,
    categories,
    harmful_texts,
    harmless_texts,
    planted,
    refusal_ids,
    rotated,
    utility_texts,
)

EXTRACTION, SELECTION, EVALUATION = 32, 16, 24
SITE = 4  # after every writer used here, and before every reader has written


class Anchor(NamedTuple):
    loaded: LoadedModel
    chat: ChatFormat
    harmful: torch.Tensor
    harmless: torch.Tensor
    scores: CandidateScores
    choice: CarrierChoice

    @property
    def direction(self) -> torch.Tensor:
        """r at the carrier, or at the site where there is no carrier."""
        layer = SITE if self.choice.layer is None else self.choice.layer
        return candidate_directions(self.harmful, self.harmless)[-1, layer].float()

    def site(self) -> SiteActivations:
        return at_site(self.harmful, self.harmless, SITE, -1)


def block_outputs(activations: torch.Tensor) -> torch.Tensor:
    """Mean outputs of all blocks: the inputs of the next; the last block of a planted model writes nothing."""
    inputs = activations[:, :, -1].mean(dim=0)
    return torch.cat([inputs[1:], inputs[-1:]])


def measure(plant: Plant, sample: int = 0) -> Anchor:
    """Activations and scored bank at the last position; `sample` draws the prompts."""
    loaded = planted(plant)
    chat = ChatFormat(loaded.tokenizer, "")
    seed = 10_000 * sample
    harmful, harmless = (
        prompt_activations(loaded, chat.ids_many(texts), n_positions=1, batch_size=EXTRACTION)
        for texts in (harmful_texts(EXTRACTION, seed), harmless_texts(EXTRACTION, seed + 1000))
    )
    kept = harmless_texts(SELECTION, seed + 3000)
    answers = [c.ids for c in generate(loaded, chat, kept, max_new_tokens=3, batch_size=SELECTION)]
    scores = score_candidates(
        loaded,
        CandidateDirections.of_grid(
            candidate_directions(harmful, harmless), positions=(-1,), layers=range(LAYERS)
        ),
        SelectionPrompts(
            chat.ids_many(harmful_texts(SELECTION, seed + 2000)),
            chat.ids_many(kept),
            answers,
            refusal_ids(loaded),
        ),
        ScoringSettings(
            64,
            answer_tokens=2,
            cosmic_layers=tuple(least_alike_layers(*(block_outputs(side) for side in (harmful, harmless)))),
        ),
    )
    return Anchor(loaded, chat, harmful, harmless, scores, select(scores, CALIBRATED))


@lru_cache(maxsize=32)
def known(name: str) -> Anchor:
    return measure(PLANTS[name])


PLANTS = {
    "plant": Plant(),
    "same": Plant(),
    "early": Plant(writer=0),
    "turned": Plant(direction=rotated(30)),
    "turned a little": Plant(direction=rotated(4)),
    "other": Plant(direction=axis(1)),
    "early other": Plant(writer=0, direction=axis(1)),
    "two": Plant(second=axis(1)),
    "none": Plant(strength=0.0),
    "coupled": Plant(utility=1.0),
    "one block earlier": Plant(writer=1),
    "other, one block earlier": Plant(writer=1, direction=axis(1)),
    "turned 7°": Plant(direction=rotated(7)),
    "turned 13°": Plant(direction=rotated(13)),
    "turned 45°": Plant(direction=rotated(45)),
    "turned 54°": Plant(direction=rotated(54)),
    "turned 60°": Plant(direction=rotated(60)),
    # one category of four turned
    "a quarter turned 45°": Plant(second=rotated(45), second_from=3),
    "a quarter turned 60°": Plant(second=rotated(60), second_from=3),
    # three categories early and one late, more or less along the same direction
    "mostly early": Plant(writer=0, second=rotated(30), second_from=3, second_writer=2),
    "partly early": Plant(writer=0, second=rotated(45), second_from=3, second_writer=2),
    "split a little": Plant(second=rotated(5)),
}


def refusals(anchor: Anchor, conditions: list[Condition], texts: list[str]) -> np.ndarray:
    """[conditions, prompts]: whether the generated answer is the refusal."""
    answers = generate_under(anchor.loaded, anchor.chat, conditions, texts, max_new_tokens=2, batch_size=64)
    return np.array([[one.text.startswith("Z") for one in row] for row in answers])


def controls_of(anchor: Anchor) -> torch.Tensor:
    """Random directions that hold as much of harmless prompts and utility questions as the carrier does."""
    useful = prompt_activations(
        anchor.loaded,
        anchor.chat.ids_many(utility_texts(EXTRACTION, 4000)),
        n_positions=1,
        batch_size=EXTRACTION,
    )
    benign = torch.cat([anchor.harmless, useful])[:, SITE, -1]
    carrier = unit(anchor.direction)[None]
    return random_bases(benign, carrier, draws=8, generator=torch.Generator().manual_seed(0)).bases


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


def drift(a: Anchor, b: Anchor, seed: int = 0) -> ExcessAngle:
    return excess_angle(a.site(), b.site(), categories(EXTRACTION), rng=np.random.default_rng(seed))


def rank_change(a: Anchor, b: Anchor) -> RankComparison:
    return compare_effective_rank(a.site(), b.site(), categories(EXTRACTION))


def test_a_rotation_of_the_plant_is_the_excess_angle() -> None:
    found = drift(known("plant"), known("turned"))
    assert found.excess.value == pytest.approx(30, abs=3)
    assert found.corrected.value == pytest.approx(30, abs=3)
    assert found.within > 0.5  # there is noise to be in excess of
    assert drift(known("plant"), known("early")).excess.value == pytest.approx(0, abs=1)


def test_a_second_direction_sets_the_expansion_flag_and_a_rotation_does_not() -> None:
    wider = rank_change(known("plant"), known("two")).difference
    assert wider.lo > 0.3
    turned = rank_change(known("plant"), known("turned")).difference
    assert turned.lo <= 0 <= turned.hi


def verdict(a: Anchor, b: Anchor, *, seed: int = 0, thresholds: Thresholds | None = None) -> Verdict:
    """The decision from two measured anchors, with evaluation prompts that nothing else has seen."""
    draws = [
        bootstrap_carrier(each.scores, CALIBRATED, draws=300, rng=np.random.default_rng(seed))
        for each in (a, b)
    ]
    carriers = [Condition("ablate", "carrier", unit(each.direction)[None]) for each in (a, b)]
    texts = harmful_texts(EVALUATION, 50_000 + seed)
    plain, under_a, under_b = refusals(b, [Condition(), *carriers], texts)
    ratio = transfer_ratio(plain, under_a, under_b)
    evidence = Evidence(
        depth_a=draws[0].depth_draws,
        depth_b=draws[1].depth_draws,
        argmin_a=draws[0].argmin_draws,
        argmin_b=draws[1].argmin_draws,
        transfer_ratio=ratio.ratio,
        transfer_reason=ratio.reason,
        excess_angle=drift(a, b, seed).excess,
        rank_difference=rank_change(a, b).difference,
    )
    return decide(evidence, thresholds or Thresholds())


CASES = [
    ("plant", "early other", "relocation", False),
    ("plant", "other", "replacement in place", False),
    ("plant", "early", "re-siting", False),
    ("plant", "turned", "drift only", False),
    ("plant", "turned a little", "no change", False),
    ("plant", "same", "no change", False),
    ("plant", "none", "undetermined", None),
    ("none", "plant", "undetermined", None),
    ("plant", "two", "undetermined", True),
]


@pytest.mark.parametrize(("a", "b", "label", "expansion"), CASES)
def test_every_label_follows_from_its_plant(a: str, b: str, label: str, expansion: bool | None) -> None:
    found = verdict(known(a), known(b))
    assert found.label == label, found.reasons
    assert expansion is None or found.expansion == expansion


WIDER = Thresholds(excess_angle=15.0)


@pytest.mark.parametrize(
    ("setting", "inside", "label", "outside", "other", "thresholds"),
    [
        ("depth_shift", "early", "re-siting", "one block earlier", "no change", None),
        (
            "depth_shift", "early other", "relocation",
            "other, one block earlier", "replacement in place", None,
        ),
        ("probability", "mostly early", "re-siting", "partly early", "undetermined", None),
        ("replaced_below", "turned 60°", "replacement in place", "turned 45°", "drift only", None),
        ("replaced_below", "turned 60°", "replacement in place", "turned 54°", "undetermined", None),
        ("excess_angle", "turned 13°", "drift only", "turned 7°", "no change", None),
        ("kept_above", "a quarter turned 45°", "no change", "a quarter turned 60°", "undetermined", WIDER),
    ],
)  # fmt: skip
def test_plants_on_both_sides_of_every_threshold(
    setting: str, inside: str, label: str, outside: str, other: str, thresholds: Thresholds | None
) -> None:
    used = thresholds or Thresholds()
    for name, expected in ((inside, label), (outside, other)):
        found = verdict(known("plant"), known(name), thresholds=used)
        assert found.label == expected, (setting, name, found.reasons)


def test_expansion_is_flagged_for_a_small_split_and_not_for_a_turn_of_the_same_size() -> None:
    assert verdict(known("plant"), known("split a little")).expansion
    assert not verdict(known("plant"), known("turned 7°")).expansion


SAMPLED = [
    *CASES[:6],
    ("plant", "one block earlier", "no change", False),
    ("plant", "other, one block earlier", "replacement in place", False),
    ("plant", "turned 7°", "no change", False),
    ("plant", "turned 13°", "drift only", False),
]


@pytest.mark.slow
def test_wrong_labels_are_rare_over_prompt_samples() -> None:
    """Every label and plants near two thresholds, on ten samples of prompts each."""
    wrong, flagged, total = [], 0, 0
    for sample in range(1, 11):
        base = measure(PLANTS["plant"], sample)
        for _, name, label, expansion in SAMPLED:
            found = verdict(base, measure(PLANTS[name], sample), seed=sample)
            if found.label != label:
                wrong.append((sample, name, found))
            flagged += expansion is not None and found.expansion != expansion
            total += 1
    assert total == 100
    assert len(wrong) <= 5, wrong
    assert flagged <= 5


@pytest.mark.slow
def test_nothing_is_reported_when_only_the_prompt_sample_changes() -> None:
    """One model, measured on other prompts the second time."""
    flags = []
    for sample in range(1, 101):
        found = verdict(
            measure(PLANTS["plant"], 2 * sample), measure(PLANTS["plant"], 2 * sample + 1), seed=sample
        )
        flags.append((found.label, found.expansion))
    assert sum(label not in ("no change", "undetermined") for label, _ in flags) <= 5
    assert sum(expansion for _, expansion in flags) <= 5
    assert sum(label == "no change" for label, _ in flags) >= 90
