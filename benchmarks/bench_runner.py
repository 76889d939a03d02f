"""What running a study costs besides its stages: planning, resuming, status, help, and the runner itself.

    python benchmarks/bench_runner.py

A plan of a thousand stages and more is that of the preset `quick` with many seeds and anchors, on a tiny random model;
the finished directory has a sealed folder with an empty result for each. The runner's overhead is the time of a study
of that model without its report and tables, less that of its stages, which take a fraction of a second each: the share
is an upper bound for real studies. Targets (issue 21): planning ≤ 2 s, resuming ≤ 5 s, status of 71 finished stages
≤ 3 s with imports, help ≤ 0.4 s, overhead ≤ 2 % of `quick`, whose stages take minutes.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "study")]


def timed(what: str, work: Callable[[], Any]) -> Any:
    """Do something and say how long it took."""
    began = time.perf_counter()
    found = work()
    print(f"{what}: {time.perf_counter() - began:.2f} s", flush=True)
    return found


def shell(*arguments: str) -> None:
    """A command of caryatid in a process of its own; must succeed."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    subprocess.run(
        [sys.executable, "-m", "caryatid", *arguments], env=environment, stdout=subprocess.DEVNULL, check=True
    )


def main() -> None:
    from small import small_config

    from caryatid.progress import NO_PROGRESS
    from caryatid.study.flow import run_study
    from caryatid.study.plan import build_plan
    from caryatid.study.runner import execute, opened
    from caryatid.study.status import study_status

    def announce(_line: str) -> None:
        pass

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small = small_config(folder)
        began = time.perf_counter()
        with opened(small, folder / "small", NO_PROGRESS, announce) as session:
            settled = time.perf_counter() - began
            execute(session)
            plan = session.plan
            whole = time.perf_counter() - began
        manifests = (entry.folder(session.run).manifest() for entry in plan)
        stages = sum(float(one["seconds"]) for one in manifests)
        print(f"a study of {len(plan)} tiny stages: {whole:.2f} s, of them {stages:.2f} s in stages")
        print(f"  settling {settled:.2f} s, runner {whole - stages - settled:.2f} s")
        print(f"  the runner takes {1000 * (whole - stages - settled) / len(plan):.0f} ms a stage")
        run_study(small, folder / "small")
        timed(
            f"study status of {len(plan)} finished stages",
            lambda: shell("study", "status", str(folder / "small")),
        )
        timed("caryatid --help", lambda: shell("--help"))

        big = small_config(folder, f"seeds={list(range(11))}", "anchors=[0, 1, 2, 3]")
        with opened(big, folder / "big", NO_PROGRESS, announce) as session:
            study = session.plan.study
        plan = timed("planning", lambda: build_plan(study))
        print(f"  {len(plan)} stages")
        for entry in plan:
            place = entry.folder(session.run)
            place.begin()
            place.write_json("result.json", {})
            place.finish({"seconds": 1.0, "id": entry.id})

        def resume() -> None:
            with opened(big, folder / "big", NO_PROGRESS, announce) as session:
                assert execute(session) == []

        timed(f"resuming {len(plan)} finished stages", resume)
        timed(f"status of {len(plan)} finished stages", lambda: study_status(folder / "big"))


if __name__ == "__main__":
    main()
