"""Simulate the verdict on planted pairs of known truth and write the table that docs/verdict.md shows.

    PYTHONPATH=src:tests python benchmarks/simulate_verdict.py [--draws 300] [--out benchmarks/results/verdict.md]

One core, about 25 minutes at 300 draws a cell.
"""

import argparse
import time
from pathlib import Path

from study.simulation import BASES, LEVELS, Cell, Simulation, cells, powered, right_labels

SHORT = {
    "relocation": "rel",
    "replacement in place": "rep",
    "re-siting": "res",
    "drift only": "dri",
    "no change": "non",
}
COLUMNS = (*SHORT, "undetermined")


def row(cell: Cell) -> str:
    values = [f"{getattr(cell.truth, name):g}" for name in LEVELS]
    shares = [f"{cell.labels.get(label, 0) / cell.draws:.2f}".replace("0.00", "·") for label in COLUMNS]
    right = "/".join(SHORT[label] for label in SHORT if label in right_labels(cell.truth)) or "und"
    marks = ("**fails**" if cell.failed else "") + (
        " low power" if powered(cell.truth) and cell.right < 0.8 * cell.draws else ""
    )
    flags = [
        f"{cell.flags.get(flag, 0) / cell.draws:.2f}".replace("0.00", "·")
        for flag in ("expansion", "contraction")
    ]
    return (
        "| "
        + " | ".join([*values, right, *shares, f"{cell.wrong / cell.draws:.3f}", *flags, marks.strip()])
        + " |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/verdict.md"))
    options = parser.parse_args()
    started, simulation, lines = time.time(), Simulation(options.draws), []
    everything: list[Cell] = []
    header = [
        *LEVELS,
        "right",
        *(SHORT.get(label, "und") for label in COLUMNS),
        "wrong",
        "expansion",
        "contraction",
        "",
    ]
    for name, base in BASES.items():
        found = [simulation.run(cell) for cell in cells(base)]
        everything += found
        lines += [f"### Around “{name}”", "", "| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
        lines += [*map(row, found), ""]
        print(f"{name}: {len(found)} cells, {time.time() - started:.0f} s", flush=True)
    asked = [cell for cell in everything if powered(cell.truth)]
    wrong, flags = (
        [getattr(cell, name) / cell.draws for cell in everything] for name in ("wrong", "wrong_flags")
    )
    summary = (
        f"{len(everything)} cells of {options.draws} draws: {sum(wrong) / len(wrong):.2%} wrong labels, worst cell "
        f"{max(wrong):.1%}, {sum(cell.failed for cell in everything)} cells fail; {sum(flags) / len(flags):.2%} wrong "
        f"rank flags, worst cell {max(flags):.1%}; least power in the {len(asked)} cells where it is asked for "
        f"{min(cell.right / cell.draws for cell in asked):.2f}."
    )
    options.out.write_text("\n".join([summary, "", *lines]), encoding="utf-8")
    print(summary)


if __name__ == "__main__":
    main()
