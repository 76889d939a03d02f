"""Sensitivity rows for prompts that do not behave: which groups of prompts enter which direction."""

import numpy as np
import pytest
import torch

from caryatid.causal.locate import Site
from caryatid.geometry.directions import mean_difference
from caryatid.study.stages.behaved import AMONG_HARMFUL, FILTERED, compared, grouped
from caryatid.study.stages.selection import SelectionAnswer

SITE = Site(3, -1, admissible=True)


def groups(counts: tuple[int, int, int, int], noise: float = 0.05) -> list[torch.Tensor]:
    """Harmful refused and answered, harmless answered and refused: axis 0 is harm, axis 1 refusal."""
    rng = np.random.default_rng(0)
    centres = ((1.0, 1.0), (1.0, 0.0), (0.0, 0.0), (0.0, 1.0))
    found = []
    for count, centre in zip(counts, centres, strict=True):
        rows = noise * rng.normal(size=(count, 16))
        rows[:, :2] += centre
        found.append(torch.tensor(rows))
    return found


def test_refusal_among_harmful_prompts_is_told_from_harm() -> None:
    """Of the harmful prompts half are refused: r = harm + refusal/2, 26.6° from harm, 63.4° from refusal."""
    row = compared(AMONG_HARMFUL, groups((20, 20, 40, 0)), SITE)
    assert (row["n"], row["n_against"], row["note"]) == (20, 20, "")
    assert row["angle"] == pytest.approx(63.4, abs=2)
    assert row["angle_lo"] < 63.4 < row["angle_hi"]
    assert row["cosine"] == pytest.approx(np.cos(np.radians(63.4)), abs=0.03)
    filtered = compared(FILTERED, groups((20, 20, 40, 0)), SITE)
    assert filtered["angle"] == pytest.approx(45 - 26.6, abs=2)  # harm + refusal against r
    assert filtered["norm_ratio"] == pytest.approx(np.sqrt(2) / np.sqrt(1.25), abs=0.05)


def test_the_filtered_direction_is_r_where_all_behave() -> None:
    row = compared(FILTERED, groups((20, 0, 20, 0)), SITE)
    assert row["cosine"] == pytest.approx(1)
    assert row["angle"] == pytest.approx(0, abs=1e-3)


def test_refused_harmless_prompts_are_left_out_of_the_filtered_direction_and_not_of_r() -> None:
    parts = groups((20, 20, 30, 10))
    row = compared(FILTERED, parts, SITE)
    r = mean_difference(torch.cat(parts[:2]), torch.cat(parts[2:]))
    direction = parts[0].mean(0) - parts[2].mean(0)
    assert row["cosine"] == pytest.approx(float(r @ direction / r.norm() / direction.norm()))
    assert row["n_against"] == 30


@pytest.mark.parametrize(
    ("name", "counts", "note"),
    [
        (AMONG_HARMFUL, (20, 0, 20, 0), "one of the two groups of prompts is empty"),
        (AMONG_HARMFUL, (0, 20, 20, 0), "one of the two groups of prompts is empty"),
        (AMONG_HARMFUL, (19, 1, 20, 0), "the angle takes two prompts in every group"),
        (FILTERED, (20, 20, 19, 1), "the angle takes two prompts in every group"),
    ],
)
def test_what_cannot_be_told_is_said(name: str, counts: tuple[int, int, int, int], note: str) -> None:
    row = compared(name, groups(counts), SITE)
    assert row["note"] == note
    assert "angle" not in row


def test_prompts_whose_answer_could_not_be_scored_are_in_no_group() -> None:
    def answers(*verdicts: str) -> list[SelectionAnswer]:
        return [SelectionAnswer(str(i), "", (), verdict, None) for i, verdict in enumerate(verdicts)]

    sides = (
        answers("full_refusal", "", "full_compliance", "partial_refusal"),
        answers("full_compliance", "full_refusal"),
    )
    found = grouped(sides, torch.arange(4.0), torch.arange(10.0, 12.0))
    assert [group.tolist() for group in found] == [[0, 3], [2], [10], [11]]
