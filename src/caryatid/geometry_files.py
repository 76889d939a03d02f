"""Geometry of a file, for the commands `directions select` and `geometry metrics`."""

import json
from pathlib import Path
from typing import Any

from .errors import DataMissingError, InputError, NumericalError
from .geometry.profiles import PROFILES, SELECTORS
from .geometry.published import TableChoice, select_cosmic_from_table, select_from_table


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
    """Rank figures of every matrix of a tensor file, as `geometry metrics --json` prints them.

    With one matrix its result, with several `{"tensors": {name: result}}`. A result has `shape`, and
    `effective_rank`, `participation_ratio`, `stable_rank`: numbers for a matrix [rows, d], lists for a stack of
    matrices [slices, rows, d] (further leading dimensions are flattened). A vector counts as a matrix of one row.
    A matrix of zeros has no rank: NaN. Tensors that are no floating-point matrix are left out and named in `skipped`.

    Args:
        path: a safetensors file; or a `.pt` or `.pth` file with a tensor, or a dictionary of them, read without running
            any code in it.

    Raises:
        DataMissingError: there is no file. InputError: it is none of these, or has no floating-point matrix.
        NumericalError: a matrix is not finite.
    """
    if not path.is_file():
        raise DataMissingError("there is no such file", where=str(path), remedy="Check the path.")
    tensors = _torch_file(path) if path.suffix in (".pt", ".pth") else _safetensors_file(path)
    if not tensors:
        raise InputError("holds no tensor", where=str(path))
    usable = {name: tensor for name, tensor in sorted(tensors.items()) if _is_matrix(tensor)}
    skipped = sorted(set(tensors) - set(usable))
    if not usable:
        other = tensors[skipped[0]]
        raise InputError(
            f"a {other.dtype} tensor of shape {tuple(other.shape)} is no matrix",
            where=f"{path}: {skipped[0]}",
        )
    results = {name: _figures(tensor, f"{path}: {name}", unit_norm) for name, tensor in usable.items()}
    rest = {"skipped": skipped} if skipped else {}
    if len(results) == 1:
        ((name, result),) = results.items()
        return {"tensor": name, **result, **rest}
    return {"tensors": results, **rest}


def _safetensors_file(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Any] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"is not a safetensors file: {error}", where=str(path)) from error
    return tensors


def _torch_file(path: Path) -> dict[str, Any]:
    import pickle
    import zipfile

    import torch

    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise InputError(
            "is not a torch file of plain tensors", where=str(path), remedy="Save them as safetensors."
        ) from error
    tensors = {path.stem: loaded} if isinstance(loaded, torch.Tensor) else loaded
    if not isinstance(tensors, dict):
        raise InputError("holds no tensor", where=str(path))
    return {str(name): tensor for name, tensor in tensors.items() if isinstance(tensor, torch.Tensor)}


def _is_matrix(tensor: Any) -> bool:
    return bool(tensor.ndim > 0 and tensor.numel() > 0 and tensor.is_floating_point())


def _figures(tensor: Any, where: str, unit_norm: bool) -> dict[str, Any]:
    from .geometry.rank import RankFigures, rank_figures

    shared = {"shape": list(tensor.shape), "unit_norm": unit_norm}
    matrices = tensor.reshape(-1, *tensor.shape[-2:]) if tensor.ndim > 1 else tensor[None, None]
    try:
        figures = [rank_figures(each, unit_norm) for each in matrices]
    except NumericalError as error:
        raise NumericalError(error.what, where=where, remedy="Check what wrote it.") from error
    if tensor.ndim <= 2:
        return {**shared, **figures[0]._asdict()}
    columns = {name: [getattr(each, name) for each in figures] for name in RankFigures._fields}
    return {**shared, **columns, "slices": [{"slice": i, **each._asdict()} for i, each in enumerate(figures)]}
