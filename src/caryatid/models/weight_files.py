"""Which files of a model folder hold its weights, and under which names: known before any tensor is read."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from ..errors import DataMissingError, InputError
from .quiet import last_line

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_AGAIN = "Download the model again."
# What torch.compile, DDP, DeepSpeed, FSDP and PEFT put before the names of a model that is saved inside them.
_WRAPPED = re.compile(
    r"((?:_orig_mod|module|_forward_module|_fsdp_wrapped_module|_ddp_module|base_model\.model)\.)+"
)
_INTEGERS = re.compile(r"[IU]\d+")  # safetensors' names of integer types


def used_files(folder: Path, spec: str) -> list[Path]:
    """The files that transformers reads a folder's weights from.

    Raises:
        DataMissingError: some are missing. InputError: there are two sets of them, none under the usual name, or the
            index cannot be read.
    """
    whole, index = folder / _asked(folder), folder / INDEX
    if whole.name.endswith(INDEX.partition(".")[2]):
        index, whole = whole, folder / WHOLE
    elif whole.name != WHOLE and whole.is_file():
        return [whole]
    if not index.is_file():
        if whole.is_file():
            return [whole]
        found = sorted(path.name for path in folder.glob("*.safetensors"))
        raise InputError(
            f"its weights are in {found[0] if found else 'no file'}, not in {whole.name}, and there is no {INDEX}",
            where=spec,
            remedy=f"Name a single file {WHOLE}; put the index beside several.",
        )
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        named = sorted(set(content["weight_map"].values())) if isinstance(content["metadata"], dict) else []
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"not an index of weights ({last_line(error)})", where=str(index), remedy=_AGAIN
        ) from error
    shards = [folder / str(name) for name in named]
    missing = [path.name for path in shards if not path.is_file()]
    if whole.is_file() and named != [WHOLE]:
        if len(missing) < len(shards):
            raise InputError(
                f"it holds two sets of weights: {WHOLE}, and the parts that {INDEX} names",
                where=spec,
                remedy="Remove the set that is not meant.",
            )
        return [whole]
    if missing:
        raise DataMissingError(
            f"{len(missing)} of the {len(shards)} files of its weights are missing, first {missing[0]}",
            where=spec,
            remedy=_AGAIN,
        )
    return shards


def _asked(folder: Path) -> str:
    """The file that a model's configuration names for its weights; mostly none."""
    try:
        asked = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("transformers_weights")
    except (OSError, ValueError, AttributeError):  # said where the configuration is read
        asked = None
    return str(asked or WHOLE)


def check_files(folder: Path, spec: str) -> tuple[str, ...]:
    """Notes about files of weights that are not used.

    Raises:
        DataMissingError, InputError: as `used_files`.
    """
    used = {path.name for path in used_files(folder, spec)} | {"adapter_model.safetensors"}
    rest = sorted(path.name for path in folder.glob("*.safetensors") if path.name not in used)
    if not rest:
        return ()
    shown = ", ".join(rest[:3]) + (", …" if len(rest) > 3 else "")
    return (f"{spec}: {len(rest)} files are not among its weights and not used: {shown}",)


class Stored(NamedTuple):
    """What the headers of a folder's weights say.

    Attributes:
        wrapper: what stands before every name because the model was saved inside a wrapper; mostly nothing.
        integers: matrices that are stored as integers.
    """

    wrapper: str
    integers: tuple[str, ...]


def stored(folder: Path, spec: str) -> Stored:
    """Read the headers of a folder's weights.

    Raises:
        DataMissingError: a file is damaged. InputError: as `used_files`.
    """
    wrappers, integers = set(), []
    for path in used_files(folder, spec):
        with opened(path, spec) as file:
            for name in file.keys():  # noqa: SIM118 - a safetensors file is no mapping
                wrappers.add(_wrapper(name))
                if name.endswith(".weight") and _INTEGERS.fullmatch(file.get_slice(name).get_dtype()):
                    integers.append(name)
    return Stored(wrappers.pop() if len(wrappers) == 1 else "", tuple(integers))


def _wrapper(name: str) -> str:
    match = _WRAPPED.match(name)
    return match.group() if match else ""


@contextmanager
def opened(path: Path, spec: str) -> Iterator[Any]:
    """A file of weights, of which the header is read and no tensor.

    Raises:
        DataMissingError: it is damaged.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except (SafetensorError, OSError) as error:
        pointer = path.stat().st_size < 1024 and path.read_bytes().startswith(b"version https://git-lfs")
        what = "is a pointer of Git LFS, not the file itself" if pointer else f"is damaged ({error})"
        remedy = "Get it with git lfs pull." if pointer else _AGAIN
        raise DataMissingError(f"{path.name} {what}", where=spec, remedy=remedy) from error
