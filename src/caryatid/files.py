"""Files: canonical JSON and its hashes, atomic writes, and reading with errors that name the file."""

import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from .errors import InputError

KEY_LENGTH = 20
TEMPORARY = ".tmp"  # how the names end of files that are being written; a killed process leaves them behind
DAMAGED_FILE = "Delete the file's folder and run again."


def canonical_json(value: object) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def content_key(value: object) -> str:
    """The first `KEY_LENGTH` hexadecimal digits of the SHA-256 of `value` as canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:KEY_LENGTH]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A binary stream whose content appears at `path` whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=TEMPORARY)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically."""
    with atomic_file(path) as stream:
        stream.write(content)


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON, atomically. NaN is refused: store None."""
    write_bytes(path, (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())


def read_json(path: Path, *, remedy: str = DAMAGED_FILE) -> Any:
    """Read a JSON file; a damaged one is a user-facing error that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f"not readable as JSON ({error})",
            where=str(path),
            remedy=remedy,
        ) from error


def read_manifest(path: Path, remedy: str) -> dict[str, Any]:
    """A manifest.

    Raises:
        InputError: it is no JSON object.
    """
    found = read_json(path, remedy=remedy)
    if not isinstance(found, dict):
        raise InputError("not a manifest: no JSON object", where=str(path), remedy=remedy)
    return found


def nan_to_none(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A record's fields for JSON, which has no NaN."""
    return {
        key: None if isinstance(value, float) and value != value else value for key, value in fields.items()
    }


def none_to_nan(fields: Mapping[str, Any], record: type) -> dict[str, Any]:
    """The inverse of `nan_to_none`, for the float fields of a dataclass."""
    floats = {name for name, kind in record.__annotations__.items() if kind is float}
    return {key: math.nan if value is None and key in floats else value for key, value in fields.items()}


@contextmanager
def system_errors(path: Path) -> Iterator[None]:
    """Inside, what safetensors says of a disk that is full, or of a folder that is read-only, is an OSError."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        if found := re.search(r"\(os error (\d+)\)", str(error)):
            number = int(found[1])
            raise OSError(number, os.strerror(number), str(path)) from error
        raise
