"""Every label of protocol §7 follows from its plant, measured as a study measures it."""

import numpy as np
import pytest

from caryatid.causal.conditions import Condition, ablation_conditions
from caryatid.causal.transfer import transfer_counts
from caryatid.geometry.bootstrap import bootstrap_reextracted
from caryatid.geometry.carriers import CALIBRATED
from caryatid.geometry.directions import unit
from caryatid.study.decision import Evidence, Places, Thresholds, Verdict, decide
from measured_plants import PLANTS, Anchor, controls_of, known, measure, rank_change, refusals, turn
from planted import harmful_texts

TRANSFER = 64  # prompts: with fewer refusals nothing can be shown to be kept


def places(a: Anchor, b: Anchor, seed: int) -> Places:
    """Draws from resamples of both kinds of prompts, as a study takes them."""
    one, two = (
        bootstrap_reextracted(
            each.scores, each.resamples, CALIBRATED, draws=500, rng=np.random.default_rng(seed)
        )
        for each in (a, b)
    )
    return Places(
        one.depth_draws,
        two.depth_draws,
        one.centre_draws,
        two.centre_draws,
        one.argmin_draws,
        two.argmin_draws,
        one.resample,
    )


def verdict(
    a: Anchor, b: Anchor, *, seed: int = 0, thresholds: Thresholds | None = None, paired: bool = True
) -> Verdict:
    """The decision from two measured anchors, with evaluation prompts that nothing else has seen."""
    carriers = [Condition("ablate", "carrier", unit(each.direction)[None]) for each in (a, b)]
    controls = ablation_conditions(unit(b.direction)[None], controls_of(b))[1:]
    texts = harmful_texts(TRANSFER, 50_000 + seed)
    plain, under_a, under_b, *under_random = refusals(b, [Condition(), *carriers, *controls], texts)
    evidence = Evidence(
        places=places(a, b, seed),
        transfer=transfer_counts(plain, under_a, under_b, np.array(under_random)),
        cosine=turn(a, b, paired=paired).cosine,
        rank_difference=rank_change(a, b, paired=paired).difference,
        no_carrier=(a.choice.reason or "", b.choice.reason or ""),
    )
    return decide(evidence, thresholds or Thresholds())


CASES = [
    ("plant", "early other", "relocation", "none"),
    ("plant", "other", "replacement in place", "none"),
    ("plant", "early", "re-siting", "none"),
    ("plant", "turned", "drift only", "none"),
    ("plant", "turned a little", "no change", "none"),
    ("plant", "same", "no change", "none"),
    ("plant", "none", "undetermined", None),
    ("none", "plant", "undetermined", None),
    ("plant", "two", "undetermined", "expansion"),
    ("two", "plant", "undetermined", "contraction"),
]


@pytest.mark.parametrize(("a", "b", "label", "rank"), CASES)
def test_every_label_follows_from_its_plant(a: str, b: str, label: str, rank: str | None) -> None:
    found = verdict(known(a), known(b))
    assert found.label == label, found.reasons
    assert rank is None or found.rank == rank, found.reasons


WIDER, NEARER = Thresholds(angle=15.0), Thresholds(depth_shift=0.2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "start", "inside", "label", "outside", "other", "thresholds"),
    [
        ("depth_shift", "plant", "early", "re-siting", "one block earlier", "no change", None),
        ("depth_shift", "plant", "early other", "relocation", "other, one block earlier", "replacement in place", None),
        ("depth_shift", "plant", "early", "re-siting", "written early", "undetermined", None),  # by depth alone
        ("probability", "late", "mostly early", "re-siting", "partly early", "undetermined", NEARER),
        ("replaced_below", "plant", "turned 60°", "replacement in place", "turned 45°", "drift only", None),
        ("replaced_below", "plant", "turned 60°", "replacement in place", "turned 54°", "undetermined", None),
        ("angle", "plant", "turned 13°", "drift only", "turned 7°", "no change", None),
        ("kept_above", "plant", "a quarter turned 45°", "no change", "a quarter turned 60°", "undetermined", WIDER),
    ],
)  # fmt: skip
def test_plants_on_both_sides_of_every_threshold(
    setting: str, start: str, inside: str, label: str, outside: str, other: str, thresholds: Thresholds | None
) -> None:
    for name, expected in ((inside, label), (outside, other)):
        found = verdict(known(start), known(name), thresholds=thresholds)
        assert found.label == expected, (setting, name, found.reasons)


def test_expansion_is_flagged_for_a_wide_split_and_neither_for_a_small_one_nor_for_a_turn() -> None:
    wide, small = (rank_change(known("plant"), known(name)).difference for name in ("split 50°", "split 30°"))
    assert min(wide.lo, small.lo) > 0
    assert wide.value > 0.25 > small.value
    assert verdict(known("plant"), known("split 50°")).rank == "expansion"
    assert verdict(known("plant"), known("split 30°")).rank == "none"
    assert verdict(known("plant"), known("turned 54°")).rank == "none"


SAMPLED = [
    *CASES[:6],
    ("plant", "one block earlier", "no change", "none"),
    ("plant", "other, one block earlier", "replacement in place", "none"),
    ("plant", "turned 7°", "no change", "none"),
    ("plant", "turned 13°", "drift only", "none"),
]


@pytest.mark.slow
@pytest.mark.timeout(1800)  # the shape checker doubles what a measurement takes
def test_wrong_labels_are_rare_over_prompt_samples() -> None:
    """Every label and plants near two thresholds, on other prompts (a measurement takes many seconds)."""
    wrong, flagged, total = [], 0, 0
    for sample in (1,):
        base = measure(PLANTS["plant"], sample)
        for _, name, label, rank in SAMPLED:
            found = verdict(base, measure(PLANTS[name], sample), seed=sample)
            if found.label != label:
                wrong.append((sample, name, found))
            flagged += found.rank != rank
            total += 1
    assert total == 10
    assert not wrong
    assert not flagged


@pytest.mark.slow
@pytest.mark.timeout(1800)  # the shape checker doubles what a measurement takes
def test_nothing_is_reported_when_only_the_prompt_sample_changes() -> None:
    """One model, measured on other prompts the second time."""
    flags = []
    for sample in range(1, 5):
        one, two = (measure(PLANTS["plant"], 2 * sample + which) for which in (0, 1))
        found = verdict(one, two, seed=sample, paired=False)
        flags.append((found.label, found.rank))
    assert sum(label not in ("no change", "undetermined") for label, _ in flags) == 0
    assert sum(rank != "none" for _, rank in flags) == 0
    assert sum(label == "no change" for label, _ in flags) >= 3
