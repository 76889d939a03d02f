"""Resamples whose few re-extracted candidates leave draws without a carrier are scored at further ones."""

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from caryatid.geometry.bootstrap import bootstrap_reextracted
from caryatid.geometry.carriers import PROFILES, CandidateScores
from caryatid.study.stages import reextraction
from caryatid.study.stages.reextraction import FURTHER, Reextraction

LAYERS, PROMPTS, PROFILE = 20, 12, PROFILES["calibrated"]
PLACES = 6  # candidates, at the layers 2, 4, …


def scores(removed: list[float], leaks: Iterable[int] = (), half: Iterable[int] = ()) -> CandidateScores:
    """Candidates that remove so much of a gap of 8 nats; those that `leaks` names change other answers, too, those that
    `half` names in about half of the draws of prompts."""
    places, prompts = len(removed), PROMPTS
    kl = np.array([[5.0 if place in [*leaks] else 0.01] * prompts for place in range(places)])
    kl[[*half], : prompts // 2] = 2 * PROFILE.kl_max
    return CandidateScores(
        positions=np.full(places, -1),
        layers=2 * np.arange(1, places + 1),
        n_layers=LAYERS,
        harmful=np.full(prompts, 4.0),
        harmless=np.full(prompts, -4.0),
        bypass=np.array([[4.0 - 8.0 * share] * prompts for share in removed]),
        induce=np.full((places, prompts), 4.0),
        kl=kl,
        kl_answer=kl,
    )


WHOLE = scores([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
RESAMPLES: dict[int, tuple[int, ...]] = {  # which candidates are admissible with each resample's directions
    0: (0, 1, 2, 3, 4, 5),
    1: (2, 3),
    2: (1, 5),
    3: (),
    4: (1, 2),
}
HALF = {4: (1,)}  # in about half of the draws alone


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[int], list[int]]]:
    """Which resamples were scored at which candidates, call by call."""
    calls = list[tuple[list[int], list[int]]]()

    def rescored(_: Any, grids: list[int], places: CandidateScores, *, cosmic: bool) -> list[CandidateScores]:
        assert not cosmic
        rows = [int(layer) // 2 - 1 for layer in places.layers]
        calls.append((list(grids), rows))
        every = range(PLACES)
        return [
            scores([0.9, 0.8, 0.7, 0.6, 0.5, 0.4], {*every} - {*RESAMPLES[n]}, HALF.get(n, ())).rows(rows)
            for n in grids
        ]

    def numbered(*_: Any) -> Any:
        return lambda numbers: list(numbers)

    monkeypatch.setattr(reextraction, "rescored", rescored)
    monkeypatch.setattr(reextraction, "resampled_directions", numbered)
    monkeypatch.setattr(reextraction, "scorer_at", lambda _: SimpleNamespace(passes=1))
    monkeypatch.setattr(reextraction, "profile_name", lambda *_: "calibrated")
    monkeypatch.setattr(reextraction, "profiles_of", lambda *_: [PROFILE])
    return calls


def run(whole: CandidateScores) -> list[CandidateScores]:
    """The stage with one candidate at first."""

    class Open:
        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...

    geometry = SimpleNamespace(
        reextraction_resamples=len(RESAMPLES), reextraction_candidates=1, selector="bypass", min_gap=1.0
    )
    study = SimpleNamespace(config=SimpleNamespace(geometry=geometry))
    place = SimpleNamespace(seed=0)
    entry = SimpleNamespace(stage=SimpleNamespace(place=place))
    work = SimpleNamespace(
        study=study,
        entry=entry,
        of=lambda _: SimpleNamespace(scores=whole),
        kept=lambda _: Open(),
        progressing=lambda *_: Open(),
    )
    stage: Any = object.__new__(Reextraction)
    object.__setattr__(stage, "study", study)
    object.__setattr__(stage, "place", place)
    return list(stage.run(work).resamples)


def layers(found: Iterable[CandidateScores]) -> list[list[int]]:
    return [one.layers.tolist() for one in found]


def test_only_resamples_without_a_carrier_are_scored_further_and_while_that_helps(
    asked: list[tuple[list[int], list[int]]],
) -> None:
    found = run(WHOLE)
    assert asked == [([0, 1, 2, 3, 4], [0]), ([1, 2, 3, 4], [1]), ([4], [2])]
    assert layers(found) == [[2], [2, 4], [2, 4], [2, 4], [2, 4, 6]]
    drawn = bootstrap_reextracted(WHOLE, found, PROFILE, draws=50, rng=np.random.default_rng(0), min_gap=1.0)
    none = np.isnan(drawn.depth_draws).reshape(5, 10)
    assert none.all(axis=1).tolist() == [False, True, False, True, False]
    assert none.any(axis=1).tolist() == [False, True, False, True, False]


def test_further_candidates_are_scored_three_times_at_most(
    asked: list[tuple[list[int], list[int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reextraction, "LACKING", 0.0)
    fewer = (1.0 - 0.01 * n for n in range(100))
    shares = iter([0.0, 0.0, *fewer])  # of all candidates, of one resample, of the others again and again
    monkeypatch.setattr(reextraction, "lacking_share", lambda *_, **__: next(shares))
    run(WHOLE)
    assert [rows for _, rows in asked] == [[0], [1], [2], [3]]
    assert len(asked) == 1 + FURTHER
    assert [numbers for numbers, _ in asked][1:] == [[1, 2, 3, 4]] * FURTHER


def test_where_the_directions_as_extracted_lack_a_carrier_too_nothing_is_scored_further(
    asked: list[tuple[list[int], list[int]]],
) -> None:
    run(scores([0.9, 0.8, 0.7, 0.6, 0.5, 0.4], range(PLACES)))
    assert asked == [([0, 1, 2, 3, 4], [0])]
