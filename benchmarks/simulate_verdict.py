"""Simulate the verdict on planted pairs of known truth and write the table that docs/verdict.md speaks of.

    PYTHONPATH=src:tests python benchmarks/simulate_verdict.py [--draws 300] [--keep FOLDER] [--out FILE]

Draws are made in blocks of 50 with a seed of their own; each finished block is kept in FOLDER and not made again, so
that a run can be stopped and continued, and the table is written anew after every block. One core; a block takes some
six minutes.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from caryatid.study.nulls import Planted
from study.simulation import BASES, LEVELS, Cell, Simulation, cells, powered, right_labels

BLOCK = 50
SHORT = {
    "relocation": "rel",
    "replacement in place": "rep",
    "re-siting": "res",
    "drift only": "dri",
    "no change": "non",
}
COLUMNS = (*SHORT, "undetermined")


def block(number: int, keep: Path) -> dict[str, list[Cell]]:
    """Every cell around every base, drawn `BLOCK` times; read from `keep` where it was made before."""
    path = keep / f"block-{number:02d}.json"
    if not path.exists():
        simulation = Simulation(BLOCK, seed=number)
        made = {name: [asdict(simulation.run(cell)) for cell in cells(base)] for name, base in BASES.items()}
        path.write_text(json.dumps(made), encoding="utf-8")
    stored = json.loads(path.read_text(encoding="utf-8"))
    return {
        name: [Cell(**{**row, "truth": Planted(**row["truth"])}) for row in rows]
        for name, rows in stored.items()
    }


def outcome(cell: Cell) -> list[str]:
    """What is right, the share of each label, of wrong ones, and of each flag."""
    right = "/".join(SHORT[label] for label in SHORT if label in right_labels(cell.truth)) or "und"
    counts = [*(cell.labels.get(label, 0) for label in COLUMNS), cell.wrong]
    counts += [cell.flags.get(flag, 0) for flag in ("expansion", "contraction")]
    return [right, *(f"{count / cell.draws:.2f}" if count else "·" for count in counts)]


def row(cell: Cell) -> str:
    values = [f"{getattr(cell.truth, name):g}" for name in LEVELS]
    marks = "**fails**" if cell.failed else "low power" if weak(cell) else ""
    return line([*values, *outcome(cell), marks])


def line(values: Sequence[str]) -> str:
    return f"| {' | '.join(values)} |"


def weak(cell: Cell) -> bool:
    """Power is asked for, and not there."""
    return powered(cell.truth) and cell.right < 0.8 * cell.draws


def summary(everything: Sequence[Cell]) -> str:
    wrong, flags = (
        [getattr(cell, name) / cell.draws for cell in everything] for name in ("wrong", "wrong_flags")
    )
    asked = [cell for cell in everything if powered(cell.truth)]
    power = min(cell.right / cell.draws for cell in asked)
    sure = sum(cell.wrong_flags_fail for cell in everything)
    return (
        f"{len(everything)} cells of {everything[0].draws} draws: {sum(wrong) / len(wrong):.2%} wrong labels, worst "
        f"cell {max(wrong):.1%}, {sum(cell.failed for cell in everything)} cells fail; {sum(flags) / len(flags):.2%} "
        f"wrong rank flags, worst cell {max(flags):.1%}, in {sure} cells above 5 % beyond doubt. Power is asked for in "
        f"{len(asked)} cells; {sum(map(weak, asked))} have less than 80 %, least {power:.2f}."
    )


OUTCOME = ("right", *(SHORT.get(label, "und") for label in COLUMNS), "wrong", "expansion", "contraction")


def main_effects(found: dict[str, list[Cell]]) -> list[str]:
    """The rows that docs/verdict.md shows: one factor away from a base point."""
    lines = [line(["around", "changed", *OUTCOME]), "|---" * (len(OUTCOME) + 2) + "|"]
    for name, rows in found.items():
        near = [(changes(cell, name), cell) for cell in rows]
        factors = list(LEVELS)
        near = [(changed, cell) for changed, cell in near if len(changed) < 2]
        near.sort(key=lambda each: [(factors.index(factor), value) for factor, value in each[0]])
        for changed, cell in near:
            said = " ".join(f"{factor} {value:g}" for factor, value in changed) or "nothing"
            lines.append(line([name, said, *outcome(cell)]))
    return lines


def changes(cell: Cell, name: str) -> list[tuple[str, float]]:
    """The factors in which a cell differs from a base point, and their values."""
    values = [(factor, getattr(cell.truth, factor)) for factor in LEVELS]
    return [(factor, value) for factor, value in values if value != getattr(BASES[name], factor)]


def table(found: dict[str, list[Cell]]) -> str:
    lines = [summary([cell for rows in found.values() for cell in rows]), "", "## One factor changed", ""]
    lines += [*main_effects(found), "", "## All cells", ""]
    for name, rows in found.items():
        lines += [
            f"### Around “{name}”",
            "",
            line([*LEVELS, *OUTCOME, ""]),
            "|---" * (len(LEVELS) + len(OUTCOME) + 1) + "|",
        ]
        lines += [*map(row, rows), ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=300, help="a cell; rounded up to blocks of 50")
    parser.add_argument("--keep", type=Path, default=Path("runs/verdict-simulation"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/verdict.md"))
    options = parser.parse_args()
    for folder in (options.keep, options.out.parent):
        folder.mkdir(parents=True, exist_ok=True)
    total: dict[str, list[Cell]] = {}
    for number in range(-(-options.draws // BLOCK)):
        started = time.monotonic()
        more = block(number, options.keep)
        total = {
            name: [one + other for one, other in zip(total[name], rows, strict=True)] if total else rows
            for name, rows in more.items()
        }
        options.out.write_text(table(total), encoding="utf-8")
        print(f"block {number + 1}, {time.monotonic() - started:.0f} s", flush=True)
    print(summary([cell for rows in total.values() for cell in rows]))


if __name__ == "__main__":
    main()
