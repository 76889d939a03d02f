"""The run directory: content-addressed stages, checksums, and resuming.

A stage lives in `stages/<name>/<key>/`, where the key is the SHA-256 of what determines its content. Its files
are written through a temporary file, fsync and rename; its `manifest.json` with the checksums of all files comes
last, so that a stage without a manifest is simply not done. Files that no longer agree with the manifest are found
where they are read, and made again only where that is asked for. Chunks (`chunks/<list>/000012.json`) survive a kill
and let a long stage go on where it stopped.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from . import locks
from .errors import DataMissingError, InputError, UsageError
from .files import (
    DAMAGED_FILE,
    TEMPORARY,
    atomic_file,
    canonical_json,
    content_key,
    file_sha256,
    nan_to_none,
    none_to_nan,
    read_json,
    read_manifest,
    write_bytes,
    write_json,
)

__all__ = [
    "DAMAGED_FILE",
    "DAMAGED_RUN",
    "FORMAT_VERSION",
    "Chunks",
    "RunDirectory",
    "StageFolder",
    "StageState",
    "atomic_file",
    "canonical_json",
    "content_key",
    "file_sha256",
    "nan_to_none",
    "none_to_nan",
    "read_json",
    "write_bytes",
    "write_json",
]

FORMAT_VERSION = 2
WRITTEN = ("tables", "answers", "figures", "report", "leases")  # folders beside `stages`
LOCK = ".lock"  # beside it `.lock.held` where the file system has no locks

# Whole stages are worth days of training: a damaged manifest of the run must not make anybody delete them.
DAMAGED_RUN = "Move the folder `stages` into a new --out and run there: finished stages are reused."

_MANIFEST = {"facts": dict, "asked": dict, "libraries": dict, "stages": dict, "seeds": list, "caryatid": str}

DAMAGED_STAGE = "Restore it, or run the study again with --repair: what is damaged is then computed anew."

StageState = Literal["done", "damaged", "partial", "failed", "missing"]


def _sweep(files: Iterable[Path]) -> None:
    for part in list(files):
        part.unlink(missing_ok=True)


@dataclass(frozen=True)
class Chunks:
    """Numbered pieces of a long stage's result. Each is written atomically, once."""

    path: Path

    def load(self) -> list[Any]:
        """All chunks written without a gap, in order."""
        found: list[Any] = []
        while (part := self.path / f"{len(found):06d}.json").exists():
            found.append(read_json(part))
        return found

    def append(self, index: int, value: object) -> None:
        """Write chunk `index`."""
        write_json(self.path / f"{index:06d}.json", value)


@dataclass(frozen=True)
class StageFolder:
    """The folder of one content-addressed unit of work, and its files."""

    name: str
    key: str
    path: Path
    inputs: Mapping[str, Any] = field(repr=False)

    @property
    def manifest_path(self) -> Path:
        return self.path / "manifest.json"

    @staticmethod
    def key_of(name: str, inputs: Mapping[str, Any]) -> str:
        """The key of a stage whose content `inputs` (plain JSON values) determine."""
        return content_key({"stage": name, "inputs": inputs})

    @property
    def work_dir(self) -> Path:
        """A folder for state that lets the stage resume; removed when the stage is finished."""
        return self.path / "work"

    def file(self, name: str) -> Path:
        """The path of one of the stage's files."""
        return self.path / name

    def chunks(self, name: str) -> Chunks:
        """A list of resumable pieces under this stage."""
        return Chunks(self.work_dir / name)

    def manifest(self) -> dict[str, Any]:
        """The manifest of a finished stage.

        Raises:
            InputError: it is no JSON object.
        """
        return read_manifest(self.manifest_path, DAMAGED_STAGE)

    def seconds(self) -> float | None:
        """What a finished stage took; None where its manifest does not say so."""
        found = self.manifest().get("seconds")
        return float(found) if isinstance(found, int | float) else None

    def failure(self) -> str:
        """Why the stage failed, as far as that was recorded."""
        try:
            return str(self.read_json("failed.json")["message"])
        except (InputError, KeyError, TypeError, OSError):
            return "for a reason that was not recorded"

    def done(self) -> bool:
        """Whether the stage was finished; see `damage` for whether it still is what it was."""
        return self.manifest_path.exists()

    def damage(self, *, verify: bool = True, folder: Path | None = None) -> Path | None:
        """Of a finished stage the first file that is missing or not what its manifest says.

        Args:
            verify: compare checksums, too. folder: look only at the files that lie directly in it.

        Returns:
            The file, or the manifest where that cannot be read; None: nothing is wrong.
        """
        try:
            files = {self.path / str(name): digest for name, digest in self.manifest()["files"].items()}
        except (InputError, KeyError, AttributeError):
            return self.manifest_path
        for part, digest in files.items():
            if folder is not None and part.parent != folder:
                continue
            if not part.is_file() or (verify and file_sha256(part) != digest):
                return part
        return None

    def check(self, *, verify: bool = True, folder: Path | None = None) -> None:
        """Refuse a finished stage that is damaged. Arguments as `damage`.

        Raises:
            DataMissingError: it is; names the file.
        """
        if part := self.damage(verify=verify, folder=folder):
            what = "damaged (not what the stage's manifest says)" if part.is_file() else "missing"
            raise DataMissingError(what, where=str(part), remedy=DAMAGED_STAGE)

    def state(self, *, verify: bool = True) -> StageState:
        """Where the stage stands; `verify`: also compare the checksums of a finished one."""
        if self.done():
            return "damaged" if self.damage(verify=verify) else "done"
        if (self.path / "failed.json").exists():
            return "failed"
        return "partial" if self.path.exists() else "missing"

    def write_json(self, name: str, value: object) -> None:
        """Write one of the stage's files as JSON."""
        write_json(self.file(name), value)

    def read_json(self, name: str) -> Any:
        """Read one of the stage's JSON files."""
        return read_json(self.file(name))

    def write_tensors(
        self, name: str, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None
    ) -> None:
        """Write tensors as safetensors, atomically."""
        from safetensors.torch import save

        contiguous = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        write_bytes(self.file(name), save(contiguous, metadata=dict(metadata) if metadata else None))

    def read_tensors(self, name: str) -> dict[str, Any]:
        """Read a safetensors file of the stage; a damaged one is a user-facing error that names it."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(self.file(name))
        except SafetensorError as error:
            raise InputError(
                f"not readable as safetensors ({error})", where=str(self.file(name)), remedy=DAMAGED_FILE
            ) from error

    def begin(self) -> None:
        """Make the folder; forget an earlier failure, and what a killed process left half-written. The rest stays."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.file("failed.json").unlink(missing_ok=True)
        for part in list(self.path.rglob(".*.partial")):
            shutil.rmtree(part, ignore_errors=True)
        _sweep(self.path.rglob(f".*{TEMPORARY}"))

    def fail(self, error: BaseException) -> None:
        """Record why the stage stopped, beside what it has; where nothing can be written, the error alone says it."""
        with contextlib.suppress(OSError):
            self.write_json("failed.json", {"error": type(error).__name__, "message": str(error)[:2000]})

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Seal the stage: drop work files, checksum the rest, write the manifest last."""
        shutil.rmtree(self.work_dir, ignore_errors=True)
        self.file("failed.json").unlink(missing_ok=True)
        files = {
            part.relative_to(self.path).as_posix(): file_sha256(part)
            for part in sorted(self.path.rglob("*"))
            if part.is_file() and part != self.manifest_path and not part.name.endswith(TEMPORARY)
        }
        manifest = {"stage": self.name, "key": self.key, "inputs": self.inputs, **facts, "files": files}
        write_json(self.manifest_path, manifest)


@dataclass(frozen=True)
class RunDirectory:
    """A study's folder, as the contract describes it."""

    path: Path

    @property
    def manifest_path(self) -> Path:
        return self.path / "manifest.json"

    @property
    def config_path(self) -> Path:
        return self.path / "config.yaml"

    @classmethod
    def existing(cls, path: Path) -> "RunDirectory":
        """Open a run directory that must exist and be of this version.

        Raises:
            UsageError: no run directory there, or one of another format version.
        """
        run = cls(path)
        if not run.manifest_path.exists():
            raise UsageError(
                "not a run directory (no manifest.json)", where=str(path), remedy="Name the --out of a study."
            )
        run.check_version()
        return run

    def check_version(self) -> None:
        """Refuse a directory written by another format version."""
        found = read_json(self.manifest_path, remedy=DAMAGED_RUN)
        version = found.get("format_version") if isinstance(found, dict) else None
        if version != FORMAT_VERSION:
            raise UsageError(
                f"run directory of format version {version}, this caryatid writes {FORMAT_VERSION}",
                where=str(self.path),
                remedy="Choose another --out, or use the caryatid that wrote it.",
            )
        self.manifest()

    @classmethod
    def create(cls, path: Path) -> "RunDirectory":
        """Open `path` for writing, creating it if needed.

        Raises:
            UsageError: it cannot be written, holds something else, or is of another version.
        """
        run = cls(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path):
                pass
        except OSError as error:
            raise UsageError(
                f"output folder cannot be written ({error.strerror})",
                where=str(path),
                remedy="Choose another --out.",
            ) from error
        if run.manifest_path.exists():
            run.check_version()
        elif any(
            e.name not in {LOCK, f"{LOCK}.held", "stages", "leases"} and e.suffix != TEMPORARY
            for e in path.iterdir()
        ):
            raise UsageError(
                "output folder holds other files",
                where=str(path),
                remedy="Choose a new or empty folder with --out.",
            )
        return run

    def sweep(self) -> None:
        """Remove what killed runners left half-written outside of stages. No other runner may be at work."""
        for folder in (self.path, *(self.path / name for name in WRITTEN)):
            _sweep(folder.glob(f".*{TEMPORARY}"))

    def discard_unused(self, folder: bool) -> None:
        """Leave nothing behind of a run that could not begin; with `folder` the empty folder goes, too."""
        if self.manifest_path.exists():
            return
        with contextlib.suppress(PermissionError):  # Windows keeps a file that is open
            (self.path / LOCK).unlink(missing_ok=True)
        if folder and not any(self.path.iterdir()):
            self.path.rmdir()

    def manifest(self) -> dict[str, Any]:
        """The run's manifest.

        Raises:
            InputError: it is no JSON object, or one of its parts is of another type than caryatid writes.
        """
        found = read_manifest(self.manifest_path, DAMAGED_RUN)
        for name, kind in _MANIFEST.items():
            if name in found and not isinstance(found[name], kind):
                raise InputError(
                    f"damaged: {name!r} is {found[name]!r:.40}",
                    where=str(self.manifest_path),
                    remedy=DAMAGED_RUN,
                )
        return found

    def config_text(self) -> str:
        """The resolved configuration, as YAML.

        Raises:
            InputError: it is missing or cannot be read.
        """
        try:
            return self.config_path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"cannot be read ({error})",
                where=str(self.config_path),
                remedy="Run the study again: it writes the file anew.",
            ) from error

    def write_manifest(self, facts: Mapping[str, Any]) -> None:
        """Write the run's manifest with the format version."""
        write_json(self.manifest_path, {"format_version": FORMAT_VERSION, **facts})

    def stage(self, name: str, inputs: Mapping[str, Any]) -> StageFolder:
        """The folder of the stage whose content `inputs` (plain JSON values) determine."""
        key = StageFolder.key_of(name, inputs)
        return StageFolder(name=name, key=key, path=self.path / "stages" / name / key, inputs=inputs)

    @contextmanager
    def locked(self, *, wait: bool = False) -> Iterator[None]:
        """Hold the directory, so that two processes never write to one run.

        Args:
            wait: for another holder.

        Raises:
            UsageError: another process holds it.
        """
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locks.held(self.path / LOCK, wait=wait))
            except locks.Timeout as error:
                raise UsageError(
                    "another process is running this study",
                    where=str(self.path),
                    remedy="Wait for it, or choose another --out.",
                ) from error
            yield
