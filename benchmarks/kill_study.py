"""A small study, killed again and again at random moments, against the same study left alone.

    python benchmarks/kill_study.py --kills 25
    python benchmarks/kill_study.py --kills 25 --executor ray

A tiny random model goes through every stage: warm-up, training, attacks, answers, geometry, interventions, report.
With `inline` the study's process is killed and started again; with `ray` one of the processes that hold a stage.
Reported are whether the tables are equal, what was computed more than once and how long before the kill that was, and
what is left behind. Under `inline` states are kept every INTERVAL seconds instead of every minute, so that a study of
half a minute has many of them; under `ray` they are kept as ever, and what is computed again is not counted.
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
INTERVAL = 1.0  # seconds
SLACK = 1.5  # seconds that one unit of work may take beside that on a busy machine
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
    path = os.pathsep.join(map(str, (ROOT / "src", ROOT / "tests", ROOT / "tests" / "study")))
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
    options = {"retries": "1000"} if executor == "ray" else {}
    workers = 2 if executor == "ray" else None
    noting()
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
    from caryatid.study import runner
    from caryatid.training.trainee import Trainee

    keeping.KEEP_EVERY = search.KEEP_EVERY = loop.SAVE_AFTER = warmup.SAVE_AFTER = INTERVAL
    loop.SAVE_SHARE = 0.0
    here = [""]
    plain: dict[str, Any] = {
        "stage": runner.run_stage,
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


@dataclass
class Killed:
    """A study that was killed: when, and what of it was done twice."""

    folder: Path
    kills: list[float] = field(default_factory=list)

    def repeated(self) -> list[float]:
        """Of every unit that was done again: the seconds between it and the kill that came after it."""
        first: dict[str, float] = {}
        found = []
        for line in (self.folder / "units.jsonl").read_text().splitlines():
            one = json.loads(line)
            if one["unit"] in first:
                after = [kill for kill in self.kills if kill >= first[one["unit"]]]
                found.append(min(after) - first[one["unit"]] if after else float("inf"))
            first[one["unit"]] = one["at"]
        return found

    def longest_unit(self) -> float:
        """Seconds between two units of one stage in one process, at most: states are kept after a unit, not within."""
        last: dict[tuple[int, str], float] = {}
        longest = 0.0
        for line in (self.folder / "units.jsonl").read_text().splitlines():
            one = json.loads(line)
            place = one["pid"], one["unit"].split()[0]
            longest = max(longest, one["at"] - last.get(place, one["at"]))
            last[place] = one["at"]
        return longest

    def left_behind(self) -> list[str]:
        """What only a run that is under way has."""
        run = self.folder / "run"
        patterns = ("*.tmp", ".*.partial", "stages/*/*/work", "leases", "stages/*/*/failed.json")
        return [str(path.relative_to(run)) for pattern in patterns for path in run.rglob(pattern)]


def kill_inline(folder: Path, kills: int, longest: float, chance: random.Random) -> Killed:
    """Kill the study's process at random moments of its work, then let it finish."""
    killed = Killed(folder)
    while len(killed.kills) < kills:
        process, before = study(folder), _events(folder)
        while _events(folder) == before and process.poll() is None:
            time.sleep(0.05)
        try:
            if process.wait(chance.uniform(0, longest)) == 0:
                return killed  # finished before it could be killed so often
            raise RuntimeError(f"the study failed: see {folder / 'log'}")
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed.kills.append(time.time())
    if study(folder).wait():
        raise RuntimeError(f"the study failed: see {folder / 'log'}")
    return killed


def kill_workers(folder: Path, kills: int, longest: float, chance: random.Random) -> Killed:
    """Kill processes that hold a stage, at random moments, while the study's own process lives."""
    killed, process = Killed(folder), study(folder, "--executor", "ray")
    while process.poll() is None:
        time.sleep(chance.uniform(0, longest))
        leases = sorted((folder / "run" / "leases").glob("*.json"))
        pids = {json.loads(path.read_text())["pid"] for path in leases if not path.stem.startswith("runner-")}
        if pids - {process.pid} and len(killed.kills) < kills:
            os.kill(chance.choice(sorted(pids - {process.pid})), signal.SIGKILL)
            killed.kills.append(time.time())
    if process.returncode:
        raise RuntimeError(f"the study failed: see {folder / 'log'}")
    return killed


def _events(folder: Path) -> int:
    """How often the study was begun."""
    file = folder / "run" / "events.jsonl"
    return file.read_text().count('"run_started"') if file.exists() else 0


def undisturbed(folder: Path) -> float:
    """The study left alone; the seconds that its stages took."""
    folder.mkdir()
    if study(folder).wait():
        raise RuntimeError(f"the study failed: see {folder / 'log'}")
    manifests = (folder / "run").glob("stages/*/*/manifest.json")
    return sum(float(json.loads(path.read_text())["seconds"]) for path in manifests)


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
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seconds = undisturbed(folder / "alone")
        (folder / "killed").mkdir()
        kill = kill_workers if asked.executor == "ray" else kill_inline
        longest = 2 * seconds / asked.kills
        killed = kill(folder / "killed", asked.kills, longest, random.Random(asked.seed))
        equal = tables(folder / "killed" / "run") == tables(folder / "alone" / "run")
        repeated = killed.repeated()
        print(f"{len(killed.kills)} kills of a study of {seconds:.0f} s of stages under {asked.executor}")
        print(f"tables equal: {equal}")
        print(f"units done again: {len(repeated)}, at most {max(repeated, default=0):.2f} s before a kill")
        print(f"left behind: {killed.left_behind() or 'nothing'}")


if __name__ == "__main__":
    main()
