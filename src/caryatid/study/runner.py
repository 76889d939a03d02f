"""Running a plan: stages in order, finished ones reused, failures recorded, everything resumable."""

import functools
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..anchors import check_anchors, try_anchor
from ..artifacts import RunDirectory, write_bytes
from ..config import StudyConfig, dump_config, parse_config
from ..errors import ConfigError, UsageError
from ..models.planted import REFUSING
from ..progress import NO_PROGRESS, Progress
from ..training.ranks import Ranks
from .events import Told
from .facts import Settled, settle_facts
from .leases import RUNNER, Leases
from .plan import Plan, Planned, build_plan
from .recorded import Facts
from .series import anchors_of
from .stage import Study
from .stages.train import observed_anchor, where_is
from .todo import Todo
from .tracking import check_trackers
from .usage import Peak
from .work import Session, Work, gpus_of

LIBRARIES = ("torch", "transformers", "peft", "accelerate", "safetensors", "tokenizers", "numpy", "scipy")


@functools.cache
def library_versions() -> dict[str, str]:
    """Versions of what numbers can depend on."""
    versions = {"caryatid": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


@contextmanager
def opened(
    config: StudyConfig,
    out: Path,
    progress: Progress,
    announce: Callable[[str], None],
    *,
    repair: bool = False,
    track: Sequence[str] = (),
) -> Iterator[Session]:
    """A run directory, settled by the first of the processes that train together; the others read what it settled.

    Args:
        repair: compare all finished stages with their checksums, and compute anew what is damaged.
        track: experiment trackers that get numbers of training and events; see `Tracking`.
    """
    check_trackers(track)
    torch.set_float32_matmul_precision(config.model.matmul)
    ranks = Ranks.start()
    new = not out.exists()
    run = RunDirectory.create(out)
    if not ranks.main:
        ranks.barrier()
        study = Study(config, Facts.of_run(run))
        yield Session(study, build_plan(study), run, where_is, announce=announce, ranks=ranks)
        ranks.barrier()
        return
    with ExitStack() as stack:
        with _held(run, announce):
            try:
                _check_alone(run, config)
                settled, plan = _prepare(run, config, announce)
            except BaseException:
                run.discard_unused(folder=new)
                raise
            session = Session(
                plan.study, plan, run, where_is, settled.prompts, progress, announce, ranks, repair, track
            )
            stack.callback(session.tracking.close)
            stack.enter_context(session.leases.kept_alive())
        ranks.barrier()
        yield session
        ranks.barrier()


@contextmanager
def _held(run: RunDirectory, announce: Callable[[str], None]) -> Iterator[None]:
    """The run directory, locked; says so where another process has to let go of it first."""
    with ExitStack() as stack:
        try:
            stack.enter_context(run.locked())
        except UsageError:
            announce(f"waiting for another process that is using {run.path}")
            stack.enter_context(run.locked(wait=True))
        yield


def _check_alone(run: RunDirectory, config: StudyConfig) -> None:
    """Several processes may share a run directory, with one configuration; alone, clean up after killed ones.

    Raises:
        UsageError: a live one has another.
    """
    shared = any(name.startswith(RUNNER) for name in Leases(run).others())
    if not shared:
        run.sweep()
    elif run.config_path.exists() and not _says(run, config):
        raise UsageError(
            "another process is running this study with another configuration",
            where=str(run.path),
            remedy="Wait for it, or choose another --out.",
        )


def _says(run: RunDirectory, config: StudyConfig) -> bool:
    """Whether the stored configuration is this one; a version before may have written it, with fewer settings."""
    try:
        return parse_config(run.config_text(), str(run.config_path)) == config
    except ConfigError:
        return False


def _prepare(run: RunDirectory, config: StudyConfig, announce: Callable[[str], None]) -> tuple[Settled, Plan]:
    """Settle the facts, plan, and write configuration and manifest."""
    earlier = _earlier_facts(run, config)
    settled = settle_facts(config, earlier)
    facts = settled.facts
    plan = build_plan(Study(config, facts))
    if earlier is None or earlier.observed_identities != facts.observed_identities:
        _try_observed(plan.study, announce)
    announce(f"prompts: {facts.prompts_note}")
    where = facts.device + ("" if config.model.device_map is None else " and others, by model.device_map")
    announce(f"backbone: {config.model.spec} ({facts.dtype} on {where}); batches {dict(facts.batch)}")
    attack = config.attacks.fixed_source
    if attack.enabled and attack.options.get("file") == REFUSING != config.model.spec:
        announce(
            f"the fixed-source attack has suffixes found on {REFUSING}, not tried on other backbones: set "
            "attacks.fixed_source.method, to gcg, say, with its own steps, width and suffix_length"
        )
    _write_manifest(run, plan)  # first: a folder without one is not taken for a run directory
    write_bytes(run.config_path, dump_config(config).encode())
    return settled, plan


def _try_observed(study: Study, announce: Callable[[str], None]) -> None:
    """Check every checkpoint that somebody else trained, then let each answer one batch, before the first stage.

    Raises:
        CaryatidError: one of them cannot be measured; names it.
    """
    if not study.config.observed:
        return
    model, facts = study.config.model, study.facts
    refs = anchors_of(study.config, study.config.seeds[0])[1:]
    anchors = [observed_anchor(study, ref) for ref in refs]
    check_anchors(anchors, dtype=facts.dtype, trust_remote_code=model.trust_remote_code)
    for anchor in anchors:
        announce(f"checkpoint {anchor.arm}@{anchor.step}: one batch")
        try_anchor(
            anchor,
            system=model.system,
            dtype=facts.dtype,
            **model.placed(facts.device),
            trust_remote_code=model.trust_remote_code,
            options=model.chat_options,
        )


def planned(config: StudyConfig, out: Path | None = None) -> Plan:
    """The plan of a study, without running anything."""
    return settled_plan(config, out)[1]


def settled_plan(config: StudyConfig, out: Path | None = None) -> tuple[Settled, Plan]:
    """What a study settles before it runs, and its plan."""
    earlier = None
    if out is not None and (run := RunDirectory(out)).manifest_path.exists():
        run.check_version()
        earlier = _earlier_facts(run, config)
    settled = settle_facts(config, earlier)
    return settled, build_plan(Study(config, settled.facts))


def _earlier_facts(run: RunDirectory, config: StudyConfig) -> Facts | None:
    """Facts of an earlier start in this directory, when the same things were asked for."""
    if not run.manifest_path.exists():
        return None
    asked, dump = run.manifest().get("asked"), config.model_dump(mode="json")
    if not isinstance(asked, dict) or any(asked.get(key) != dump[key] for key in ("prompts", "batch")):
        return None
    model = asked.get("model")
    if not isinstance(model, dict) or {"device_map": None} | model != dump["model"]:  # older ones had no map
        return None
    return Facts.of_run(run)


def _write_manifest(run: RunDirectory, plan: Plan) -> None:
    study = plan.study
    run.write_manifest(
        {
            "caryatid": __version__,
            "asked": {key: study.settings[key] for key in ("model", "prompts", "batch")},
            "facts": study.facts.to_json(),
            "libraries": library_versions(),
            "seeds": list(study.config.seeds),
            "stages": {
                entry.id: {
                    "kind": entry.stage.kind,
                    "folder": f"stages/{entry.stage.kind}/{entry.key}",
                    "size": entry.stage.size(),
                }
                for entry in plan
            },
        }
    )


def execute(session: Session, plan: Plan | None = None, workers: int | None = None) -> list[str]:
    """Run what is not done of the session's plan, or of a part of it; returns the ids of what ran here.

    Other runners may be at work in the same directory: each stage is run by the one that holds its lease, and this one
    comes back when all are done. Of the processes that train together all run the stages that are collective
    (training), the first one does everything else. `workers`: as `Todo` takes it.
    """
    plan, ranks = plan or session.plan, session.ranks
    todo = Todo(session, plan, workers) if ranks.main else None
    if todo is None:
        session.progress = NO_PROGRESS
    ran = []
    while (name := ranks.shared(todo.take() if todo else None)) is not None:
        entry = plan[name]
        ran.append(name)
        if not (ranks.main or entry.stage.collective):
            continue
        if entry.stage.collective:
            ranks.barrier()
        if todo is None:
            entry.stage.run(Work(session, entry))
        else:
            run_stage(session, entry)
            todo.done(entry)
    session.close()
    return ran


def run_stage(session: Session, entry: Planned) -> None:
    """Compute, save and seal one stage; a failure is recorded for `study status`, whatever it is."""
    started, folder, peak = time.monotonic(), entry.folder(session.run), Peak()
    facts = {"stage": entry.id, "key": entry.key}
    shown = session.progress
    session.progress = Told(shown, session.events, facts, peak)
    folder.begin()
    session.events.write("stage_started", **facts)
    try:
        result = entry.stage.run(Work(session, entry))
        entry.stage.save(result, folder)
        seconds = round(time.monotonic() - started, 3)
        folder.finish(_manifest_of(session, entry, result, seconds) | {"memory": peak()})
    except BaseException as error:  # recorded, then raised again as it is
        if isinstance(error, Exception):
            folder.fail(error)
        said = str(error)[:2000]
        session.events.write("stage_failed", **facts, error=type(error).__name__, message=said)
        raise
    finally:
        session.progress = shown
    session.events.write("stage_done", **facts, seconds=seconds, memory=peak())


def _manifest_of(session: Session, entry: Planned, result: Any, seconds: float) -> dict[str, Any]:
    facts, place = session.study.facts, entry.stage.place
    return {
        "id": entry.id,
        "place": place.name if place else None,
        "dtype": facts.dtype,
        "device": facts.device,
        "model": facts.model_identity,
        "libraries": library_versions(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "seconds": seconds,
        "devices": session.ranks.size if entry.stage.collective else max(1, gpus_of(session.study)),
        "summary": dict(entry.stage.summary(result)),
    }
