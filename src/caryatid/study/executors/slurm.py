"""As Slurm jobs, through submitit: arrays over the stages that are ready; a job that is preempted goes on later."""

import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from ...errors import UsageError
from ..forecast import kept_forecast
from ..jobs import Failure, Job, run_job
from ..plan import Plan
from ..work import Session, gpus_of
from .base import Outcome, Sending, needed

WORKERS = 8  # jobs at the same time where nobody says
TIMEOUT_MIN = 24 * 60
ASK_EVERY = 15.0  # seconds between two looks at the queue; results are seen at once, as files
REQUEUES = 100  # of a job that reaches its time limit: it goes on from what it kept
# States in which Slurm leaves a job for good while it is in the queue. One that it begins anew, after a lost node or a
# preemption, is pending next, and then running.
ENDED = frozenset({"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "OUT_OF_MEMORY", "TIMEOUT"})
# What the accounting says of jobs that have not ended.
UNDER_WAY = frozenset(
    {"COMPLETING", "CONFIGURING", "PENDING", "REQUEUED", "RESIZING", "RUNNING", "SUSPENDED"}
)


class Begun:
    """What submitit runs on the other machine, and begins again after a preemption or at a time limit."""

    def __call__(self, job: Job) -> Failure | None:
        """Run a job."""
        return run_job(job)

    def checkpoint(self, job: Job) -> Any:
        """The same again: the stages have kept what they did."""
        return needed("submitit", "slurm").helpers.DelayedSubmission(self, job)


class OnSlurm:
    """Jobs as members of Slurm arrays.

    Args:
        workers: jobs at the same time. options: submitit's parameters (`timeout_min`, `cpus_per_task`, `mem_gb`,
            `gpus_per_node`, `slurm_partition`, `slurm_account`, …), and `folder` for its logs, which all machines must
            see (default: `slurm` in the run directory).
    """

    def __init__(self, workers: int | None, options: Mapping[str, str]) -> None:
        self.submitit, self.workers = needed("submitit", "slurm"), workers or WORKERS
        self.options = {name: YAML(typ="safe").load(value) for name, value in options.items()}
        self._sent: dict[str, float] = {}
        self._states: dict[str, str] = {}
        self._asked = 0.0
        if shutil.which("sbatch") is None:
            raise UsageError(
                "there is no sbatch here", where="--executor slurm", remedy="Run it where jobs are submitted."
            )

    def execute(self, session: Session, plan: Plan) -> list[str]:
        """Send what is not done; the logs are removed when all of it worked."""
        folder = Path(self.options.pop("folder", session.run.path.resolve() / "slurm"))
        self.executor = self.submitit.AutoExecutor(
            folder=folder, cluster="slurm", slurm_max_num_timeout=REQUEUES
        )
        self._set({"name": "caryatid", "timeout_min": TIMEOUT_MIN, "slurm_array_parallelism": self.workers})
        if gpus := gpus_of(session.study):
            self._set({"gpus_per_node": gpus})
        self._set(self.options)
        forecast = kept_forecast(plan, session.settled_prompts)
        memory = {name: cost.memory for name, cost in forecast.costs.items()} if forecast else {}
        ran = Sending(session, plan, self, memory).run()
        shutil.rmtree(folder, ignore_errors=True)
        return ran

    def _set(self, parameters: Mapping[str, Any]) -> None:
        try:
            self.executor.update_parameters(**parameters)
        except (NameError, TypeError, ValueError) as error:
            raise UsageError(
                str(error), where="--executor-set", remedy="See submitit's AutoExecutor."
            ) from error

    def submit(self, jobs: Sequence[Job]) -> list[Any]:
        """Start an array."""
        memory = max(job.memory for job in jobs)
        if memory and "mem_gb" not in self.options and "slurm_mem" not in self.options:
            self._set({"mem_gb": max(1, round(1.25 * memory / 2**30))})
        handles = list(self.executor.map_array(Begun(), list(jobs)))
        self._sent |= {handle.job_id: time.monotonic() for handle in handles}
        return handles

    def outcome(self, handle: Any) -> Outcome | None:
        """What became of a job."""
        logs = str(handle.paths.stderr)
        if handle.paths.result_pickle.exists():
            return Outcome(handle.result(), logs)  # a bug in a stage keeps its traceback
        state = self._ended(handle)
        if state is None or handle.paths.result_pickle.exists():
            return None
        kind = "MemoryExhaustedError" if state == "OUT_OF_MEMORY" else "JobError"
        said = f"Slurm ended job {handle.job_id} ({state.lower().replace('_', ' ')}); see {logs}"
        return Outcome(Failure(kind, said), logs)

    def _ended(self, handle: Any) -> str | None:
        """The state in which Slurm left a job for good, None: it has not.

        The queue says so; of a job that it has forgotten, the accounting, where there is one.
        """
        now = time.monotonic()
        if now - self._asked > ASK_EVERY:
            asked = ["squeue", "--noheader", "--me", "--array", "--states=all", "--format=%i %T"]
            said = subprocess.run(asked, capture_output=True, text=True, check=False)
            if said.returncode == 0:
                self._asked = now
                self._states = dict(line.split()[:2] for line in said.stdout.splitlines())
        if handle.job_id in self._states or self._asked - self._sent[handle.job_id] < ASK_EVERY:
            state = self._states.get(handle.job_id)
            return state if state in ENDED else None
        known = str(handle.state).split()[0].removesuffix("+")
        if known in UNDER_WAY:
            return None
        return "FAILED" if known == "UNKNOWN" else known

    def cancel(self, handles: Sequence[Any]) -> None:
        """End jobs."""
        for handle in handles:
            handle.cancel(check=False)

    def close(self) -> None:
        """Nothing to let go of."""
