"""What is intervened with where no direction is admissible: by `intervene`, and in a study."""

from dataclasses import replace

import numpy as np
import pytest
from caryatid.study.carrier import strongest
from caryatid.study.single import gentlest

from caryatid.errors import NumericalError
from caryatid.geometry.carriers import CALIBRATED, CandidateScores


def scores(bypass: list[float], kl: list[float], induce: list[float] | None = None) -> CandidateScores:
    def rows(values: list[float]) -> np.ndarray:
        return np.repeat(np.array(values)[:, None], 2, axis=1)

    count = len(bypass)
    return CandidateScores(
        positions=np.full(count, -1),
        layers=np.arange(count),
        n_layers=10,
        harmful=np.full(2, 4.0),
        harmless=np.full(2, -4.0),
        bypass=rows(bypass),
        induce=rows([0.0] * count if induce is None else induce),
        kl=rows(kl),
        kl_answer=rows(kl),
    )


def test_lowest_bypass_within_the_kl_cut_else_lowest_kl() -> None:
    assert gentlest(scores([1.0, -3.0, -2.0], [0.1, 0.9, 0.3]), CALIBRATED) == 2
    assert gentlest(scores([1.0, -3.0, -2.0], [0.6, 0.9, 0.5]), CALIBRATED) == 2
    assert gentlest(scores([1.0, -3.0, -2.0], [0.4, 0.9, 0.5]), CALIBRATED) == 0


def test_candidates_without_finite_scores_are_passed_over() -> None:
    nan = float("nan")
    assert gentlest(scores([nan, 1.0, 0.5], [0.1, 0.1, 0.2]), CALIBRATED) == 2
    assert gentlest(scores([0.0, 1.0, 0.5], [nan, 0.9, 0.8]), CALIBRATED) == 2
    broken = replace(scores([0.0], [0.1]), kl=np.full((1, 2), nan))
    with pytest.raises(NumericalError, match="no candidate has finite scores"):
        gentlest(broken, CALIBRATED)


def test_a_study_takes_what_both_removes_and_induces_below_the_depth_cut() -> None:
    nan = float("nan")
    # layer 1 breaks the model: it removes more than anything, at a KL of 3, and induces nothing
    bypass, kl = [3.9, -9.0, 1.0, -1.0] + [4.0] * 4 + [-4.0], [0.1, 3.0, 0.1, 0.6] + [0.1] * 5
    induce = [-4.0, -4.0, 1.0, 0.5] + [-4.0] * 4 + [4.0]
    assert strongest(scores(bypass, kl, induce), CALIBRATED) == 3
    induce[3] = nan
    assert strongest(scores(bypass, kl, induce), CALIBRATED) == 2
    assert strongest(scores(bypass, kl, [nan] * 9), CALIBRATED) == 1  # lowest bypass
