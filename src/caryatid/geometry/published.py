"""Selection from a table of mean scores, as published with arXiv 2406.11717 (`direction_evaluations.json`).

Released rule (andyrdt/refusal_direction, pipeline/submodules/select_direction.py): a row is discarded when a score is
NaN, when its layer ≥ int(0.8 · L), when KL > 0.1, or when steering < 0; of what is left the lowest refusal score wins,
the first listed of equals.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ..errors import InputError
from .carriers import PUBLISHED, Means, Profile, admissible, pick
from .cosmic import CosmicScores, cosmic_admissible, select_cosmic
from .profiles import COSMIC

FIELDS = ("position", "layer", "refusal_score", "steering_score", "kl_div_score")
_NOT_FINITE = (
    "NaN",
    "nan",
    "Infinity",
    "-Infinity",
    "inf",
    "-inf",
)  # as JSON writers without these numbers put them
COSMIC_FIELDS = ("position", "layer", "kl_div_score", "cosmic_ablated", "cosmic_added")


class TableChoice(NamedTuple):
    """The selected place (None: nothing is admissible), and how many candidates were admissible of how many."""

    position: int | None
    layer: int | None
    admissible: int
    candidates: int


def _number(row: Mapping[str, object], field: str, where: str, fields: Sequence[str] = FIELDS) -> float:
    if field not in row:
        raise InputError(f"no {field!r}", where=where, remedy=f"Each row needs {', '.join(fields)}.")
    value = row[field]
    if value is None:
        return math.nan
    if isinstance(value, str) and value in _NOT_FINITE:
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{field} is {value!r}, not a number", where=where)
    return float(value)


def _integer(row: Mapping[str, object], field: str, where: str, fields: Sequence[str]) -> int:
    value = _number(row, field, where, fields)
    if not value.is_integer():
        raise InputError(f"{field} is {row[field]!r}, not an integer", where=where)
    return int(value)


class _Table(NamedTuple):
    """A table's places, and the scores of the fields after position and layer, one row each."""

    positions: list[int]
    layers: list[int]
    scores: Float[np.ndarray, "rows fields"]


def _read(rows: Sequence[Mapping[str, object]], n_layers: int, fields: Sequence[str]) -> _Table:
    if n_layers < 1:
        raise InputError(f"{n_layers} layers is no model", where="--layers")
    positions, layers, values = [], [], []
    for number, row in enumerate(rows):
        where = f"row {number}"
        positions.append(_integer(row, "position", where, fields))
        layers.append(_integer(row, "layer", where, fields))
        if not 0 <= layers[-1] < n_layers:
            raise InputError(f"layer {layers[-1]} is not one of 0 … {n_layers - 1}", where=where)
        values.append([_number(row, field, where, fields) for field in fields[2:]])
    return _Table(positions, layers, np.array(values, dtype=np.float64).reshape(-1, len(fields) - 2))


def select_from_table(
    rows: Sequence[Mapping[str, object]],
    n_layers: int,
    profile: Profile = PUBLISHED,
    *,
    harmful_score: float | None = None,
    harmless_score: float | None = None,
) -> TableChoice:
    """The best admissible row of a table of mean scores. NaN, null or an infinite score makes a row inadmissible.

    Args:
        n_layers: L of the model, from which the depth cut follows.
        harmful_score, harmless_score: unablated means h and s; needed by profiles with least effects.

    Raises:
        InputError: a malformed row, a layer outside the model, h and s missing where they are needed, or one alone.
    """
    if (harmful_score is None) != (harmless_score is None):
        raise InputError(
            "one of --harmful-score and --harmless-score without the other",
            where="directions select",
            remedy="Give both or neither.",
        )
    if profile.effects_min is not None and (harmful_score is None or harmless_score is None):
        raise InputError(
            f"profile {profile.name!r} needs the unablated mean scores, which the table does not have",
            where="directions select",
            remedy="Give --harmful-score and --harmless-score, or use --profile published.",
        )
    positions, layers, scores = _read(rows, n_layers, FIELDS)
    h = harmful_score if harmful_score is not None else math.inf  # without h and s no gap is looked at
    s = harmless_score if harmless_score is not None else 0.0
    means = Means(
        bypass=scores[None, :, 0],
        induce=scores[None, :, 1],
        kl=scores[None, :, 2],
        h=np.array([h]),
        s=np.array([s]),
    )
    at = np.array(layers, dtype=np.int64)
    count = int(admissible(means, at, n_layers, profile).sum())
    best = int(pick(means, at, n_layers, profile).best[0])
    if best < 0:
        return TableChoice(None, None, count, len(rows))
    return TableChoice(positions[best], layers[best], count, len(rows))


def select_cosmic_from_table(
    rows: Sequence[Mapping[str, object]], n_layers: int, profile: Profile = COSMIC
) -> TableChoice:
    """The row of the highest COSMIC score, cosmic_ablated + cosmic_added, within the profile's KL and depth cuts.

    Nothing else of the profile is asked for (arXiv 2506.00085). NaN or null makes a row inadmissible.

    Raises:
        InputError: a malformed row, a layer outside the model, or no row has the cosines.
    """
    missing = [name for name in COSMIC_FIELDS if not any(name in row for row in rows)]
    if missing:
        raise InputError(
            f"selector cosmic needs columns that the table does not have: {', '.join(missing)}",
            where="directions select",
            remedy="Add them, or use --selector bypass.",
        )
    positions, layers, scores = _read(rows, n_layers, COSMIC_FIELDS)
    kl, ablated, added = scores.T
    cosines = CosmicScores(ablated, added, ablated + added)
    count = int(cosmic_admissible(cosines, kl, layers, n_layers, profile).sum())
    best = select_cosmic(cosines, kl, layers, n_layers, profile)
    if best is None:
        return TableChoice(None, None, count, len(rows))
    return TableChoice(positions[best], layers[best], count, len(rows))
