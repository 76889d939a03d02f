"""A small study, killed again and again at random moments, against the same study left alone.

    python benchmarks/kill_study.py --kills 25
    python benchmarks/kill_study.py --kills 25 --executor ray

A tiny random model goes through every stage: warm-up, training, attacks, answers, geometry, interventions, report.
With `inline` the study's process is killed and started again; with `ray` one of the processes that hold a stage.
First a process is killed once at every kind of stage, and while tables and report are written; then at KILLS random
moments, which fall where most of the time goes.
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

from noted_study import INTERVAL

ROOT = Path(__file__).parents[1]
SLACK = 1.5  # seconds that one unit of work may take beside that on a busy machine
REPORT = 3.0  # seconds that tables and report take
REPORTING = "tables and report"
ROUNDS = 3  # studies that are killed at kinds of stages, until each was hit


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
        [sys.executable, str(ROOT / "benchmarks" / "noted_study.py"), str(folder), *more],
        env=environment,
        stdout=log,
        stderr=log,
    )


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
    """When a process was killed, and at what kind of stage it was; `between stages`: planning, and gaps."""

    at: float
    pid: int
    stage: str


@dataclass
class Killed:
    """A study that was killed, and what of it was done twice. `missed`: kinds of stages that it was to be killed at."""

    folder: Path
    kills: list[Kill] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)

    def kill(self, pid: int) -> None:
        """Kill a process."""
        os.kill(pid, signal.SIGKILL)
        self.kills.append(Kill(time.time(), pid, self._under_way(pid)))

    def _under_way(self, pid: int) -> str:
        under_way: dict[str, None] = {}
        events = _events(self.folder)
        for one in events:
            if one["pid"] == pid and one["event"] in ("stage_started", "part_started"):
                under_way[one["stage"]] = None
            elif one["pid"] == pid and one["event"] in ("stage_done", "part_done"):
                under_way.pop(one["stage"], None)
        planned = next((one["stages"] for one in reversed(events) if one["event"] == "run_started"), -1)
        began = any(one["pid"] == pid for one in events)
        nothing = REPORTING if began and _all_done(events, planned) else "between stages"
        return next(reversed(under_way), nothing).split("/")[0]

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
    killed, process = Killed(folder), study(folder, "ray")
    while process.poll() is None and (left := kills - len(killed.kills)) > 0:
        time.sleep(chance.uniform(0, 2 * seconds_left(folder, alone) / left))
        if pids := _holders(folder) - {process.pid}:
            killed.kill(chance.choice(sorted(pids)))
    if process.wait():
        raise RuntimeError(f"the study failed: {_last_words(folder)}")
    return killed


def kill_each_kind(
    folder: Path, alone: Path, chance: random.Random, kinds: list[str], executor: str
) -> Killed:
    """Kill a process once at each of these kinds of stages, in the order in which they come, then let it finish.

    A kill comes at a random moment of the time that the stage took in the study left alone. One that comes too late is
    counted where it fell, and the next stage of that kind is tried; `Killed.missed` says which kinds were never hit.
    """
    took = _seconds(alone)
    killed, process, read = Killed(folder), study(folder, executor), 0
    left = dict.fromkeys(kinds)
    while process.poll() is None:
        time.sleep(0.001)
        events = _events(folder)
        new, read = events[read:], len(events)
        at = next((one for one in new if _begins(one) in left), None)
        if at is None and REPORTING in left and _all_done(events, len(took)):
            at, seconds = {"pid": process.pid}, REPORT
        elif at is not None:
            seconds = took.get(at["stage"], 0.0)
        if at is None:
            continue
        time.sleep(chance.uniform(0, seconds))
        if process.poll() is not None:
            break
        with suppress(ProcessLookupError):
            killed.kill(at["pid"])
            left.pop(killed.kills[-1].stage, None)
        if at["pid"] == process.pid:
            process.wait()
            process, read = study(folder, executor), len(_events(folder))
    if process.wait():
        raise RuntimeError(f"the study failed: {_last_words(folder)}")
    killed.missed = list(left)
    return killed


def _begins(event: dict[str, Any]) -> str | None:
    """The kind of stage that begins with an event."""
    started = event["event"] in ("stage_started", "part_started")
    return event["stage"].split("/")[0] if started else None


def _all_done(events: list[dict[str, Any]], stages: int) -> bool:
    """Whether all stages are done, and what is left is to write tables and report."""
    done = {one["stage"] for one in events if one["event"] == "stage_done"}
    return len(done) == stages and events[-1]["event"] != "run_done"


def kinds_of(alone: Path) -> list[str]:
    """The kinds of stages of the study left alone, in the order in which they were done, and at last its report."""
    order = [one["stage"].split("/")[0] for one in _events(alone) if one["event"] == "stage_done"]
    return [*dict.fromkeys(order), REPORTING]


def _seconds(alone: Path) -> dict[str, float]:
    """How long each stage took in the study left alone."""
    manifests = (json.loads(path.read_text()) for path in (alone / "run").glob("stages/*/*/manifest.json"))
    return {one["id"]: float(one["seconds"]) for one in manifests}


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
    parser.add_argument("--kills", type=int, default=25, help="at random moments, after those at every kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--executor", choices=("inline", "ray"), default="inline")
    asked = parser.parse_args()
    chance, runs = random.Random(asked.seed), list[Killed]()
    kill = kill_workers if asked.executor == "ray" else kill_inline
    with tempfile.TemporaryDirectory() as name:
        alone = Path(name) / "alone"
        undisturbed(alone)
        seconds = seconds_left(Path(name), alone)
        faults = []
        left = kinds_of(alone)
        if asked.executor == "ray":  # the process that writes these is left alone
            left.remove(REPORTING)
        while left and len(runs) < ROUNDS:
            folder = Path(name) / f"aimed-{len(runs)}"
            folder.mkdir()
            runs.append(kill_each_kind(folder, alone, chance, left, asked.executor))
            faults += [f"{folder.name}: {fault}" for fault in runs[-1].faults(alone)]
            left = runs[-1].missed
        aimed = len(runs)
        # A study that comes to its end before it was killed so often is followed by another one.
        while (more_kills := asked.kills - sum(len(run.kills) for run in runs[aimed:])) > 0:
            folder = Path(name) / f"killed-{len(runs)}"
            folder.mkdir()
            runs.append(kill(folder, more_kills, alone, chance))
            faults += [f"{folder.name}: {fault}" for fault in runs[-1].faults(alone)]
        hit = Counter(one.stage for run in runs for one in run.kills)
        repeated = [each for run in runs for each in run.repeated()]
        print(f"{hit.total()} kills in {len(runs)} studies of {seconds:.0f} s under {asked.executor}")
        print(f"never hit: {', '.join(left) or 'no kind of stage'}")
        print(f"at: {', '.join(f'{kind} {count}' for kind, count in hit.most_common())}")
        print(f"units done again: {len(repeated)}, at most {max(repeated, default=0):.2f} s before the kill")
        print("\n".join(faults) or "tables equal, at most an interval done again, nothing left behind")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
