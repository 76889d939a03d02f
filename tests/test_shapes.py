"""Shapes are checked while tests run: a wrong one fails."""

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError

from caryatid.causal.conditions import Condition
from caryatid.causal.readouts import rate_row
from caryatid.causal.scores import CandidateDirections, refusal_score
from caryatid.geometry.directions import mean_difference
from caryatid.models.directional import Ablate
from shape_checks import shaped_modules


def test_a_wrong_shape_fails() -> None:
    logits, tokens = torch.zeros(2, 10), torch.tensor([3])
    assert refusal_score(logits, tokens).shape == (2,)
    for wrong in (
        (logits[0], tokens),
        (logits, tokens[None]),
        (logits, tokens.float()),
        (logits.numpy(), tokens),
    ):
        with pytest.raises(TypeCheckError):
            refusal_score(*wrong)
    with pytest.raises(TypeCheckError):  # dimensions of one name differ
        mean_difference(torch.zeros(3, 4, 8), torch.zeros(3, 5, 8))
    with pytest.raises(TypeCheckError):
        rate_row(Condition(), "refusal", np.zeros((2, 2)))


def test_a_wrong_shape_of_a_dataclass_fails() -> None:
    with pytest.raises(TypeCheckError):
        CandidateDirections(torch.zeros(8), (-1,), (0,))
    with pytest.raises(TypeCheckError):
        Ablate(torch.eye(4)[None], torch.ones(1, 1))


def test_modules_are_found_by_what_they_import() -> None:
    found = shaped_modules()
    assert {"caryatid.causal.grid", "caryatid.geometry.angles", "caryatid.models.directional"} <= set(found)
    assert "caryatid.errors" not in found
