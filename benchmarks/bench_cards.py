"""One study on one card and on several: what attacks split by case, and a runner for each card, bring.

    python benchmarks/bench_cards.py --config study.yaml --folder build/cards --counts 1 2
    python benchmarks/bench_cards.py --config study.yaml --folder build/cards --counts 1 --cards 1 --parts study

Parts, each for every number of cards in COUNTS:

* `attacks`: the fixed-source cases of the configuration's first seed, `caryatid stage run … --shard I/N` on each card.
* `study`: the whole study, `caryatid study run` on each card in one run directory.

Each process sees one card (`CUDA_VISIBLE_DEVICES`); on a CPU it has one thread. `seconds`: from the first line of work
in `events.jsonl` to the last. `wall`: with starting Python and, for `study`, with tables and report. `busy`: the share
of cards × `seconds` that a study spends in stages. FOLDER gets a JSON file for each part and count; later calls with
the same folder compare with them: speedup over one card, and cases that are the same.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from caryatid.config import load_config
from caryatid.progress import NO_PROGRESS
from caryatid.study.plan import Plan
from caryatid.study.runner import opened

PARTS = ("attacks", "study")
MARKS = {
    "attacks": ("part_started", "part_done"),
    "study": ("stage_started", "stage_done"),
}


def silent(_line: str) -> None:
    """Says nothing."""


def processes(commands: Sequence[Sequence[str]], cards: Sequence[int], log: Path) -> float:
    """Seconds until all of several `caryatid` commands have ended, each on a card of its own.

    Raises:
        SystemExit: one failed; its output is in `log`.
    """
    started, running = time.monotonic(), []
    for command, card in zip(commands, cards, strict=True):
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": str(card)}
        if not torch.cuda.is_available():
            environment["OMP_NUM_THREADS"] = "1"
        with log.open("ab") as stream:
            running.append(
                subprocess.Popen(
                    [sys.executable, "-m", "caryatid", *command],
                    env=environment,
                    stdout=stream,
                    stderr=stream,
                )
            )
    if max([process.wait() for process in running]):
        raise SystemExit(f"a process failed; see {log}")
    return time.monotonic() - started


def begun(config: Path, out: Path) -> Plan:
    """A run directory with nothing done yet, and its plan."""
    shutil.rmtree(out, ignore_errors=True)
    with opened(load_config(file=config), out, NO_PROGRESS, silent) as session:
        return session.plan


def spent(out: Path, kinds: tuple[str, str]) -> tuple[float, float]:
    """Seconds from the first start to the last end in the run's events, and seconds of all that ended."""
    rows = [json.loads(line) for line in (out / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    times = [(row, datetime.fromisoformat(row["time"])) for row in rows if row["event"] in kinds]
    ends = [(row, at) for row, at in times if row["event"] == kinds[1]]
    whole = (max(at for _, at in ends) - min(at for _, at in times)).total_seconds()
    return whole, sum(float(row.get("seconds", 0.0)) for row, _ in ends)


def attacks(config: Path, out: Path, cards: Sequence[int]) -> dict[str, Any]:
    """The cases of the first seed, a part on each card."""
    plan, seed = begun(config, out), load_config(file=config).seeds[0]
    name = f"cases/seed{seed}"
    before = [need.id for need in plan[name].needs]
    log = out.with_suffix(".log")
    if before:
        processes([["stage", "run", str(out), *before]], cards[:1], log)
    commands = [
        ["stage", "run", str(out), name, "--shard", f"{n}/{len(cards)}"] for n in range(1, len(cards) + 1)
    ]
    wall = processes(commands, cards, log)
    seconds, _ = spent(out, MARKS["attacks"])
    processes([["stage", "run", str(out), name]], cards[:1], log)
    (found,) = out.glob("stages/cases/*/cases.json")
    cases = json.loads(found.read_text(encoding="utf-8"))
    return {"wall": wall, "seconds": seconds, "cases": cases}


def study(config: Path, out: Path, cards: Sequence[int]) -> dict[str, Any]:
    """The whole study, a runner on each card."""
    shutil.rmtree(out, ignore_errors=True)
    command = ["study", "run", "--config", str(config), "--out", str(out)]
    wall = processes([command] * len(cards), cards, out.with_suffix(".log"))
    seconds, work = spent(out, MARKS["study"])
    return {"wall": wall, "seconds": seconds, "busy": work / seconds / len(cards)}


def texts(found: dict[str, Any]) -> list[str]:
    """The attacked prompts as sent, in order."""
    rows = found["cases"]["cases"] if isinstance(found["cases"], dict) else found["cases"]
    return [json.dumps(row, sort_keys=True) for row in rows]


def compared(part: str, one: dict[str, Any], many: dict[str, Any], count: int) -> dict[str, Any]:
    """Several cards beside one."""
    row: dict[str, Any] = {
        "part": part,
        "cards": count,
        "speedup": round(one["seconds"] / many["seconds"], 3),
        "speedup_wall": round(one["wall"] / many["wall"], 3),
    }
    if part == "attacks":
        same = [a == b for a, b in zip(texts(one), texts(many), strict=True)]
        row |= {"cases": len(same), "equal": sum(same)}
    return row


def main() -> None:
    """Measure what was asked for, then compare all that the folder holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--config", type=Path, required=True, help="a study's configuration")
    parser.add_argument("--folder", type=Path, required=True, help="for run directories and results")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2], help="numbers of cards")
    parser.add_argument("--cards", type=int, nargs="+", help="which cards; default: from 0 on")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for part in args.parts:
        for count in args.counts:
            cards = (args.cards or list(range(count)))[:count]
            if len(cards) < count:
                parser.error(f"{count} cards asked for, --cards names {len(cards)}")
            measure = {"attacks": attacks, "study": study}[part]
            found = measure(args.config, args.folder / f"{part}-{count}", cards)
            found["device"] = (
                torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
            )
            (args.folder / f"{part}-{count}.json").write_text(json.dumps(found), encoding="utf-8")
            print(part, count, {k: v for k, v in found.items() if k != "cases"}, flush=True)
    rows = []
    for part in PARTS:
        kept = {
            int(path.stem.rpartition("-")[2]): json.loads(path.read_text(encoding="utf-8"))
            for path in args.folder.glob(f"{part}-*.json")
        }
        rows += [compared(part, kept[1], kept[n], n) for n in sorted(kept) if n > 1 and 1 in kept]
    (args.folder / "compared.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
