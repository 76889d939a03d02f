"""Tables of two runs, column by column: which are equal, and by how much numbers differ.

    python benchmarks/compare_tables.py runs/before runs/after --rename verdict.expansion=rank_change

Rows are matched by the columns that say what they are about (seed, arm, quantity, …), those that agree in all of
them in their order. A column that one run has and leaves empty is like none. Exits with 1 where anything differs.
Seconds, and hashes of files that hold timings, are left out.
"""

import argparse
import math
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from caryatid.report.tables import read_tables

ABOUT = (
    *("seed", "arm", "step", "from_arm", "from", "to", "arm_a", "step_a", "arm_b", "step_b", "matched"),
    *("suite", "prompt_set", "attack", "group", "metric", "quantity", "profile", "selector", "noise", "axis"),
    *("place", "intervention", "alpha", "control", "read_out", "draw", "kind", "setting", "choice"),
    *("threshold", "kl_max", "prompt_id", "direction"),
)
ABOUT_TOO = {"causal": ("rank",), "controls": ("rank",), "transfer": ("rank",), "sensitivity": ()}
LEFT_OUT = ("seconds", "sha256")

Row = Mapping[str, Any]


@dataclass
class Difference:
    """Cells of one column that differ: how many, the largest difference of two numbers, and the first pair."""

    cells: int
    largest: float
    first: tuple[Any, Any]


@dataclass
class Compared:
    """One table of two runs.

    Attributes:
        rows: in each run. matched: rows found in both. only: filled columns of one run alone, where both have rows.
        columns: what differs in matched rows, by column (its name in the second run).
    """

    rows: tuple[int, int]
    matched: int
    only: tuple[list[str], list[str]]
    columns: dict[str, Difference] = field(default_factory=dict)

    @property
    def equal(self) -> bool:
        """Nothing differs."""
        return not (self.columns or any(self.only)) and self.rows == (self.matched, self.matched)

    def lines(self, name: str) -> list[str]:
        """What to print of it."""
        if self.equal:
            return [f"{name}: equal ({self.matched} rows)"]
        found = [f"{name}: {self.rows[0]} and {self.rows[1]} rows, {self.matched} in both"]
        for side, names in zip(("first", "second"), self.only, strict=True):
            found += [f"  only in the {side}: {', '.join(names)}"] if names else []
        for column, one in self.columns.items():
            largest = "" if math.isnan(one.largest) else f", by {one.largest:.3g} at most"
            found.append(f"  {column}: {one.cells} cells{largest}; {one.first[0]!r} → {one.first[1]!r}")
        return found


def compare_tables(
    name: str, before: Sequence[Row], after: Sequence[Row], tolerance: float = 0.0
) -> Compared:
    """Compare the rows of one table; `tolerance` is relative to the larger of two numbers."""
    sides = [{column for row in rows for column in row} - {*LEFT_OUT} for rows in (before, after)]
    filled = [
        {column for row in rows for column, cell in row.items() if cell not in (None, "")} & side
        for rows, side in zip((before, after), sides, strict=True)
    ]
    both = sides[0] & sides[1] if before and after else sides[0] | sides[1]
    only = (sorted(filled[0] - both), sorted(filled[1] - both))
    about = [column for column in (*ABOUT, *ABOUT_TOO.get(name, ())) if column in both]
    waiting: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in after:
        waiting[tuple(row[column] for column in about)].append(row)
    pairs = []
    for row in before:
        same = waiting[tuple(row[column] for column in about)]
        if same:
            pairs.append((row, same.pop(0)))
    found = Compared((len(before), len(after)), len(pairs), only)
    for column in sorted(both):
        cells = [(one[column], other[column]) for one, other in pairs]
        differing = [pair for pair in cells if not _same(*pair, tolerance)]
        if differing:
            sizes = [abs(one - other) for one, other in differing if _numbers(one, other)]
            found.columns[column] = Difference(len(differing), max(sizes, default=math.nan), differing[0])
    return found


def compare_runs(
    before: Path, after: Path, renames: Mapping[tuple[str, str], str], tolerance: float = 0.0
) -> dict[str, Compared]:
    """Every table that a run has.

    Args:
        renames: what a column of the first run, as (table, column), is called in the second.
    """
    first, second = read_tables(before), read_tables(after)
    found = {}
    for name in sorted({*first, *second}):
        rows = [
            {renames.get((name, column), column): cell for column, cell in row.items()}
            for row in first.get(name, [])
        ]
        found[name] = compare_tables(name, rows, second.get(name, []), tolerance)
    return found


def _numbers(*cells: Any) -> bool:
    return all(isinstance(cell, int | float) and not isinstance(cell, bool) for cell in cells)


def _same(one: Any, other: Any, tolerance: float) -> bool:
    if _numbers(one, other):
        return math.isclose(one, other, rel_tol=tolerance) or one == other
    return type(one) is type(other) and bool(one == other)


def main() -> None:
    """Print what differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("before", type=Path, help="a run directory")
    parser.add_argument("after", type=Path, help="another one")
    parser.add_argument("--rename", action="append", default=[], metavar="TABLE.OLD=NEW")
    parser.add_argument("--tolerance", type=float, default=0.0, help="relative, of numbers")
    options = parser.parse_args()
    renames = {}
    for text in options.rename:
        old, new = text.split("=")
        table, column = old.split(".")
        renames[table, column] = new
    found = compare_runs(options.before, options.after, renames, options.tolerance)
    for name, compared in found.items():
        print("\n".join(compared.lines(name)))
    sys.exit(not all(one.equal for one in found.values()))


if __name__ == "__main__":
    main()
