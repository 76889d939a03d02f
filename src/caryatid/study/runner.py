"""Running a plan: stages in order, finished ones reused, failures recorded, everything resumable."""

import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..artifacts import RunDirectory, Stage, write_bytes
from ..config import StudyConfig, dump_config, parse_config
from ..errors import UsageError
from ..progress import NO_PROGRESS, Progress
from .facts import Settled, settle_facts
from .plan import Facts, Kind, Plan, StagePlan, build_plan

if TYPE_CHECKING:
    from ..training.ranks import Ranks

LIBRARIES = ("torch", "transformers", "peft", "accelerate", "safetensors", "tokenizers", "numpy", "scipy")


@dataclass(frozen=True)
class StageStatus:
    """One row of `study status`."""

    id: str
    kind: Kind
    state: str
    seconds: float | None
    detail: str


@dataclass(frozen=True)
class RunResult:
    """What `study run` reports. `main`: this process wrote it (of several that trained together)."""

    directory: Path
    report: Path
    reused: int
    executed: int
    seconds: float
    main: bool = True


def library_versions() -> dict[str, str]:
    """Versions of what numbers can depend on."""
    versions = {"caryatid": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def run_study(
    config: StudyConfig,
    out: Path,
    *,
    progress: Progress = NO_PROGRESS,
    announce: Callable[[str], None] = lambda _line: None,
) -> RunResult:
    """Run or resume a study in `out`, then write its tables and report.

    Raises:
        UsageError: `out` cannot be used, or another process is using it.
        CaryatidError: as the stages raise them; finished stages stay.
    """
    started = time.monotonic()
    with _session(config, out, announce) as (run, settled, plan, ranks):
        executed = _execute(run, config, settled, plan, ranks, progress, announce)
        if not ranks.main:
            report = run.path / "report" / "index.html"
            return RunResult(run.path, report, 0, 0, time.monotonic() - started, main=False)
        from ..report.page import build_report
        from .tables import write_tables

        write_tables(run, config, plan)
        report = build_report(run.path)
    reused = len(plan.stages) - executed
    return RunResult(run.path, report, reused, executed, time.monotonic() - started)


def train_only(
    config: StudyConfig,
    out: Path,
    *,
    progress: Progress = NO_PROGRESS,
    announce: Callable[[str], None] = lambda _line: None,
) -> list[dict[str, Any]]:
    """Run the training stages of a study and what they need; returns arm, step and folder of every anchor.

    Of several processes that train together only the first one returns anchors.

    Raises:
        UsageError: nothing would be trained, or `out` cannot be used.
    """
    if config.observed:
        raise UsageError(
            "an observed series trains nothing", where="anchors", remedy="Give anchors as steps."
        )
    with _session(config, out, announce) as (run, settled, plan, ranks):
        wanted = [entry for entry in plan if entry.kind in ("prompts", "chat", "warmup", "train")]
        _execute(run, config, settled, Plan(tuple(wanted)), ranks, progress, announce)
    if not ranks.main:
        return []
    found = []
    for entry in plan.of_kind("train"):
        stage = entry.stage(run)
        for row in stage.read_json("anchors.json"):
            folder = row["weights"] or row["adapters"][-1]
            found.append(
                {"seed": entry.seed, "arm": row["arm"], "step": row["step"], "folder": str(run.path / folder)}
            )
    return found


@contextmanager
def _session(
    config: StudyConfig, out: Path, announce: Callable[[str], None]
) -> Iterator[tuple[RunDirectory, Settled, Plan, "Ranks"]]:
    """The run directory, held by the first process; the others read what it settled."""
    from ..training.ranks import Ranks

    ranks = Ranks.start()
    new = not out.exists()
    run = RunDirectory.create(out)
    if not ranks.main:
        ranks.barrier()
        facts = Facts.from_json(run.manifest()["facts"])
        yield run, Settled(facts, None), build_plan(config, facts), ranks
        ranks.barrier()
        return
    with run.locked():
        try:
            settled, plan = _prepare(run, config, announce)
        except BaseException:
            run.discard_unused(folder=new)
            raise
        ranks.barrier()
        yield run, settled, plan, ranks
        ranks.barrier()


def _prepare(run: RunDirectory, config: StudyConfig, announce: Callable[[str], None]) -> tuple[Settled, Plan]:
    """Settle the facts, plan, and write configuration and manifest."""
    settled = settle_facts(config, _earlier_facts(run, config))
    facts = settled.facts
    plan = build_plan(config, facts)
    announce(f"prompts: {facts.prompts_note}")
    announce(f"backbone: {config.model.spec} ({facts.dtype} on {facts.device}); batches {dict(facts.batch)}")
    _write_manifest(run, config, facts, plan)  # first: a folder without one is not taken for a run directory
    write_bytes(run.config_path, dump_config(config).encode())
    return settled, plan


def planned(config: StudyConfig, out: Path | None = None) -> tuple[Plan, Facts]:
    """The plan of a study, without running anything."""
    earlier = None
    if out is not None and (run := RunDirectory(out)).manifest_path.exists():
        run.check_version()
        earlier = _earlier_facts(run, config)
    facts = settle_facts(config, earlier).facts
    return build_plan(config, facts), facts


def study_status(directory: Path) -> list[StageStatus]:
    """Each stage's state: done, running, partial, failed or missing.

    Raises:
        UsageError: not a run directory, or of another version.
    """
    run = RunDirectory.existing(directory)
    if not run.config_path.exists():
        raise UsageError(
            "the study was stopped before it began", where=str(directory), remedy="Run it again."
        )
    config = parse_config(run.config_text(), str(run.config_path))
    plan = build_plan(config, Facts.from_json(run.manifest()["facts"]))
    busy = _is_locked(run)
    rows = []
    for entry in plan:
        stage = entry.stage(run)
        state: str = stage.state()
        seconds, detail = None, entry.size
        if state == "done":
            seconds = stage.manifest().get("seconds")
        elif state == "failed":
            detail = stage.read_json("failed.json")["message"]
        elif state == "partial" and busy:
            state = "running"
        rows.append(StageStatus(entry.id, entry.kind, state, seconds, detail))
    return rows


def _is_locked(run: RunDirectory) -> bool:
    try:
        with run.locked():
            return False
    except UsageError:
        return True


def _earlier_facts(run: RunDirectory, config: StudyConfig) -> Facts | None:
    """Facts of an earlier start in this directory, when the same things were asked for."""
    if not run.manifest_path.exists():
        return None
    manifest = run.manifest()
    same = ("model", "prompts", "batch")
    dump = config.model_dump(mode="json")
    if "facts" not in manifest or any(manifest["asked"].get(key) != dump[key] for key in same):
        return None
    return Facts.from_json(manifest["facts"])


def _write_manifest(run: RunDirectory, config: StudyConfig, facts: Facts, plan: Plan) -> None:
    dump = config.model_dump(mode="json")
    run.write_manifest(
        {
            "caryatid": __version__,
            "asked": {key: dump[key] for key in ("model", "prompts", "batch")},
            "facts": facts.to_json(),
            "libraries": library_versions(),
            "seeds": list(config.seeds),
            "stages": {
                entry.id: {"kind": entry.kind, "folder": f"stages/{entry.kind}/{entry.key}"} for entry in plan
            },
        }
    )


def _execute(
    run: RunDirectory,
    config: StudyConfig,
    settled: Settled,
    plan: Plan,
    ranks: "Ranks",
    progress: Progress,
    announce: Callable[[str], None],
) -> int:
    """Run what is not done; returns how many stages ran. All processes train, the first one does everything else."""
    pending = set(ranks.shared([entry.id for entry in plan if not entry.stage(run).done()]))
    if not pending:
        return 0
    from .context import Context
    from .stages import WORK

    context = Context(
        config=config,
        facts=settled.facts,
        plan=plan,
        run=run,
        progress=progress if ranks.main else NO_PROGRESS,
        announce=announce,
        settled_prompts=settled.prompts,
        ranks=ranks,
    )
    for number, entry in enumerate(plan, start=1):
        stage = entry.stage(run)
        if entry.id not in pending or not (ranks.main or entry.kind == "train"):
            continue
        if ranks.main:
            announce(f"[{number}/{len(plan.stages)}] {entry.id}: {entry.size}")
            stage.begin()
        if entry.kind == "train":
            ranks.barrier()
        if ranks.main:
            _run_stage(context, entry, stage, WORK[entry.kind])
        else:
            WORK[entry.kind](context, entry, stage)
    context.close()
    return len(pending)


def _run_stage(
    context: Any, entry: StagePlan, stage: Stage, work: Callable[[Any, StagePlan, Stage], Mapping[str, Any]]
) -> None:
    started = time.monotonic()
    try:
        facts = work(context, entry, stage)
    except Exception as error:  # recorded for `study status`, whatever it is
        stage.fail(error)
        raise
    stage.finish(
        {
            "id": entry.id,
            "seed": entry.seed,
            "anchor": [entry.anchor.arm, entry.anchor.step] if entry.anchor else None,
            "dtype": context.facts.dtype,
            "device": context.facts.device,
            "model": context.facts.model_identity,
            "libraries": library_versions(),
            "threads": os.environ.get("OMP_NUM_THREADS"),
            "seconds": round(time.monotonic() - started, 3),
            "facts": dict(facts),
        }
    )
