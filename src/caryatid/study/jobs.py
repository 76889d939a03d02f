"""Some stages of a study that was begun, run by a process of their own: what every executor calls.

`caryatid stage run DIR ID… [--shard I/N]` is `run_stages`; an executor that is not this process sends a `Job`.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from .. import errors
from ..artifacts import RunDirectory
from ..config import parse_config
from ..errors import CaryatidError, UsageError, user_error
from ..progress import NO_PROGRESS, Progress
from .facts import settle_facts
from .plan import Plan, Planned, build_plan
from .recorded import Facts
from .runner import execute
from .stage import Study
from .stages.prompts import Prompts
from .stages.train import where_is
from .todo import LOOK_EVERY
from .tracking import check_trackers
from .work import Session, Work

Shard = tuple[int, int]
"""Number, from 1 on, and count."""


def silent(_line: str) -> None:
    """Says nothing."""


@contextmanager
def joined(
    directory: Path, progress: Progress, announce: Callable[[str], None], track: Sequence[str] = ()
) -> Iterator[Session]:
    """A study that was begun, as its run directory describes it; nothing is settled anew.

    Raises:
        UsageError: not a run directory, or its prompts are not there yet and cannot be had as they were. InputError: it
            is damaged.
    """
    check_trackers(track)
    run = RunDirectory.existing(directory)
    config, facts = parse_config(run.config_text(), str(run.config_path)), Facts.of_run(run)
    torch.set_float32_matmul_precision(config.model.matmul)
    study = Study(config, facts)
    plan, prompts = build_plan(study), None
    if not plan[Prompts(study)].folder(run).done():
        settled = settle_facts(config, facts)
        prompts = settled.prompts
        if settled.facts != facts:
            raise UsageError(
                "what the study is made from has changed since it was begun",
                where=str(directory),
                remedy="Run `caryatid study run` again.",
            )
    session = Session(study, plan, run, where_is, prompts, progress, announce, track=track)
    with closing(session.tracking), session.leases.kept_alive():
        yield session


def run_stages(
    directory: Path,
    names: Sequence[str],
    shard: Shard | None = None,
    *,
    progress: Progress = NO_PROGRESS,
    announce: Callable[[str], None] = silent,
    track: Sequence[str] = (),
) -> list[str]:
    """Run stages of a study that was begun, in this order, or a part of the only one; other runners may be at work.

    Args:
        shard: keep the results of part I of N alone; when all parts are done, the whole stage only collects them.
        track: experiment trackers; see `Tracking`.

    Returns:
        Those that ran here; the others were done already, or another runner that held them has done them.

    Raises:
        UsageError: not a run directory, no such stage, one that it needs is not done, or it has no such part.
        CaryatidError: as the stages raise it.
    """
    with joined(directory, progress, announce, track) as session:
        plan, where = session.plan, str(directory)
        for name in names:
            if name not in plan:
                raise UsageError(
                    f"no stage {name!r}",
                    where=where,
                    remedy="See the ids that `caryatid study status` shows.",
                )
        chosen = [plan[name] for name in names]
        missing = [
            f"{entry.id} needs {need.id}"
            for number, entry in enumerate(chosen)
            for need in entry.needs
            if not need.folder(session.run).done() and need.id not in names[:number]
        ]
        if missing:
            raise UsageError(f"{missing[0]}, which is not done", where=where, remedy="Run that first.")
        if shard is not None:
            return [names[0]] if _run_part(session, chosen, shard) else []
        return execute(session, Plan(plan.study, tuple(chosen)), workers=1)


def _run_part(session: Session, chosen: Sequence[Planned], shard: Shard) -> bool:
    """Run a part of a stage; False: the whole stage is done already.

    Raises:
        UsageError: several stages, or there is no such part.
    """
    entry, (number, count) = chosen[0], shard
    most = entry.stage.parts()
    if len(chosen) > 1 or not 1 <= number <= count <= most:
        at_most = f"at most {most} parts" if most > 1 else "one part only"
        raise UsageError(
            f"no part {number} of {count}", where=entry.id, remedy=f"Name one stage; this one has {at_most}."
        )
    name = f"{entry.key}.{number}-of-{count}"
    while True:
        with session.run.locked(wait=True):
            others = session.leases.others()
            if entry.folder(session.run).done():
                return False
            if name not in others and entry.key not in others:
                session.leases.take(name)
                break
        time.sleep(LOOK_EVERY)
    entry.folder(session.run).path.mkdir(parents=True, exist_ok=True)
    facts = {"stage": entry.id, "key": entry.key, "part": f"{number}/{count}"}
    session.events.write("part_started", **facts)
    try:
        entry.stage.run_part(Work(session, entry), (number - 1, count))
    finally:
        session.close()
    session.events.write("part_done", **facts)
    return True


@dataclass(frozen=True)
class Job:
    """Stages that one process runs one after the other, or a part of one stage.

    Attributes:
        directory: absolute. stages: ids. shard: of the only one. gpus: devices that it takes. memory: bytes that it
            is forecast to take, 0 where nobody knows. track: experiment trackers.
    """

    directory: str
    stages: tuple[str, ...]
    shard: Shard | None = None
    gpus: int = 0
    memory: float = 0.0
    track: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """In words."""
        part = f" ({self.shard[0]}/{self.shard[1]})" if self.shard else ""
        more = f" and {len(self.stages) - 1} more" if len(self.stages) > 1 else ""
        return f"{self.stages[0]}{part}{more}"


@dataclass(frozen=True)
class Failure:
    """A user-facing error in another process: its class's name, and what it says."""

    kind: str
    message: str

    def error(self) -> CaryatidError:
        """The error again."""
        kind: type[CaryatidError] = getattr(errors, self.kind, UsageError)
        return kind(self.message)


def run_job(job: Job) -> Failure | None:
    """Run a job in this process; what a user can act on is returned, since it may not survive the way back.

    Raises:
        Exception: a bug, as it is.
    """
    try:
        run_stages(Path(job.directory), job.stages, job.shard, track=job.track)
    except Exception as error:  # what is a user's error is told; everything else is raised again as it is
        found = user_error(error)
        if found is None:
            raise
        return Failure(type(found).__name__, str(found))
    return None
