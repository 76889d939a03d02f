"""What `study run` prints at its end: the headline numbers, the verdicts, what must be said of them, the report."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ..artifacts import RunDirectory
from ..report.tables import read_tables
from .decision import agreement
from .flow import RunResult
from .recorded import Facts

Row = Mapping[str, Any]
# Low compliance is never shown without what else lowers it: refusal of everything, and gibberish.
HEADLINE: Mapping[tuple[str, str, str], str] = {
    ("harmbench", "direct", "compliance"): "direct compliance",
    ("xstest_safe", "none", "any_refusal"): "XSTest-safe refusal",
    ("xstest_unsafe", "none", "any_refusal"): "XSTest-unsafe refusal",
    ("harmbench", "direct", "degenerate"): "degenerate",
    ("utility", "none", "pass"): "utility",
}


def summary_lines(result: RunResult) -> Iterator[str]:
    """A few lines for the terminal, from the run's tables."""
    tables = read_tables(result.directory)
    yield from trajectory_lines(tables["behaviour"])
    yield from verdict_lines(tables["verdict"])
    yield from Facts.of_run(RunDirectory(result.directory)).notes
    yield f"{result.executed} stages run, {result.reused} reused, {result.seconds:.0f} s"
    yield f"report: {result.report}"


def trajectory_lines(rows: Iterable[Row]) -> Iterator[str]:
    """One line per anchor with the headline rates and their intervals, and what they rest on."""
    rows = [row for row in rows if _key(row) in HEADLINE and not row.get("group")]
    anchors: dict[tuple[int, str, int], dict[tuple[str, str, str], str]] = {}
    for row in rows:
        anchors.setdefault((row["seed"], row["arm"], row["step"]), {})[_key(row)] = _cell(row)
    several = len({seed for seed, _, _ in anchors}) > 1
    seeds = f"{'seed':<6}" if several else ""
    yield f"{seeds}{'arm':<12}{'step':>5}  " + "".join(f"{title:<23}" for title in HEADLINE.values()).rstrip()
    for (seed, arm, step), cells in anchors.items():
        seeds = f"{seed:<6}" if several else ""
        yield f"{seeds}{arm:<12}{step:>5}  " + "".join(f"{cells.get(k, '–'):<23}" for k in HEADLINE).rstrip()
    counts = {_key(row): row["n"] for row in rows}
    named = ", ".join(f"{title} {counts[key]}" for key, title in HEADLINE.items() if key in counts)
    judges = sorted({row["judge"] for row in rows if row["judge"]})
    if named:
        yield f"n at the last anchor: {named}; 95 % Wilson intervals; judges {', '.join(judges)}"


def _key(row: Row) -> tuple[str, str, str]:
    return row["suite"], row["attack"], row["metric"]


def _cell(row: Row) -> str:
    """A rate with its interval; nothing was scored where the value is null."""
    if row["value"] is None:
        return "unscored"
    return f"{row['value']:.2f} [{row['lo']:.2f}, {row['hi']:.2f}]"


def verdict_lines(verdicts: Sequence[Row]) -> Iterator[str]:
    """Every label with how many seeds agree on it, and the thresholds, profile and judge behind it."""
    for row in agreement([{**one, "rank": one["rank_change"]} for one in verdicts]):
        flags = [f"{name} of rank" for name in ("expansion", "contraction") if row[f"{name}s"]]
        flag = f" ({', '.join(flags)})" if flags else ""
        agree = f", {row['agree']} of {row['seeds']} seeds" if row["seeds"] > 1 else ""
        yield f"{row['arm']} {row['from']} → {row['to']}: {row['label']}{agree}{flag}"
    yield from dict.fromkeys(
        f"thresholds {row['thresholds']}, profile {row['profile']}, selector {row['selector']}, judge {row['judge']}"
        for row in verdicts
    )
    if len({row["seed"] for row in verdicts}) == 1:
        yield "one seed: about these checkpoints, not about the training regimes"
