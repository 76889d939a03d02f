"""On a Ray cluster: the one that runs on this machine or that `RAY_ADDRESS` names, else one that is started here."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..forecast import kept_forecast
from ..jobs import Failure, Job, run_job
from ..plan import Plan
from ..work import Session, gpus_of
from .base import Outcome, Sending, known_options, needed

OPTIONS = ("address", "cpus", "gpus", "retries")
# What jobs must see as this process does, also on machines whose Ray was started elsewhere.
PASSED_ON = ("CARYATID_CACHE", "CARYATID_DATA", "HF_HOME", "HF_HUB_OFFLINE", "OMP_NUM_THREADS")
RETRIES = 5  # of a job whose machine or process vanishes
PATIENCE = 10.0  # seconds that cancelled jobs have to keep what they have


def _run(job: Job, environment: dict[str, str], threads: int) -> Failure | None:
    os.environ.update(environment)
    torch.set_num_threads(threads)  # numbers depend on it by a rounding
    return run_job(job)


class OnRay:
    """Jobs as Ray tasks, which Ray begins anew elsewhere when their machine or process vanishes.

    Args:
        workers: jobs at the same time; default: as many as the cluster has GPUs, or CPUs for what a job asks for.
        options: `address` of a cluster; `cpus` and `gpus` of each job (default: the threads of this process, and those
            GPUs that the backbone takes on CUDA); `retries`.
    """

    def __init__(self, workers: int | None, options: Mapping[str, str]) -> None:
        known_options(options, OPTIONS, "ray")
        self.ray, self.options, self.asked = needed("ray", "ray"), dict(options), workers

    def execute(self, session: Session, plan: Plan) -> list[str]:
        """Send what is not done."""
        self.ray.init(address=self.options.get("address"), log_to_driver=False, ignore_reinit_error=True)
        forecast = kept_forecast(plan, session.settled_prompts)
        memory = {name: cost.memory for name, cost in forecast.costs.items()} if forecast else {}
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        self.largest = {name: max(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU", "memory")}
        self.cpus = float(self.options.get("cpus", min(torch.get_num_threads(), self.largest["CPU"])))
        gpus = float(self.options.get("gpus", gpus_of(session.study)))
        self.task = self.remote(gpus)
        self.workers = self.asked or self._room(gpus)
        return Sending(session, plan, self, memory).run()

    def remote(self, gpus: float) -> Any:
        """Ray's form of `_run`. A process keeps the card on which it first computed, whichever Ray names for its next
        task: on GPUs each job has a process of its own."""
        return self.ray.remote(max_calls=1 if gpus else 0)(_run)

    def _room(self, gpus: float) -> int:
        total = self.ray.cluster_resources()
        return max(1, int(total.get("GPU", 0) / gpus if gpus else total.get("CPU", 0) / max(self.cpus, 1)))

    def submit(self, jobs: Sequence[Job]) -> list[Any]:
        """Start jobs."""
        environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        handles = []
        for job in jobs:
            task = self.task.options(
                name=job.name,
                num_cpus=self.cpus,
                num_gpus=float(self.options.get("gpus", job.gpus)),
                memory=min(job.memory, self.largest["memory"]) or None,
                max_retries=int(self.options.get("retries", RETRIES)),
            )
            handles.append(task.remote(job, environment, torch.get_num_threads()))
        return handles

    def outcome(self, handle: Any) -> Outcome | None:
        """What became of a job."""
        if not self.ray.wait([handle], timeout=0)[0]:
            return None
        errors = self.ray.exceptions
        try:
            return Outcome(self.ray.get(handle))
        except errors.OutOfMemoryError as error:
            return Outcome(Failure("MemoryExhaustedError", f"out of memory on a Ray node: {error}"))
        except errors.RayTaskError:
            raise  # a bug in a stage keeps its traceback
        except errors.RayError as error:
            return Outcome(Failure("JobError", f"Ray gave a job up: {error}"))

    def cancel(self, handles: Sequence[Any]) -> None:
        """Interrupt jobs, and give them time to keep what they have."""
        for handle in handles:
            self.ray.cancel(handle)
        if handles:
            self.ray.wait(list(handles), num_returns=len(handles), timeout=PATIENCE)

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        self.ray.shutdown()
