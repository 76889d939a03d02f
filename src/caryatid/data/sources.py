"""Where named prompt sets are found: `CARYATID_DATA`, then the cache, then their official addresses."""

import hashlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from ..artifacts import write_bytes
from ..errors import DataMissingError, UsageError
from ..paths import cache_dir, data_dir, hub_offline
from ..progress import NO_PROGRESS, Progress
from .download import DownloadError, download
from .embedded_sets import FILES, LICENCE, embedded_folder, embedded_rows, embedded_sha256
from .prompts import PromptSet, Role
from .registry import REGISTRY, NamedSet, SourceFile

Where = Literal["CARYATID_DATA", "cache", "package", "nowhere"]
State = Literal["ok", "corrupt", "missing"]


@dataclass(frozen=True)
class Lookup:
    """Where files are looked for.

    Attributes:
        data: the folder that `CARYATID_DATA` names, or None.
        cache: the folder downloads are kept in.
        offline: never download.
        mirror: base address with the layout of `CARYATID_DATA`, instead of the official addresses.
        connect_timeout: seconds until a server has begun to answer.
        total_timeout: seconds for one file.
    """

    data: Path | None
    cache: Path
    offline: bool = False
    mirror: str | None = None
    connect_timeout: float = 5.0
    total_timeout: float = 60.0

    @classmethod
    def from_environment(cls, *, offline: bool = False) -> "Lookup":
        """From `CARYATID_DATA`, `CARYATID_CACHE` and `HF_HUB_OFFLINE`."""
        return cls(data=data_dir(), cache=cache_dir() / "data", offline=offline or hub_offline())


class Located(NamedTuple):
    """A file that was found, not yet checked."""

    path: Path
    where: Where


class Checked(NamedTuple):
    """The content of a file whose checksum is right."""

    content: bytes
    where: Where


@dataclass(frozen=True)
class SetStatus:
    """One line of `data list`, `data fetch` and `data verify`."""

    name: str
    group: str
    role: Role
    rows: int
    licence: str
    sha256: tuple[str, ...]
    urls: tuple[str, ...]
    paths: tuple[str, ...]
    where: Where
    state: State
    problem: str | None = None


def _missing(file: SourceFile, lookup: Lookup) -> DataMissingError:
    if lookup.data is not None and not lookup.data.is_dir():
        return DataMissingError(
            "CARYATID_DATA names no folder", where=str(lookup.data), remedy="Correct it, or unset it."
        )
    if lookup.data is not None:
        return DataMissingError(
            "missing",
            where=str(lookup.data / file.path),
            remedy=f"Put {file.url} there, or run `caryatid data fetch`, or unset CARYATID_DATA.",
        )
    return DataMissingError(
        "not in the cache",
        where=str(lookup.cache / file.path),
        remedy="Run `caryatid data fetch` with a network, or set CARYATID_DATA to a folder that has it.",
    )


def _check(content: bytes, file: SourceFile, path: Path, where: Where) -> bytes:
    actual = hashlib.sha256(content).hexdigest()
    if actual == file.sha256:
        return content
    remedy = (
        "Delete it and run `caryatid data fetch`." if where == "cache" else f"Replace it with {file.url}."
    )
    raise DataMissingError(
        f"corrupted: SHA-256 is {actual}, should be {file.sha256}", where=str(path), remedy=remedy
    )


def locate(file: SourceFile, lookup: Lookup) -> Located | None:
    """Where `file` lies, without reading it; None if it is nowhere."""
    places: list[Located] = [Located(lookup.cache / file.path, "cache")]
    if lookup.data is not None:
        places.insert(0, Located(lookup.data / file.path, "CARYATID_DATA"))
    return next((place for place in places if place.path.is_file()), None)


def _read(file: SourceFile, place: Located) -> Checked:
    try:
        content = place.path.read_bytes()
    except OSError as error:
        raise DataMissingError(
            f"cannot be read ({error.strerror})", where=str(place.path), remedy="Check its permissions."
        ) from error
    return Checked(_check(content, file, place.path, place.where), place.where)


def _download(file: SourceFile, lookup: Lookup, deadline: float | None = None) -> Checked:
    """Download into the cache; nothing is written unless the checksum is right."""
    url = f"{lookup.mirror}/{file.path}" if lookup.mirror else file.url
    if lookup.offline:
        raise DownloadError(
            "downloads are switched off",
            where=file.path,
            remedy="Unset HF_HUB_OFFLINE, or set CARYATID_DATA.",
        )
    left = lookup.total_timeout if deadline is None else max(0.0, deadline - time.monotonic())
    content = download(
        url,
        connect_timeout=lookup.connect_timeout,
        total_timeout=min(left, lookup.total_timeout),
        remedy="Check the network, or set CARYATID_DATA to a folder that has the file.",
    )
    actual = hashlib.sha256(content).hexdigest()
    if actual != file.sha256:
        raise DownloadError(
            f"downloaded file has SHA-256 {actual}, should be {file.sha256}",
            where=url,
            remedy="Something between here and the server changes it; get the file another way.",
        )
    target = lookup.cache / file.path
    try:
        write_bytes(target, content)
    except OSError as error:
        raise DownloadError(
            f"cannot be written ({error.strerror})", where=str(target), remedy="Set CARYATID_CACHE elsewhere."
        ) from error
    return Checked(content, "cache")


def obtain(file: SourceFile, lookup: Lookup, *, deadline: float | None = None) -> Checked:
    """The content of `file`, from the first place that has it, checked.

    When `CARYATID_DATA` is set, a file that is neither there nor in the cache is missing, and nothing is downloaded.

    Raises:
        DataMissingError: missing, or its checksum is wrong.
        DownloadError: it had to be downloaded, and could not be.
    """
    place = locate(file, lookup)
    if place is not None:
        return _read(file, place)
    if lookup.data is not None:
        raise _missing(file, lookup)
    return _download(file, lookup, deadline)


def obtain_all(names: Iterable[str], lookup: Lookup) -> None:
    """Have every file of the named sets at hand, checked, in the time that one may take; stops at the first failure.

    Raises:
        DataMissingError, DownloadError: as `obtain`.
    """
    deadline = time.monotonic() + lookup.total_timeout
    for file in dict.fromkeys(file for name in names for file in REGISTRY[name].files):
        obtain(file, lookup, deadline=deadline)


def read_set(name: str, lookup: Lookup | None = None) -> PromptSet:
    """A named benchmark set, in its own role.

    Raises:
        UsageError: no set of that name.
        DataMissingError: its files cannot be had, or are damaged.
    """
    if name not in REGISTRY:
        raise _unknown(name)
    found = REGISTRY[name]
    place = lookup or Lookup.from_environment()
    contents = [obtain(file, place).content for file in found.files]
    return PromptSet(
        name=name,
        role=found.role,
        prompts=tuple(found.reader(name, contents)),
        source=name,
        licence=found.licence,
        sha256=found.files[0].sha256,
    )


def _unknown(name: str) -> UsageError:
    known = ", ".join(sorted({*REGISTRY, *(one.group for one in REGISTRY.values())}))
    return UsageError(f"no prompt set named {name!r}", remedy=f"Choose from all, {known}.")


def named_sets(names: Sequence[str] = ()) -> tuple[NamedSet, ...]:
    """The sets that `names` stand for: sets, groups (harmbench, xstest, …), or `all`; all when empty.

    Raises:
        UsageError: no set or group of that name.
    """
    chosen: dict[str, NamedSet] = {}
    for name in names or ("all",):
        members = [one for one in REGISTRY.values() if name in ("all", one.group, one.name)]
        if not members:
            raise _unknown(name)
        chosen |= {one.name: one for one in members}
    return tuple(chosen.values())


def _own(names: Sequence[str]) -> tuple[SetStatus, ...]:
    """Those of the package's own sets that `names` mention; all of them when empty or `all`."""
    whole = not names or {"all", "embedded"} & set(names)
    return tuple(_embedded_status(name) for name in FILES if whole or f"embedded_{name}" in names)


def _published(names: Sequence[str]) -> tuple[NamedSet, ...]:
    """The published sets that `names` mention."""
    own = {"embedded", *(f"embedded_{name}" for name in FILES)}
    rest = [name for name in names if name not in own]
    return named_sets(rest) if rest or not names else ()


def set_status(named: NamedSet, lookup: Lookup) -> SetStatus:
    """What is known of a set's files here, checksums included."""
    status = SetStatus(
        name=named.name,
        group=named.group,
        role=named.role,
        rows=named.rows,
        licence=named.licence,
        sha256=tuple(file.sha256 for file in named.files),
        urls=tuple(file.url for file in named.files),
        paths=(),
        where="nowhere",
        state="missing",
    )
    places = [locate(file, lookup) for file in named.files]
    for file, place in zip(named.files, places, strict=True):
        if place is None:
            return replace(status, problem=str(_missing(file, lookup)))
    found = [place for place in places if place is not None]
    status = replace(status, paths=tuple(str(place.path) for place in found), where=found[0].where)
    try:
        for file, place in zip(named.files, found, strict=True):
            _read(file, place)
    except DataMissingError as error:
        return replace(status, state="corrupt", problem=str(error))
    return replace(status, state="ok")


def _embedded_status(name: str) -> SetStatus:
    """One of the sets that come with the package; splits of harmful and harmless serve every role."""
    return SetStatus(
        name=f"embedded_{name}",
        group="embedded",
        role=Role.EVALUATION if name in ("contrast", "utility") else Role.TRAINING,
        rows=embedded_rows(name),
        licence=LICENCE,
        sha256=(embedded_sha256(name),),
        urls=(),
        paths=(str(embedded_folder() / f"{name}.json"),),
        where="package",
        state="ok",
    )


def list_sets(lookup: Lookup | None = None) -> tuple[SetStatus, ...]:
    """Every named set and the package's own: rows, licence, checksums, where found."""
    place = lookup or Lookup.from_environment()
    return tuple(set_status(one, place) for one in REGISTRY.values()) + _own(())


def verify_sets(names: Sequence[str] = (), lookup: Lookup | None = None) -> tuple[SetStatus, ...]:
    """Check the files of sets against their checksums.

    Without names, all sets that are here are checked; sets that are not here are no problem then, unless
    `CARYATID_DATA` says that they should be.

    Raises:
        UsageError: no set or group of that name.
        DataMissingError: a file is damaged, or one that should be here is missing. Names every such file.
    """
    place = lookup or Lookup.from_environment()
    rows = tuple(set_status(one, place) for one in _published(names))
    demanded = bool(names) or place.data is not None
    bad = [row for row in rows if row.state == "corrupt" or (row.state == "missing" and demanded)]
    problems = dict.fromkeys(row.problem for row in bad if row.problem)
    if problems:
        raise DataMissingError("; ".join(problems))
    return rows + _own(names)


def fetch_sets(
    names: Sequence[str], lookup: Lookup | None = None, progress: Progress = NO_PROGRESS
) -> tuple[SetStatus, ...]:
    """Have the named sets at hand, downloading into the cache what is missing there or damaged.

    Raises:
        UsageError: no set or group of that name.
        DataMissingError: a file under `CARYATID_DATA` is damaged.
        DownloadError: a download failed, or had the wrong checksum.
    """
    place = lookup or Lookup.from_environment()
    chosen = _published(names)
    files = list(dict.fromkeys(file for one in chosen for file in one.files))
    progress.start("prompt sets", len(files))
    for file in files:
        found = locate(file, place)
        try:
            if found is None:
                raise _missing(file, place)
            _read(file, found)
        except DataMissingError:
            if found is not None and found.where != "cache":
                raise
            _download(file, place)
        progress.advance()
    progress.done()
    return tuple(set_status(one, place) for one in chosen) + _own(names)
