"""Reference values of a tiny study's tables, so that a change of structure that changes a number is seen.

`reference.json` beside this file holds, for every table, its number of rows and each column's cells, condensed: text,
counts and booleans as a hash (decimals inside text are left out), numbers as means over ten rows, so that another
processor's rounding does not matter while a changed value does. Written by

    PYTHONPATH=src:tests python tests/study/reference.py

which is to be run only when a change is meant to change numbers, with the reason in the commit message.
"""

import hashlib
import json
import math
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from small import small_config

from caryatid.config import StudyConfig
from caryatid.report.tables import read_tables
from caryatid.study.flow import run_study
from caryatid.study.table import all_tables

FILE = Path(__file__).with_suffix(".json")
CHANGES = (
    "arms=[sft, refusal_sft, r2d2, r2d2_static]",
    "seeds=[0, 1]",
    "anchors=[0, 1]",
    "attacks.adaptive.enabled=true",
    "causal.transfer_pairs=all",
    "nulls.redraws=1",
    "geometry.profile=auto",
    "geometry.cone={enabled: true, max_dimension: 2, prompts: 4, starts: 1, steps: 2, draws: 2}",
    "geometry.attribution=true",
)
LEFT_OUT = frozenset(
    {"seconds", "sha256"}
)  # timing, and hashes of files that hold losses to their last digit
ROWS = 10  # whose mean is one reference value
RELATIVE, ABSOLUTE = 1e-3, 1e-6


def every_stage(place: Path) -> StudyConfig:
    """A study with every kind of stage: four arms, two seeds, adaptive attacks, all transfers, a null."""
    return small_config(place, *CHANGES)


def condensed(run: Path) -> dict[str, Any]:
    """What `reference.json` holds of a run's tables."""
    tables = read_tables(run)
    found = {}
    for table in all_tables():
        if table.name == "costs":  # seconds and memory of each stage
            continue
        rows = tables[table.name]
        columns = {
            column.name: (_means if column.kind is float else _digest)([row[column.name] for row in rows])
            for column in table.columns
            if column.name not in LEFT_OUT
        }
        found[table.name] = {"rows": len(rows), "columns": columns}
    return found


def _digest(cells: Sequence[Any]) -> str:
    plain = [
        re.sub(r"-?\d+\.\d+(e[+-]?\d+)?", "#", cell) if isinstance(cell, str) else cell for cell in cells
    ]
    return hashlib.sha256(json.dumps(plain).encode()).hexdigest()[:12]


def _means(cells: Sequence[float | None]) -> list[list[float]]:
    """Of every ten rows: how many have a number, the mean of these, and the mean of their sizes."""
    found = []
    for start in range(0, len(cells), ROWS):
        numbers = [cell for cell in cells[start : start + ROWS] if cell is not None and math.isfinite(cell)]
        n = len(numbers)
        sizes = math.fsum(map(abs, numbers))
        found.append([n, *(float(f"{total / max(n, 1):.6g}") for total in (math.fsum(numbers), sizes))])
    return found


def differences(found: Mapping[str, Any], reference: Mapping[str, Any]) -> Iterator[str]:
    """In words, where condensed tables are not the reference's."""
    for name in sorted({*found, *reference}):
        here, there = found.get(name, {}), reference.get(name, {})
        if here.get("rows") != there.get("rows"):
            yield f"{name}: {here.get('rows')} rows, not {there.get('rows')}"
            continue
        for column in sorted({*here["columns"], *there["columns"]}):
            cells, wanted = here["columns"].get(column), there["columns"].get(column)
            if isinstance(cells, list) and isinstance(wanted, list):
                for part, (one, other) in enumerate(zip(cells, wanted, strict=True)):
                    if one[0] != other[0] or abs(one[1] - other[1]) > RELATIVE * other[2] + ABSOLUTE:
                        yield f"{name}.{column}, rows from {part * ROWS}: {one[:2]}, not {other[:2]}"
            elif cells != wanted:
                yield f"{name}.{column}: {cells}, not {wanted}"


def main() -> None:
    """Run the study and write `reference.json`."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        found = condensed(run_study(every_stage(place), place / "run").directory)
    lines = []
    for name, table in found.items():
        columns = ",\n".join(
            f"   {json.dumps(column)}: {json.dumps(cells)}" for column, cells in table["columns"].items()
        )
        lines.append(f' {json.dumps(name)}: {{"rows": {table["rows"]}, "columns": {{\n{columns}}}}}')
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
