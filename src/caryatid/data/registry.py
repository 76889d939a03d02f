"""The named benchmarks (`registry.json`): official addresses, checksums, licences, and how their files are read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..paths import package_json
from . import readers
from .prompts import Label, Prompt, Role

Reader = Callable[[str, Sequence[bytes]], list[Prompt]]


@dataclass(frozen=True)
class SourceFile:
    """A published file.

    Attributes:
        path: where it lies under `CARYATID_DATA` and in the cache.
        url: official address, at a fixed revision.
        sha256: of its bytes.
    """

    path: str
    url: str
    sha256: str


@dataclass(frozen=True)
class NamedSet:
    """A named benchmark set. `group` names what is fetched together; the first file holds the prompts."""

    name: str
    group: str
    role: Role
    label: Label
    rows: int
    licence: str
    files: tuple[SourceFile, ...]
    reader: Reader


def _named_set(record: Mapping[str, Any]) -> NamedSet:
    """A record of `registry.json`; `reader` names a function of `readers`."""
    return NamedSet(
        **{
            **record,
            "role": Role(record["role"]),
            "files": tuple(SourceFile(**file) for file in record["files"]),
            "reader": getattr(readers, record["reader"]),
        }
    )


REGISTRY: dict[str, NamedSet] = {
    record["name"]: _named_set(record) for record in package_json("data/registry.json")
}
