"""The states of a run's stages, from its manifest and the folders alone: no model library, so that it takes no time."""

from dataclasses import dataclass
from pathlib import Path

from ..artifacts import DAMAGED_RUN, RunDirectory, StageFolder
from ..errors import InputError, UsageError
from .leases import live_leases, stages_of
from .recorded import Facts

PACKED = "demo.json"  # in the copy of a packed study (`demo`): what it is, and that it is one
LEFT_OUT = "left out"  # a stage that was finished before packing


def is_packed(run: RunDirectory) -> bool:
    """Whether a run directory is a copy of a packed study, of which only some stages are there."""
    return (run.path / PACKED).is_file()


@dataclass(frozen=True)
class StageStatus:
    """One row of `study status`."""

    id: str
    kind: str
    state: str
    seconds: float | None
    detail: str


def study_status(directory: Path, *, verify: bool = False) -> list[StageStatus]:
    """Each stage's state, as planned when the study was last begun: done, damaged, running, partial, failed or missing;
    of a packed study also left out.

    Args:
        verify: compare the files of finished stages with their checksums; else only that they are there.

    Raises:
        UsageError: not a run directory, or of another version. InputError: its manifest is damaged.
    """
    run = RunDirectory.existing(directory)
    if not run.config_path.exists():
        raise UsageError(
            "the study was stopped before it began", where=str(directory), remedy="Run it again."
        )
    Facts.of_run(run)  # a damaged manifest is named by every command
    leased, packed, rows = stages_of(live_leases(run)), is_packed(run), list[StageStatus]()
    for name, found in run.manifest().get("stages", {}).items():
        try:
            kind, key = Path(found["folder"]).parts[-2:]
            detail = str(found.get("size", ""))
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            where = str(run.manifest_path)
            raise InputError(f"damaged: stages.{name}", where=where, remedy=DAMAGED_RUN) from error
        folder = StageFolder(kind, key, run.path / "stages" / kind / key, {})
        state: str = folder.state(verify=verify)
        if state == "missing" and packed:
            state = LEFT_OUT
        seconds = None
        if state == "done":
            seconds = folder.seconds()
        elif key in leased:
            state = "running"
        elif state == "failed":
            detail = folder.failure()
        elif state == "damaged":
            detail = f"see {folder.damage(verify=verify)}"
        rows.append(StageStatus(name, kind, state, seconds, detail))
    return rows
