"""Intervals on planted models cover what they claim to: 200 samples of prompts from a large pool, measured once."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pytest
import torch

from caryatid.causal.activations import at_site, prompt_activations
from caryatid.causal.scores import CandidateDirections, ScoringSettings, SelectionPrompts, score_candidates
from caryatid.geometry.angles import excess_angle
from caryatid.geometry.bootstrap import best_bypass_interval
from caryatid.geometry.carriers import CandidateScores, Profile, average, effects
from caryatid.geometry.directions import candidate_directions
from caryatid.geometry.rank import SiteActivations, compare_ranks
from caryatid.models.generate import Decoding, generate
from caryatid.models.template import ChatFormat
from caryatid.stats import Interval
from planted import Plant, axis, categories, harmful_texts, harmless_texts, planted, refusal_ids, rotated

pytestmark = pytest.mark.slow
POOL, SAMPLES, PROMPTS = 1200, 200, 32
ANY = Profile("any", kl_max=1e9)
SITE = 4  # after the writer, before the reader has written
PLANTS = {"plant": Plant(), "turned": Plant(direction=rotated(30)), "two": Plant(second=axis(1))}


class Prompts(NamedTuple):
    """Which prompts of the pool are in a sample; equally many harmful ones of each category."""

    harmful: np.ndarray
    harmless: np.ndarray


def sample(seed: int) -> Prompts:
    rng = np.random.default_rng(seed)
    chosen = [4 * rng.choice(POOL // 4, PROMPTS // 4, replace=False) + category for category in range(4)]
    return Prompts(np.sort(np.concatenate(chosen)), rng.choice(POOL, PROMPTS, replace=False))


@lru_cache(maxsize=4)
def pool(name: str) -> SiteActivations:
    loaded = planted(PLANTS[name])
    chat = ChatFormat(loaded.tokenizer, "")
    sides = (
        prompt_activations(loaded, chat.ids_many(texts), n_positions=1, batch_size=200, layers=(SITE,))
        for texts in (harmful_texts(POOL), harmless_texts(POOL))
    )
    return at_site(*sides, 0, -1)


def at(name: str, chosen: Prompts) -> SiteActivations:
    whole = pool(name)
    return SiteActivations(whole.harmful[chosen.harmful], whole.harmless[chosen.harmless])


def labels(chosen: Prompts) -> list[str]:
    every = categories(POOL)
    return [every[index] for index in chosen.harmful]


def coverage(found: list[Interval], truth: float) -> float:
    return float(np.mean([interval.lo <= truth <= interval.hi for interval in found]))


def pooled_scores() -> CandidateScores:
    """The direction of 32 + 32 prompts, scored on all others of the pool's kind."""
    loaded = planted(PLANTS["plant"])
    chat = ChatFormat(loaded.tokenizer, "")
    site = at("plant", sample(0))
    kept = harmless_texts(POOL, 9000)
    directions = candidate_directions(site.harmful[:, None, None], site.harmless[:, None, None])
    return score_candidates(
        loaded,
        CandidateDirections.of_grid(directions, positions=(-1,), layers=(SITE,)),
        SelectionPrompts(
            chat.ids_many(harmful_texts(POOL, 8000)),
            chat.ids_many(kept),
            [c.ids for c in generate(loaded, chat, kept, Decoding(1, 200))],
            refusal_ids(loaded),
        ),
        ScoringSettings(200, answer_tokens=1),
    )


def test_the_bypass_effect_of_the_pool_is_covered() -> None:
    scores, found = pooled_scores(), []
    for seed in range(SAMPLES):
        up, down = sample(seed)
        one = CandidateScores(
            scores.positions,
            scores.layers,
            scores.n_layers,
            scores.harmful[up],
            scores.harmless[down],
            scores.bypass[:, up],
            scores.induce[:, down],
            scores.kl[:, down],
            scores.kl_answer[:, down],
        )
        found.append(best_bypass_interval(one, ANY, draws=500, rng=np.random.default_rng(seed)))
    truth = float(effects(average(scores)).bypass[0, 0])
    assert 0.5 < truth < 1.1
    assert 0.91 <= coverage(found, truth) <= 0.99


@pytest.mark.parametrize("name", ["plant", "two"])
def test_the_expected_effective_rank_is_covered(name: str) -> None:
    sites = [(at(name, one), labels(one)) for one in map(sample, range(SAMPLES))]
    found = [compare_ranks(site, site, names)["effective_rank"].a for site, names in sites]
    assert 0.91 <= coverage(found, float(np.mean([each.value for each in found]))) <= 0.99


def test_the_expected_excess_angle_is_covered_and_is_the_angle_of_the_plants() -> None:
    found = [
        excess_angle(at("plant", one), at("turned", one), labels(one), rng=np.random.default_rng(seed)).excess
        for seed, one in enumerate(map(sample, range(SAMPLES)))
    ]
    truth = float(np.mean([each.value for each in found]))
    assert truth == pytest.approx(30, abs=3)
    assert 0.91 <= coverage(found, truth) <= 0.99


def test_pools_are_distinct_prompts() -> None:
    for texts in (harmful_texts(POOL), harmless_texts(POOL)):
        assert len(set(texts)) == POOL
    assert torch.isfinite(pool("plant").harmful).all()
