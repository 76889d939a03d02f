"""The same seed run twice: what lies further apart than the intervals of both runs.

A pure function of the published tables: every rate, turn and depth that is compared is counted, so that the text can
say how many of how many differ.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

from across_seeds import RATES, Pair, Seed, arrow
from caryatid.study.series import BASE
from compared_arms import Cell, cell

COMPARED: Mapping[str, Mapping[str, str]] = RATES | {
    "XSTest unsafe refused": {"suite": "xstest_unsafe", "metric": "any_refusal"},
    "StrongREJECT answered": {"suite": "strongreject", "metric": "compliance"},
    "direct harmful": {"suite": "harmbench", "metric": "harm", "attack": "direct"},
    "StrongREJECT harmful": {"suite": "strongreject", "metric": "harm"},
}


def together(runs: Sequence[Seed]) -> dict[int, Seed]:
    """The arms that were run again, by seed, as one run each; step 0 is that of the first of them."""
    found: dict[int, Seed] = {}
    for run in runs:
        if (before := found.get(run.number)) is None:
            found[run.number] = run
        else:
            tables = {
                name: [*before.tables.get(name, ()), *(row for row in rows if row.get("arm") != BASE)]
                for name, rows in run.tables.items()
            }
            found[run.number] = replace(before, tables={**before.tables, **tables})
    return found


def with_again(seeds: Sequence[Seed], runs: Sequence[Seed]) -> list[Seed]:
    """Each seed with its arms that were run again."""
    again = together(runs)
    return [replace(seed, again=again.get(seed.number)) for seed in seeds]


def apart(one: Cell, other: Cell) -> bool:
    """Whether both intervals are there and have nothing in common."""
    return one.there and other.there and (one.lo > other.hi or other.lo > one.hi)


def compared(again: Seed, before: Seed, arm: str) -> Iterator[tuple[str, Cell, Cell, str, str]]:
    """What both runs have: its name, both values, and how they are written (form, unit)."""
    steps = [step for step in again.anchors(arm) if step in before.anchors(arm)]
    for name, where in COMPARED.items():
        for step in steps:
            both = [cell(run.tables, "behaviour", arm=arm, step=step, **where) for run in (again, before)]
            yield f"{name} at {step}", *both, "share", ""
    for pair in combinations([0, *steps], 2):
        where = {"arm": arm, "of": pair[0], "to": pair[1], "site": "step 0", "quantity": "corrected_angle"}
        both = [cell(run.tables, "drift", **where) for run in (again, before)]
        yield f"the turn {arrow(pair)} at step 0's site", *both, ".1f", "°"
    for step in steps:
        both = [run.anchor(arm, step).depth for run in (again, before)]
        yield f"the carrier's depth at {step}", *both, "share", ""


def differences(again: Seed, before: Seed, arm: str = "r2d2") -> str:
    """How many of the rates, turns and depths lie apart, and which: the later run's value (the earlier one's)."""
    every = [found for found in compared(again, before, arm) if found[1].there and found[2].there]
    said = [
        f"{name} {one.text(form, unit)} ({other.text(form, unit)})"
        for name, one, other, form, unit in every
        if apart(one, other)
    ]
    return f"{len(said)} of {len(every)}: {', '.join(said)}" if said else f"none of {len(every)}"


def same_labels(one: Seed, other: Seed, arm: str) -> tuple[int, int]:
    """Of the pairs of an arm that have a verdict in both runs: how many have the same label, and how many there are."""
    labels = [(a, b) for _, a, b in _labels(one, other, arm)]
    return sum(a == b for a, b in labels), len(labels)


def other_labels(one: Seed, other: Seed, arm: str) -> str:
    """The pairs whose labels differ, with both: `0 → 500 is *undetermined* here, *drift only* there`."""
    return ", ".join(
        f"{arrow(pair)} is *{a}* here, *{b}* there" for pair, a, b in _labels(one, other, arm) if a != b
    )


def _labels(one: Seed, other: Seed, arm: str) -> Iterator[tuple[Pair, str, str]]:
    for pair in one.pairs(arm):
        a, b = one.verdict(arm, pair), other.verdict(arm, pair)
        if a and b:
            yield pair, a["label"], b["label"]
