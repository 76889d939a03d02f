"""What `directions select` and `geometry metrics` do with a file."""

import json
from pathlib import Path
from typing import Any

from caryatid.errors import DataMissingError, InputError
from caryatid.geometry.carriers import PROFILES
from caryatid.geometry.published import TableChoice, select_cosmic_from_table, select_from_table

SELECTORS = ("bypass", "cosmic")


def select_file(
    path: Path,
    n_layers: int,
    profile: str = "published",
    *,
    selector: str = "bypass",
    harmful_score: float | None = None,
    harmless_score: float | None = None,
) -> TableChoice:
    """Select from a JSON list of rows `position, layer, refusal_score, steering_score, kl_div_score`.

    Selector `cosmic` reads `position, layer, kl_div_score, cosmic_ablated, cosmic_added`, and uses only KL and depth
    cuts of the profile.

    Raises:
        DataMissingError: no such file. InputError: it cannot be used, or the profile or the selector is unknown.
    """
    if selector not in SELECTORS:
        raise InputError(
            f"unknown selector {selector!r}", where="--selector", remedy=f"Use {', '.join(SELECTORS)}."
        )
    if profile not in PROFILES:
        raise InputError(
            f"unknown profile {profile!r}", where="--profile", remedy=f"Use {', '.join(PROFILES)}."
        )
    try:
        rows: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataMissingError(
            f"cannot be read: {error.strerror}", where=str(path), remedy="Check the path."
        ) from error
    except ValueError as error:
        raise InputError(f"is not JSON: {error}", where=str(path)) from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows) or not rows:
        raise InputError(
            "is not a list of rows", where=str(path), remedy="See `caryatid directions select --help`."
        )
    try:
        if selector == "cosmic":
            return select_cosmic_from_table(rows, n_layers, PROFILES[profile])
        return select_from_table(
            rows,
            n_layers,
            PROFILES[profile],
            harmful_score=harmful_score,
            harmless_score=harmless_score,
        )
    except InputError as error:
        if error.where and error.where.startswith("row "):
            raise InputError(error.what, where=f"{path}: {error.where}", remedy=error.remedy) from error
        raise


def metrics_file(path: Path, *, unit_norm: bool = False) -> dict[str, Any]:
    """Rank figures of every tensor of a safetensors file, as `geometry metrics --json` prints them.

    With one tensor its result, with several `{"tensors": {name: result}}`. A result has `shape`, and
    `effective_rank`, `participation_ratio`, `stable_rank`: numbers for a matrix [rows, d], lists for a stack of
    matrices [slices, rows, d] (further leading dimensions are flattened). A vector counts as a matrix of one row.

    Raises:
        InputError: not a safetensors file, an empty one, or a tensor that is no floating-point matrix.
        NumericalError: a matrix is not finite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise DataMissingError("there is no such file", where=str(path), remedy="Check the path.")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"is not a safetensors file: {error}", where=str(path)) from error
    if not tensors:
        raise InputError("holds no tensor", where=str(path))
    results = {
        name: _figures(tensor, f"{path}: {name}", unit_norm) for name, tensor in sorted(tensors.items())
    }
    if len(results) == 1:
        ((name, result),) = results.items()
        return {"tensor": name, **result}
    return {"tensors": results}


def _figures(tensor: Any, where: str, unit_norm: bool) -> dict[str, Any]:
    from caryatid.geometry.rank import RankFigures, rank_figures

    if tensor.ndim == 0 or tensor.numel() == 0 or not tensor.is_floating_point():
        raise InputError(f"a {tensor.dtype} tensor of shape {tuple(tensor.shape)} is no matrix", where=where)
    shared = {"shape": list(tensor.shape), "unit_norm": unit_norm}
    if tensor.ndim <= 2:
        return {**shared, **rank_figures(tensor.reshape(-1, tensor.shape[-1]), unit_norm)._asdict()}
    slices = [rank_figures(each, unit_norm) for each in tensor.flatten(0, -3)]
    columns = {name: [getattr(each, name) for each in slices] for name in RankFigures._fields}
    return {**shared, **columns, "slices": [{"slice": i, **each._asdict()} for i, each in enumerate(slices)]}
