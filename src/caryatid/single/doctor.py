"""What `caryatid doctor` looks at: packages, machine, cache, data, backbone, and a self-test; each line with a remedy.

Imports nothing heavy by itself, so that it can say what is missing of torch or transformers.
"""

import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement
from packaging.version import Version

from ..errors import CaryatidError, DataMissingError, MemoryExhaustedError, NumericalError, UsageError
from ..paths import cache_dir, data_dir

GIB = 2**30
MEMORY = 4 * GIB  # what the preset `quick` takes at most, about
DISK = 2 * GIB  # the embedded backbone converted (0.6 GiB), and a run of `quick`
CORE = ("torch", "transformers", "peft", "accelerate")  # without these nothing else can be looked at
State = Literal["ok", "note", "FAIL"]


@dataclass(frozen=True)
class Finding:
    """One line.

    Attributes:
        found: what is here. remedy: what to do, of every line that is not ok. exit_code: of a failing line, as in
            `errors`.
    """

    check: str
    state: State
    found: str
    remedy: str = ""
    exit_code: int = 0


def examine(device: str | None = None, *, self_test: bool = True) -> Iterator[Finding]:
    """All findings, each as soon as it is known.

    Args:
        device: which is looked at and tested; None: the one that models are loaded on.
    """
    failing = []
    for finding in _packages():
        failing += [finding.check] if finding.state == "FAIL" else []
        yield finding
    lacking = set(failing) & set(CORE)
    checks: list[Callable[[], Iterator[Finding]]] = [_disk]
    if not lacking:
        checks += [lambda: _device(device), _memory, _data, _backbone]
        checks += [lambda: _self_test(device)] if self_test else []
    for check in checks:
        yield from check()


def exit_code(findings: list[Finding]) -> int:
    """That of the first failing line whose code is 3 (something is missing), else of the first failing line, else 0."""
    codes = [one.exit_code for one in findings if one.state == "FAIL"]
    return DataMissingError.exit_code if DataMissingError.exit_code in codes else next(iter(codes), 0)


def _packages() -> Iterator[Finding]:
    """Python and every package that caryatid requires, against its requirements and the versions tested together."""
    wanted = metadata.requires("caryatid") or []
    pins, differing, count = tested_versions(), [], 0
    for requirement in map(Requirement, wanted):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        count += 1
        name = requirement.name
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield _lacking(name, "not installed", pins.get(name))
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            yield _lacking(name, f"{version}, needed is {requirement.specifier}", pins.get(name))
        elif name in pins and Version(version).public != Version(pins[name]).public:
            differing.append(f"{name} {version} (tested: {pins[name]})")
    yield Finding("python", "ok", f"{platform.python_version()}, {platform.system()} {platform.machine()}")
    if differing:
        remedy = "Should numbers look wrong, install with `-c constraints.txt`."
        yield Finding("versions", "note", f"not those tested together: {', '.join(differing)}", remedy)
    else:
        tested = "those tested together" if pins else "within what is required"
        yield Finding("versions", "ok", f"{count} required packages, {tested}")


def _lacking(name: str, what: str, pin: str | None) -> Finding:
    wanted = f"{name}=={pin}" if pin else name
    return Finding(name, "FAIL", what, f"pip install '{wanted}'", DataMissingError.exit_code)


def tested_versions() -> dict[str, str]:
    """The pins of `constraints.txt`, by package; empty where caryatid was installed without its repository."""
    path = Path(__file__).parents[3] / "constraints.txt"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    found = (re.fullmatch(r"([\w.-]+)==(\S+)", line.strip()) for line in lines)
    return {match[1]: match[2] for match in found if match}


def _disk() -> Iterator[Finding]:
    """Whether the cache can be written, and the room there and in the current folder."""
    cache = cache_dir()
    place = next(folder for folder in (cache, *cache.absolute().parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        remedy = "Set CARYATID_CACHE to a folder that can be written."
        yield Finding("cache", "FAIL", f"{cache}: {error.strerror or error}", remedy, UsageError.exit_code)
        return
    for name, folder, remedy in (
        ("cache", place, "Free space, or set CARYATID_CACHE to a folder with room."),
        ("disk", Path.cwd(), "Free space, or name another place with --out."),
    ):
        free = shutil.disk_usage(folder).free
        where = cache if name == "cache" else "here"
        found = f"{where}: {free / GIB:.1f} GiB free"
        if free < DISK:
            yield Finding(
                name, "FAIL", f"{found}, needed are about {DISK / GIB:.0f}", remedy, UsageError.exit_code
            )
        else:
            yield Finding(name, "ok", found)


def _device(device: str | None) -> Iterator[Finding]:
    """The device that models are loaded on, and the threads that work on the CPU."""
    from ..models.load import choose_device
    from ..models.machine import device_name, threads

    try:
        chosen = choose_device(device)
    except CaryatidError as error:
        yield Finding("device", "FAIL", error.what, error.remedy or "", error.exit_code)
        return
    yield Finding("device", "ok", device_name(chosen))
    used, cores = threads()
    found = f"{used} of {cores} cores"
    if used < cores and chosen.type == "cpu":
        remedy = "Unset OMP_NUM_THREADS, unless other programs need the cores."
        yield Finding("threads", "note", found, remedy)
    else:
        yield Finding("threads", "ok", found)


def _memory() -> Iterator[Finding]:
    import torch

    from ..models.machine import free_memory

    free = free_memory(torch.device("cpu"))
    found = f"{free / GIB:.1f} GiB free"
    if free >= MEMORY:
        yield Finding("memory", "ok", found)
    else:
        remedy = "Close other programs, or lower `batch` settings."
        what = f"{found}, the preset `quick` takes up to {MEMORY / GIB:.0f}"
        code = MemoryExhaustedError.exit_code
        yield Finding("memory", "note" if free >= MEMORY / 2 else "FAIL", what, remedy, code)


def _data() -> Iterator[Finding]:
    """Where the published prompt sets are, checksums included."""
    from ..data.sources import list_sets

    named = data_dir()
    if named is not None and not named.is_dir():
        remedy = "Correct CARYATID_DATA, or unset it: then the cache, a download or the package's own sets are used."
        yield Finding("data", "FAIL", f"CARYATID_DATA: no folder {named}", remedy, DataMissingError.exit_code)
        return
    sets = [one for one in list_sets() if one.where != "package"]
    damaged = [one for one in sets if one.state == "corrupt"]
    for one in damaged:
        remedy = "Get the file again: caryatid data fetch " + one.name
        yield Finding("data", "FAIL", one.problem or one.name, remedy, DataMissingError.exit_code)
    missing = [one.name for one in sets if one.state == "missing"]
    here = len(sets) - len(missing) - len(damaged)
    if not missing:
        if not damaged:
            yield Finding("data", "ok", f"all {here} published prompt sets: {_places(sets)}")
        return
    found = f"{here} of {len(sets)} published prompt sets are here; missing: {', '.join(missing)}"
    if named is not None:
        remedy = "Put them into CARYATID_DATA, or unset it."
        yield Finding("data", "FAIL", found, remedy, DataMissingError.exit_code)
    else:
        remedy = "Get them: caryatid data fetch all (until then the package's own sets are used)"
        yield Finding("data", "note", found, remedy)


def _places(sets: list[Any]) -> str:
    return ", ".join(dict.fromkeys(str(one.where) for one in sets))


def _backbone() -> Iterator[Finding]:
    """The embedded backbone, and the adapter that makes it refuse, against its card."""
    from ..models.convert import EMBEDDED_AGAIN, EMBEDDED_REMEDY, embedded_state
    from ..models.planted import REFUSING
    from ..models.resolve import refusing_adapter

    state, code = embedded_state(), DataMissingError.exit_code
    if state == "missing":
        yield Finding("embedded", "FAIL", "not here; the preset `quick` needs it", EMBEDDED_REMEDY, code)
    elif state == "damaged":
        found = "installed, but not the file that caryatid was made for (checksum)"
        yield Finding("embedded", "FAIL", found, EMBEDDED_AGAIN, code)
    elif state == "installed":
        remedy = "Convert it before its first use: caryatid models fetch embedded"
        yield Finding("embedded", "note", "installed, not converted yet", remedy)
    else:
        yield Finding("embedded", "ok", "SmolLM2-135M-Instruct, converted")
    try:
        refusing_adapter()
    except DataMissingError as error:
        yield Finding(REFUSING, "FAIL", error.what, error.remedy or "", code)
    else:
        yield Finding(REFUSING, "ok", "its adapter is the one of its card; its refusal is planted")


def _self_test(device: str | None) -> Iterator[Finding]:
    from .selftest import self_test

    seconds, remedy = 0.0, "Install the versions of constraints.txt; if it stays, report it with this output."
    try:
        for step in self_test(device):
            seconds += step.seconds
            yield Finding(f"test: {step.name}", "ok", f"{step.found} ({step.seconds:.1f} s)")
    except CaryatidError as error:
        yield Finding("self-test", "FAIL", error.what, error.remedy or remedy, error.exit_code)
    except Exception as error:  # whatever a broken installation raises is what is looked for here
        lines = str(error).strip().splitlines() or [""]
        found = f"{type(error).__name__}: {lines[-1]}"
        yield Finding("self-test", "FAIL", found, remedy, NumericalError.exit_code)
