"""Typed results of stages on disk: plain values as JSON, tensors and arrays as safetensors, read back as they were."""

import dataclasses
import functools
import math
import types
from collections.abc import Mapping
from enum import Enum
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch

from .artifacts import DAMAGED_FILE, StageFolder
from .errors import InputError

R = TypeVar("R")
PLAIN, ARRAYS = "result.json", "arrays.safetensors"
_MARK = "$array"  # {"$array": NAME} stands for an array of the safetensors file
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def save_result(result: Any, folder: StageFolder) -> None:
    """Write a dataclass of plain values, tuples, dictionaries, further dataclasses, tensors and arrays.

    A float that is not finite is stored as the text "NaN" or "Infinity"; in cells without a declared type (rows of
    tables) as null.
    """
    arrays: dict[str, torch.Tensor] = {}
    folder.write_json(PLAIN, _plain(result, type(result), "", arrays))
    if arrays:
        folder.write_tensors(ARRAYS, _unshared(arrays))


def load_result(kind: type[R], folder: StageFolder) -> R:
    """Read back what `save_result` wrote.

    Raises:
        InputError: the file holds something else.
    """
    arrays = folder.read_tensors(ARRAYS) if folder.file(ARRAYS).exists() else {}
    try:
        result: R = _typed(folder.read_json(PLAIN), kind, arrays)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise InputError(
            f"not a result of {kind.__name__} ({error})",
            where=str(folder.file(PLAIN)),
            remedy=DAMAGED_FILE,
        ) from error
    return result


def _unshared(arrays: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same with a copy of each tensor whose memory an earlier one has, which safetensors refuses."""
    seen: set[int] = set()
    found = {}
    for name, value in arrays.items():
        place = value.untyped_storage().data_ptr()
        found[name] = value.clone() if place in seen else value
        seen.add(place)
    return found


def _plain(value: Any, hint: Any, path: str, arrays: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor | np.ndarray):
        arrays[path] = (
            torch.from_numpy(np.array(value, order="C")) if isinstance(value, np.ndarray) else value
        )
        return {_MARK: path}
    if dataclasses.is_dataclass(value):
        kind: Any = type(value)
        hints = _hints(kind)
        named = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
        return {name: _plain(one, hints[name], f"{path}.{name}", arrays) for name, one in named}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        hints = _hints(type(value))
        pairs = zip(value._fields, value, strict=True)
        return [_plain(one, hints[name], f"{path}.{name}", arrays) for name, one in pairs]
    if isinstance(value, Mapping):
        inner = (get_args(hint) or (Any, Any))[-1]
        return {str(key): _plain(one, inner, f"{path}.{key}", arrays) for key, one in value.items()}
    if isinstance(value, list | tuple):
        inner = (get_args(hint) or (Any,))[0]
        return [_plain(one, inner, f"{path}.{number}", arrays) for number, one in enumerate(value)]
    if isinstance(value, Enum):
        return value.value
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float) and not math.isfinite(value):
        if hint is Any:
            return None
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _typed(value: Any, hint: Any, arrays: Mapping[str, torch.Tensor]) -> Any:
    origin, parts = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if isinstance(value, dict) and _MARK in value:
        found = arrays[value[_MARK]]
        return found if issubclass(torch.Tensor, getattr(hint, "array_type", hint)) else found.numpy()
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        return _typed(value, next(part for part in parts if part is not type(None)), arrays)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        hints = _hints(hint)
        return hint(**{name: _typed(one, hints[name], arrays) for name, one in value.items()})
    if isinstance(hint, type) and issubclass(hint, tuple) and hasattr(hint, "_fields"):
        hints = _hints(hint)
        return hint(
            *(_typed(one, hints[name], arrays) for name, one in zip(hint._fields, value, strict=True))
        )
    if origin is tuple and parts[1:] != (Ellipsis,):
        return tuple(_typed(one, part, arrays) for one, part in zip(value, parts, strict=True))
    if origin in (tuple, list):
        return origin(_typed(one, parts[0], arrays) for one in value)
    if origin in (dict, Mapping):
        if parts[0] is int:
            return {int(key): _typed(one, parts[1], arrays) for key, one in value.items()}
        return {key: _typed(one, parts[1], arrays) for key, one in value.items()}
    if isinstance(hint, type) and issubclass(hint, Enum):
        return hint(value)
    if hint is float:
        return _NOT_FINITE[value] if isinstance(value, str) else float(value)
    return value


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)
