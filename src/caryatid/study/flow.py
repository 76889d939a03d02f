"""A study from top to bottom; a newcomer's first file.

    configuration → prompt sets with disjoint roles → arms → anchors
    → at each anchor   {answers → verdicts of judges;
                        activations → candidate directions → scores → carrier, with its uncertainty;
                        interventions → read-outs; refusals under own and others' carriers}
    → for each pair    {drift, change of rank, transfer} → verdict
    → tables → report

Each arrow between files is a stage: one class in `stages/`, named after its file. In the order in which a prompt meets
them:

    prompts         the study's sets, by role                          (study)
    chat            examples for the SFT term, and held-out ones       (study)
    warmup          makes step 0 refuse, where the backbone does not   (seed)
    cases           fixed-source attack against step 0                 (seed)
    train           one arm, stopped at every anchor                   (arm)
    adaptive        an attack against the anchor itself                (anchor)
    answers         to every suite, with the refusal judge's verdicts  (anchor)
    harm            what a harmfulness judge says of them              (anchor)
    selection       short answers to the selection prompts             (anchor)
    refusal_tokens  first tokens of refusals, one set for all anchors  (study)
    activations     on the extraction prompts                          (anchor)
    candidates      candidate directions, scored                       (anchor)
    profile         published or calibrated, by step 0 alone           (seed)
    reextraction    the likeliest, extracted anew from resamples       (anchor)
    carrier         chosen once, under every profile                   (anchor)
    uncertainty     of its place                                       (anchor)
    behaved         r without prompts that do not behave               (anchor)
    rank            dimensions of refusal                              (anchor)
    probe           where harm and refusal can be read                 (anchor)
    cone            orthogonal directions that each carry refusal      (anchor)
    attribution     which sublayers write the carrier                  (anchor)
    interventions   ablation and addition beside controls              (anchor)
    transfer        refusals under own and others' carriers            (anchor)
    comparison      drift and change of rank                           (pair)
    verdict         label, reasons, sensitivity                        (pair)
    null            an anchor against itself, prompts drawn anew       (anchor)
    regime          the same anchor of two seeds                       (anchor)

`run_study` settles what the plan needs (`facts`), makes the plan (`plan`, a graph that knows no stage by name), runs
what is not done yet (`runner`), writes the tables (`tables/`, one file each) and the report.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import StudyConfig
from ..errors import UsageError
from ..models.quiet import said_once
from ..progress import NO_PROGRESS, Progress
from .executors.base import Executor
from .exports import write_answers
from .page import build_report
from .run import Run
from .runner import execute, opened
from .stages.train import Train
from .table import write_tables


@dataclass(frozen=True)
class RunResult:
    """What `study run` reports. `main`: this process wrote it (of several that trained together)."""

    directory: Path
    report: Path
    reused: int
    executed: int
    seconds: float
    main: bool = True


@said_once()
def run_study(
    config: StudyConfig,
    out: Path,
    *,
    executor: Executor | None = None,
    repair: bool = False,
    track: Sequence[str] = (),
    progress: Progress = NO_PROGRESS,
    announce: Callable[[str], None] = lambda _line: None,
) -> RunResult:
    """Run or resume a study in `out`, then write its tables and report.

    Several processes that do this with one `out` and one configuration share the work (`leases`).

    Args:
        executor: where stages run (`executors`); None: in this process.
        repair: compare all finished stages with their checksums, and compute anew what is damaged.
        track: experiment trackers that get numbers of training and events, as accelerate names them.

    Raises:
        UsageError: `out` cannot be used, or another process is using it with another configuration.
        DataMissingError: a finished stage is damaged and `repair` not set; names the file. Or a tracker is missing.
        CaryatidError: as the stages raise them; finished stages stay.
    """
    started = time.monotonic()
    with opened(config, out, progress, announce, repair=repair, track=track) as session:
        session.events.write("run_started", stages=len(session.plan))
        run_all = executor.execute if executor else execute
        executed = len(run_all(session, session.plan))
        run = Run(session.plan, session.run)
        if not session.ranks.main:
            seconds = time.monotonic() - started
            return RunResult(run.path, run.path / "report" / "index.html", 0, 0, seconds, main=False)
        with run.directory.locked(wait=True):
            write_tables(run)
            write_answers(run)
            report = build_report(run)
        session.events.write("run_done", seconds=round(time.monotonic() - started, 3), executed=executed)
    reused = len(session.plan) - executed
    return RunResult(run.path, report, reused, executed, time.monotonic() - started)


def train_only(
    config: StudyConfig,
    out: Path,
    *,
    track: Sequence[str] = (),
    progress: Progress = NO_PROGRESS,
    announce: Callable[[str], None] = lambda _line: None,
) -> list[dict[str, Any]]:
    """Run the training stages of a study and what they need; returns seed, arm, step and folder of every anchor.

    Of several processes that train together only the first one returns anchors.

    Raises:
        UsageError: nothing would be trained, or `out` cannot be used.
    """
    if config.observed:
        raise UsageError(
            "an observed series trains nothing", where="anchors", remedy="Give anchors as steps."
        )
    with opened(config, out, progress, announce, track=track) as session:
        execute(session, session.plan.upto(Train))
        run = Run(session.plan, session.run)
        if not session.ranks.main:
            return []
        return [
            {
                "seed": arm.seed,
                "arm": row["arm"],
                "step": row["step"],
                "folder": str(run.path / (row["weights"] or row["adapters"][-1])),
            }
            for arm, trained in run.each(Train)
            for row in trained.anchors
        ]
