"""What `study run` prints at its end: the verdicts, the headline numbers, and where the report is."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..report.tables import read_tables
from .runner import RunResult
from .verdict import agreement

HEADLINE = (
    ("harmbench", "direct", "compliance"),
    ("xstest_safe", "none", "any_refusal"),
    ("utility", "none", "pass"),
)


def summary_lines(result: RunResult) -> Iterator[str]:
    """A few lines for the terminal, from the run's tables."""
    tables = read_tables(result.directory)
    yield f"{'arm':<12}{'step':>5}  {'direct compliance':<22}{'XSTest-safe refusal':<22}{'utility':<22}"
    for (_seed, arm, step), cells in _trajectory(tables["behaviour"]).items():
        yield f"{arm:<12}{step:>5}  " + "".join(f"{cells.get(key, '–'):<22}" for key in HEADLINE)
    yield from verdict_lines(tables["verdict"])
    yield f"{result.executed} stages run, {result.reused} reused, {result.seconds:.0f} s"
    yield f"report: {result.report}"


def verdict_lines(verdicts: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Every label with how many seeds agree on it, and the thresholds, profile and judge behind it."""
    for row in agreement(verdicts):
        flag = (
            f" (effective rank changed: {row['expansions']} of {row['seeds']})" if row["expansions"] else ""
        )
        agree = f", {row['agree']} of {row['seeds']} seeds" if row["seeds"] > 1 else ""
        yield f"{row['arm']} {row['from']} → {row['to']}: {row['label']}{agree}{flag}"
    yield from dict.fromkeys(
        f"thresholds {row['thresholds']}, profile {row['profile']}, selector {row['selector']}, judge {row['judge']}"
        for row in verdicts
    )
    if len({row["seed"] for row in verdicts}) == 1:
        yield "one seed: about these checkpoints, not about the training regimes"


def _trajectory(rows: list[dict[str, Any]]) -> dict[tuple[int, str, int], dict[tuple[str, str, str], str]]:
    found: dict[tuple[int, str, int], dict[tuple[str, str, str], str]] = {}
    for row in rows:
        key = (row["suite"], row["attack"], row["metric"])
        if key in HEADLINE and not row.get("group"):
            cell = f"{row['value']:.2f} [{row['lo']:.2f}, {row['hi']:.2f}]"
            found.setdefault((row["seed"], row["arm"], row["step"]), {})[key] = cell
    return found
