"""Planted models (`planted.py`) in which the loss of a cone determines it: what carries refusal is read linearly.

The reader of the other plants has a threshold: ablating a direction that is turned by 30° from the plant silences it as
well as the plant itself, and no loss can tell the two apart. Nor do harmless prompts hold any of the plant here: if
their mean along it were not zero, ablation would not put harmful prompts where harmless ones are, and turning would.
Digits have no content, which would be part of the mean difference.
"""

import torch
from torch import Tensor

from caryatid.models.load import LoadedModel
from planted import CONSTANT, MARKER, NOISE, REFUSAL, WIDTH, Plant, axis, planted

WRITER, RELAY, READER = 1, 3, 6  # the reader writes below no admissible layer: what it writes is no candidate
SITE = 2  # a block input between writer and relay


def _linear(model: LoadedModel, block: int, read: Tensor, write: Tensor) -> None:
    """A block's MLP writes ⟨read, normalised stream⟩ along `write`: its gate sees the constant alone."""
    mlp = model.model.model.layers[block].mlp
    with torch.no_grad():
        mlp.gate_proj.weight[0] = torch.nn.functional.one_hot(torch.tensor(CONSTANT), WIDTH) * 0.5
        mlp.up_proj.weight[0] = read
        mlp.down_proj.weight[:, 0] = write


def _unmarked() -> LoadedModel:
    """The plant that is written along `axis(0)`, by nothing but the digits of harmful texts."""
    model = planted(Plant(writer=WRITER, reader=READER))
    with torch.no_grad():
        weight = model.model.model.embed_tokens.weight
        digits = weight[:, MARKER] > 4
        weight[~digits, MARKER] = 0.0
        weight[digits, NOISE] = 0.0
    return model


def single() -> LoadedModel:
    """One direction, `axis(0)`, carries refusal."""
    model = _unmarked()
    _linear(model, READER, axis(0), 1.2 * torch.eye(WIDTH)[REFUSAL])
    return model


def chain() -> LoadedModel:
    """A cone of two: what is written along `axis(0)` is read and written again along `axis(1)`, which alone is read.

    Ablating either, or any positive mixture, breaks the chain; a mixture of unlike signs does not.
    """
    model = _unmarked()
    _linear(model, RELAY, axis(0), 0.8 * axis(1))
    _linear(model, READER, axis(1), 1.2 * torch.eye(WIDTH)[REFUSAL])
    return model
