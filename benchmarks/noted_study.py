"""The study that `kill_study.py` kills, in a process of its own, with a note of every unit of work.

python benchmarks/noted_study.py FOLDER [inline|ray]
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

INTERVAL = 1.0  # seconds between two states
SETTINGS = (
    "attacks.fixed_source.steps=6",
    "attacks.adaptive={enabled: true, at: last, behaviours: 2, steps: 6}",
    "anchors=[0, 3, 6]",
    "warmup.steps=6",
    "batch.forward=4",
    "batch.generate=2",
)


def within(folder: Path, executor: str = "inline") -> None:
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
        ray.init(log_to_driver=False, runtime_env={"worker_process_setup_hook": "noted_study.noting"})
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

    # Methods are exchanged, in this process alone.
    runner.run_stage = stage
    jobs._run_part = part
    exchanged: list[tuple[type, str, Callable[..., Any]]] = [
        (keeping._Pieces, "piece", piece),
        (Trainee, "update", update),
        (search._Search, "advance", advance),
        (artifacts.Chunks, "append", append),
    ]
    for owner, name, noting in exchanged:
        setattr(owner, name, noting)


if __name__ == "__main__":
    within(Path(sys.argv[1]), *sys.argv[2:])
