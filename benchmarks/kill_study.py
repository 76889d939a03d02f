"""A small study, killed again and again at random moments, against the same study left alone.

    python benchmarks/kill_study.py --kills 25
    python benchmarks/kill_study.py --kills 25 --executor ray

A tiny random model goes through every stage: warm-up, training, attacks, answers, geometry, interventions, report.
With `inline` the study's process is killed and started again; with `ray` one of the processes that hold a stage.
Checked is that the tables equal those of the study left alone, that no more was done again than what a process had done
in the interval before it was killed, and that the run directory holds the same files. Exit code 1 where it is not so.
States are kept every INTERVAL seconds instead of every minute, so that a study of half a minute has many of them.
"""

import argparse
import csv
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
INTERVAL = 1.0  # seconds
SLACK = 1.5  # seconds that one unit of work may take beside that on a busy machine
REPORT = 3.0  # seconds that tables and report take
SETTINGS = (
    "attacks.fixed_source.steps=6",
    "attacks.adaptive={enabled: true, at: last, behaviours: 2, steps: 6}",
    "anchors=[0, 3, 6]",
    "warmup.steps=6",
    "batch.forward=4",
    "batch.generate=2",
)


def study(folder: Path, *more: str) -> subprocess.Popen[bytes]:
    """The study in a process of its own, its run directory `folder/run`."""
    path = os.pathsep.join(
        map(str, (ROOT / "src", ROOT / "benchmarks", ROOT / "tests", ROOT / "tests" / "study"))
    )
    environment = os.environ | {
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": "1",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    }
    log = (folder / "log").open("ab")
    return subprocess.Popen(
        [sys.executable, __file__, "--within", str(folder), *more], env=environment, stdout=log, stderr=log
    )


def within(folder: Path, executor: str) -> None:
    """Run the study in this process, and note every unit of work in `folder/units.jsonl`."""
    from small import small_config

    from caryatid.study.executors.choice import executor_named
    from caryatid.study.flow import run_study

    os.environ["CARYATID_UNITS"] = str(folder / "units.jsonl")
    noting()
    options, workers = dict[str, str](), None
    if executor == "ray":
        import ray

        options, workers = {"retries": "1000"}, 2
        # Workers note their units, too; the executor takes the cluster that is there.
        ray.init(log_to_driver=False, runtime_env={"worker_process_setup_hook": "kill_study.noting"})
    run_study(
        small_config(folder, *SETTINGS), folder / "run", executor=executor_named(executor, workers, options)
    )


def noting() -> None:
    """Keep states often, and note every unit of work: batches, updates, steps of attacks."""
    import caryatid.artifacts as artifacts
    import caryatid.attacks.gcg.search as search
    import caryatid.training.loop as loop
    import caryatid.training.warmup as warmup
    from caryatid import keeping
    from caryatid.study import jobs, runner
    from caryatid.training.trainee import Trainee

    keeping.KEEP_EVERY = search.KEEP_EVERY = loop.SAVE_AFTER = warmup.SAVE_AFTER = INTERVAL
    loop.SAVE_SHARE = 0.0
    here = [""]
    plain: dict[str, Any] = {
        "stage": runner.run_stage,
        "part": jobs._run_part,
        "piece": keeping._Pieces.piece,
        "update": Trainee.update,
        "advance": search._Search.advance,
        "append": artifacts.Chunks.append,
    }

    def note(unit: str) -> None:
        line = json.dumps({"unit": f"{here[0]} {unit}", "at": time.time(), "pid": os.getpid()})
        with Path(os.environ["CARYATID_UNITS"]).open("a") as stream:
            stream.write(line + "\n")

    def stage(session: Any, entry: Any) -> None:
        here[0] = entry.id
        plain["stage"](session, entry)

    def part(session: Any, chosen: Any, shard: Any) -> Any:
        here[0] = chosen[0].id
        return plain["part"](session, chosen, shard)

    def piece(self: Any, label: str, make: Any) -> Any:
        def noted() -> Any:
            value = make()
            note(f"{self.folder.name} {len(self.kept) + len(self.made)}")
            return value

        return plain["piece"](self, label, noted)

    def update(self: Any) -> None:
        plain["update"](self)
        note(f"update {self.step}")

    def advance(self: Any) -> bool:
        going: bool = plain["advance"](self)
        if going:
            goals = ",".join(one.goal.behavior_id for one in self.states)
            note(f"{goals} {max(len(one.losses) for one in self.states)}")
        return going

    def append(self: Any, index: int, value: object) -> None:
        plain["append"](self, index, value)
        note(f"{self.path.name} {index}")

    # Methods are exchanged in this process alone, which mypy takes for a mistake.
    runner.run_stage = stage
    jobs._run_part = part
    keeping._Pieces.piece = piece  # type: ignore[method-assign]
    Trainee.update = update  # type: ignore[method-assign]
    search._Search.advance = advance  # type: ignore[method-assign]
    artifacts.Chunks.append = append  # type: ignore[method-assign]


def tables(run: Path) -> dict[str, list[dict[str, str]]]:
    """The tables' rows, without what stages cost."""
    found = {}
    for path in sorted((run / "tables").glob("*.csv")):
        if path.stem != "costs":
            with path.open(encoding="utf-8", newline="") as stream:
                rows = list(csv.DictReader(stream))
            found[path.stem] = [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in rows]
    return found


def files(run: Path) -> set[str]:
    """What a run directory holds, its log of events apart."""
    return {str(path.relative_to(run)) for path in run.rglob("*") if path.name != "events.jsonl"}


@dataclass(frozen=True)
class Kill:
    """When a process was killed, and at what kind of stage it was; `between stages`: planning, tables, report."""

    at: float
    pid: int
    stage: str


@dataclass
class Killed:
    """A study that was killed, and what of it was done twice."""

    folder: Path
    kills: list[Kill] = field(default_factory=list)

    def kill(self, pid: int) -> None:
        """Kill a process."""
        os.kill(pid, signal.SIGKILL)
        self.kills.append(Kill(time.time(), pid, self._under_way(pid)))

    def _under_way(self, pid: int) -> str:
        under_way: dict[str, None] = {}
        for one in _events(self.folder):
            if one["pid"] == pid and one["event"] in ("stage_started", "part_started"):
                under_way[one["stage"]] = None
            elif one["pid"] == pid and one["event"] in ("stage_done", "part_done"):
                under_way.pop(one["stage"], None)
        return next(reversed(under_way), "between stages").split("/")[0]

    def _units(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "units.jsonl").read_text().splitlines()]

    def repeated(self) -> list[float]:
        """Of every unit that was done again: the seconds between it and the kill of the process that had done it."""
        first: dict[str, dict[str, Any]] = {}
        found = []
        for one in self._units():
            if before := first.get(one["unit"]):
                after = [
                    kill.at for kill in self.kills if kill.pid == before["pid"] and kill.at >= before["at"]
                ]
                found.append(min(after) - before["at"] if after else float("inf"))
            first[one["unit"]] = one
        return found

    def longest_unit(self) -> float:
        """Seconds between two units of one stage in one process, at most: states are kept after a unit, not within."""
        last: dict[tuple[int, str], float] = {}
        longest = 0.0
        for one in self._units():
            place = one["pid"], one["unit"].split()[0]
            longest = max(longest, one["at"] - last.get(place, one["at"]))
            last[place] = one["at"]
        return longest

    def faults(self, alone: Path) -> list[str]:
        """What is not as in the study that was left alone, in words; nothing: all is well."""
        run, limit = self.folder / "run", INTERVAL + SLACK + self.longest_unit()
        found = []
        if tables(run) != tables(alone / "run"):
            found.append("its tables differ")
        if (longest := max(self.repeated(), default=0.0)) > limit:
            found.append(f"{longest:.1f} s of work were done again, of which {limit:.1f} s may be")
        if differing := files(run) ^ files(alone / "run"):
            found.append(f"left behind or missing: {', '.join(sorted(differing)[:8])}")
        return found


def kill_inline(folder: Path, kills: int, alone: Path, chance: random.Random) -> Killed:
    """Kill the study's process at random moments of its work, then let it finish."""
    killed = Killed(folder)
    while len(killed.kills) < kills:
        longest = 2 * seconds_left(folder, alone) / (kills - len(killed.kills))
        before, process = _begun(folder), study(folder)
        while _begun(folder) == before and process.poll() is None:
            time.sleep(0.05)
        try:
            if process.wait(chance.uniform(0, longest)) == 0:
                return killed  # finished before it could be killed so often
            raise RuntimeError(f"the study failed: {_last_words(folder)}")
        except subprocess.TimeoutExpired:
            killed.kill(process.pid)
            process.wait()
    if study(folder).wait():
        raise RuntimeError(f"the study failed: {_last_words(folder)}")
    return killed


def kill_workers(folder: Path, kills: int, alone: Path, chance: random.Random) -> Killed:
    """Kill processes that hold a stage, at random moments, while the study's own process lives."""
    killed, process = Killed(folder), study(folder, "--executor", "ray")
    while process.poll() is None and (left := kills - len(killed.kills)) > 0:
        time.sleep(chance.uniform(0, 2 * seconds_left(folder, alone) / left))
        if pids := _holders(folder) - {process.pid}:
            killed.kill(chance.choice(sorted(pids)))
    if process.wait():
        raise RuntimeError(f"the study failed: {_last_words(folder)}")
    return killed


def _holders(folder: Path) -> set[int]:
    """Live processes that hold a stage, or a part of one."""
    found = set()
    for path in (folder / "run" / "leases").glob("*.json"):
        with suppress(FileNotFoundError, json.JSONDecodeError):  # let go of since, or just being written
            pid = json.loads(path.read_text())["pid"]
            if not path.stem.startswith("runner-") and Path(f"/proc/{pid}").exists():
                found.add(pid)
    return found


def _events(folder: Path) -> list[dict[str, Any]]:
    file = folder / "run" / "events.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def _begun(folder: Path) -> int:
    """How often the study was begun."""
    return sum(one["event"] == "run_started" for one in _events(folder))


def _last_words(folder: Path) -> str:
    return " / ".join((folder / "log").read_text(errors="replace").splitlines()[-5:])


def undisturbed(folder: Path) -> None:
    """The study left alone."""
    folder.mkdir()
    if study(folder).wait():
        raise RuntimeError(f"the study failed: {_last_words(folder)}")


def seconds_left(folder: Path, alone: Path) -> float:
    """What is not done of a study took so long in the one that was left alone; with tables and report."""
    found = REPORT
    for manifest in (alone / "run").glob("stages/*/*/manifest.json"):
        if not (folder / "run" / manifest.relative_to(alone / "run")).exists():
            found += float(json.loads(manifest.read_text())["seconds"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--executor", choices=("inline", "ray"), default="inline")
    parser.add_argument("--within", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.within:
        within(asked.within, asked.executor)
        return
    chance, runs = random.Random(asked.seed), list[Killed]()
    kill = kill_workers if asked.executor == "ray" else kill_inline
    with tempfile.TemporaryDirectory() as name:
        alone = Path(name) / "alone"
        undisturbed(alone)
        seconds = seconds_left(Path(name), alone)
        faults = []
        # A study that comes to its end before it was killed so often is followed by another one.
        while (left := asked.kills - sum(len(run.kills) for run in runs)) > 0:
            folder = Path(name) / f"killed-{len(runs)}"
            folder.mkdir()
            runs.append(kill(folder, left, alone, chance))
            faults += [f"{folder.name}: {fault}" for fault in runs[-1].faults(alone)]
        hit = Counter(one.stage for run in runs for one in run.kills)
        repeated = [each for run in runs for each in run.repeated()]
        print(f"{hit.total()} kills in {len(runs)} studies of {seconds:.0f} s under {asked.executor}")
        print(f"at: {', '.join(f'{kind} {count}' for kind, count in hit.most_common())}")
        print(f"units done again: {len(repeated)}, at most {max(repeated, default=0):.2f} s before the kill")
        print("\n".join(faults) or "tables equal, at most an interval done again, nothing left behind")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
