"""Runs that differ in their seed alone, side by side: what the tables of the results' section on seeds show.

Pure functions of the published tables. Seeds are never pooled; anchors, pairs and arms are those that the tables have,
and what one run lacks is a dash there.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from caryatid.report.reasons import in_plain_words
from caryatid.report.story import sentences
from caryatid.study.series import BASE
from compared_arms import LIMITS, Cell, Matched, Row, Tables, cell, markdown_table, rows_of
from shares import share

Pair = tuple[int, int]
# What a column of behaviour is: suite, metric and attack of the table `behaviour`.
RATES: Mapping[str, Mapping[str, str]] = {
    "direct answered": {"suite": "harmbench", "metric": "compliance", "attack": "direct"},
    "fixed-source answered": {"suite": "harmbench", "metric": "compliance", "attack": "fixed_source"},
    "adaptive answered": {"suite": "harmbench", "metric": "compliance", "attack": "adaptive"},
    "adaptive − direct, paired": {
        "suite": "harmbench",
        "metric": "compliance_minus_direct",
        "attack": "adaptive",
    },
    "XSTest safe refused": {"suite": "xstest_safe", "metric": "any_refusal"},
    "utility passed": {"suite": "utility", "metric": "pass"},
}
NUMBERS = ("no", "one", "two", "three", "four", "five")
FALSE = ("relocation", "replacement in place", "re-siting", "drift only")  # labels that a null must not get


@dataclass(frozen=True)
class Seed:
    """One published run.

    Attributes:
        name: its folder. number: its seed. again: its arms that were run again, as one run.
    """

    name: str
    number: int
    tables: Tables
    provenance: Mapping[str, Any]
    again: "Seed | None" = None

    @cached_property
    def arms(self) -> list[str]:
        """Arms in their order, without step 0."""
        return [
            arm
            for arm in dict.fromkeys(row["arm"] for row in self.tables.get("behaviour", ()))
            if arm != BASE
        ]

    def anchors(self, arm: str) -> list[int]:
        """Steps at which an arm was asked anything, without step 0."""
        return sorted({row["step"] for row in self.tables.get("behaviour", ()) if row["arm"] == arm})

    def rate(self, arm: str, step: int, name: str) -> Cell:
        """A rate of `RATES` at an anchor; step 0 is shared."""
        return cell(self.tables, "behaviour", arm=arm if step else BASE, step=step, **RATES[name])

    def size(self, name: str) -> set[int]:
        """How many prompts a rate of `RATES` rests on."""
        return {row["n"] for row in rows_of(self.tables, "behaviour", **RATES[name])}

    def anchor(self, arm: str, step: int) -> Matched:
        """Where an anchor carries refusal."""
        return Matched(self.tables, arm if step else BASE, step)

    def pairs(self, arm: str) -> list[Pair]:
        """Pairs of anchors between which the turn was measured, or a verdict reached."""
        turns = rows_of(self.tables, "drift", arm=arm, quantity="corrected_angle", site="first anchor")
        decided = rows_of(self.tables, "verdict", arm=arm)
        return sorted({(row["from"], row["to"]) for row in (*turns, *decided)})

    def verdict(self, arm: str, pair: Pair) -> Row | None:
        """The row of `verdict`; None: none was asked for, or it waits for unfinished stages."""
        found = rows_of(self.tables, "verdict", arm=arm, of=pair[0], to=pair[1])
        return found[0] if found else None

    def angle(self, arm: str, pair: Pair) -> Cell:
        """The corrected angle, at the site of the pair's first anchor."""
        where = {"arm": arm, "of": pair[0], "to": pair[1], "site": "first anchor"}
        return cell(self.tables, "drift", quantity="corrected_angle", **where)

    def moved(self, arm: str, pair: Pair) -> bool | None:
        """Whether the carrier's place changed, by the verdict's thresholds; None: neither is shown."""
        for state, answer in (("moved", True), ("stayed", False)):
            bounds = [
                row["lo"]
                for quantity in (f"p_depth_{state}", f"p_centre_{state}")
                for row in rows_of(self.tables, "drift", arm=arm, of=pair[0], to=pair[1], quantity=quantity)
            ]
            if len(bounds) == 2 and all(low is not None and low >= LIMITS.probability for low in bounds):
                return answer
        return None

    def placed(self, arm: str, pair: Pair) -> bool:
        """Whether it was measured if the place changed between two anchors: it is for pairs with a verdict alone."""
        rows = rows_of(self.tables, "drift", arm=arm, of=pair[0], to=pair[1])
        return any(row["quantity"].startswith("p_depth_") for row in rows)

    def removal(self, arm: str, pair: Pair, quantity: str = "transfer") -> Cell:
        """What ablating a's carrier takes from b's refusals, rank 1; (b, b): b's own carrier."""
        source = arm if pair[0] else BASE
        where = {"arm": arm if pair[1] else BASE, "of": pair[0], "to": pair[1], "from_arm": source}
        return cell(self.tables, "transfer", quantity=quantity, rank=1, **where)

    @property
    def unfinished(self) -> Sequence[str]:
        """Stages that are not done."""
        return self.provenance.get("unfinished", ())


def numbered(count: int) -> str:
    """A small number as a word."""
    return NUMBERS[count] if count < len(NUMBERS) else str(count)


def ordered(lists: Iterable[Iterable[str]]) -> list[str]:
    """All names of some lists, in the order in which they are first met."""
    return list(dict.fromkeys(name for one in lists for name in one))


def arms_of(seeds: Sequence[Seed]) -> list[str]:
    """Arms of all seeds."""
    return ordered(seed.arms for seed in seeds)


def anchors_of(seeds: Sequence[Seed], arm: str) -> list[int]:
    """Anchors of an arm in any seed, without step 0."""
    return sorted({step for seed in seeds for step in seed.anchors(arm)})


def pairs_of(seeds: Sequence[Seed], arm: str) -> list[Pair]:
    """Pairs of an arm in any seed."""
    return sorted({pair for seed in seeds for pair in seed.pairs(arm)})


def anchors_text(seeds: Sequence[Seed]) -> str:
    """`0, 50, 100`, or by arm where arms have others."""
    own = {arm: ", ".join(map(str, (0, *anchors_of(seeds, arm)))) for arm in arms_of(seeds)}
    if len(set(own.values())) == 1:
        return next(iter(own.values()))
    return "; ".join(f"{steps} of `{arm}`" for arm, steps in own.items())


def last_of(seeds: Sequence[Seed]) -> int:
    """The last anchor of any arm."""
    return max((step for arm in arms_of(seeds) for step in anchors_of(seeds, arm)), default=0)


def shown(value: Cell, form: str = "share", unit: str = "") -> str:
    """A cell of a wide table: a dash where nothing is known, of which the reason stands elsewhere."""
    return value.text(form, unit) if value.there else "–"


def arrow(pair: Pair) -> str:
    """`0 → 50`."""
    return f"{pair[0]} → {pair[1]}"


def counted(labels: Iterable[str]) -> str:
    """How many seeds give each label: `2 of 3 drift only, 1 of 3 undetermined`."""
    counts = Counter(labels)
    return ", ".join(f"{count} of {counts.total()} {label}" for label, count in counts.most_common()) or "–"


def _anchors(seeds: Sequence[Seed]) -> list[tuple[str, int]]:
    return [(BASE, 0), *((arm, step) for arm in arms_of(seeds) for step in anchors_of(seeds, arm))]


def behaviour_table(seeds: Sequence[Seed]) -> str:
    """Behaviour by arm and anchor, the seeds one under another; what is attacked on step 0 is step 0's own attack."""
    rows = []
    for arm, step in _anchors(seeds):
        for seed in seeds:
            values = {name: shown(seed.rate(arm, step, name)) for name in RATES}
            if step == 0:
                same = {**RATES["adaptive − direct, paired"], "attack": "fixed_source"}
                values["adaptive answered"] = "(fixed-source)"
                values["adaptive − direct, paired"] = shown(
                    cell(seed.tables, "behaviour", arm=BASE, step=0, **same)
                )
            rows.append([f"{arm} {step}", str(seed.number), *values.values()])
    return markdown_table(["anchor", "seed", *RATES], rows)


def sizes(seeds: Sequence[Seed]) -> str:
    """Prompts behind each rate: `direct answered 240, …`; several numbers where anchors or seeds differ."""
    said = []
    for name in RATES:
        numbers = sorted({n for seed in seeds for n in seed.size(name)})
        if numbers and name != "adaptive − direct, paired":
            said.append(f"{name} {' or '.join(map(str, numbers))}")
    return ", ".join(said) or "not measured"


def verdict_table(seeds: Sequence[Seed]) -> str:
    """Label, rank flag and corrected angle of every pair, a column a seed, and how many seeds give each label.

    What a seed's run lacks is taken from its arms that were run again, with a dagger.
    """
    rows = []
    for arm in arms_of(seeds):
        for pair in pairs_of(seeds, arm):
            runs = [decided_in(seed, arm, pair) for seed in seeds]
            found = [run.verdict(arm, pair) for run in runs]
            cells = []
            for seed, run, row in zip(seeds, runs, found, strict=True):
                flag = f" ({row['rank_change']})" if row and row["rank_change"] != "none" else ""
                label = f"*{row['label']}*{flag}" if row else "–"
                turn, mark = run.angle(arm, pair), "" if run is seed else " †"
                cells.append(f"{label}, {shown(turn, '.1f', '°')}{mark}" if row or turn.there else "–")
            rows.append([f"{arm} {arrow(pair)}", *cells, counted(row["label"] for row in found if row)])
    return markdown_table(["pair", *(f"seed {seed.number}" for seed in seeds), "agreement"], rows)


def decided_in(seed: Seed, arm: str, pair: Pair) -> Seed:
    """The run of a seed that has a verdict on a pair: its own, or where that has none its arms that were run again."""
    again = seed.again
    return again if again and not seed.verdict(arm, pair) and again.verdict(arm, pair) else seed


def decided(seed: Seed) -> list[Row]:
    """The verdicts that a seed's column shows: its own, and those of arms run again where it has none."""
    own = rows_of(seed.tables, "verdict")
    there = {(row["arm"], row["from"], row["to"]) for row in own}
    again = rows_of(seed.again.tables, "verdict") if seed.again else []
    return own + [row for row in again if (row["arm"], row["from"], row["to"]) not in there]


def undecided(seeds: Sequence[Seed]) -> list[str]:
    """Pairs that another seed has a verdict on and this one has not: `refusal_sft 0 → 500, seed 2`."""
    found = {(row["arm"], (row["from"], row["to"])) for seed in seeds for row in decided(seed)}
    return [
        f"{arm} {arrow(pair)}, seed {seed.number}"
        for seed in seeds
        for arm in seed.arms
        for pair in pairs_of(seeds, arm)
        if (arm, pair) in found and not decided_in(seed, arm, pair).verdict(arm, pair)
    ]


def undetermined(seeds: Sequence[Seed]) -> list[str]:
    """Of each *undetermined* what is missing, and what its numbers of prompts and refusals could have shown."""
    said = []
    for seed in seeds:
        for row in (one for one in decided(seed) if one["label"] == "undetermined"):
            a, b = row["from"], row["to"]
            plain = (in_plain_words(one, a, b) for one in sentences(row["reasons"]))
            why = "; ".join(filter(None, plain)) or row["reasons"]
            said.append(
                f"{row['arm']} {a} → {b}, seed {seed.number}: {why}. {row['reachable'] or ''}".strip()
            )
    return said


def removal_table(seeds: Sequence[Seed]) -> str:
    """What a's carrier, b's own and random subspaces remove of b's refusals, of every pair, a column a seed; of the
    same runs as the verdicts."""
    rows = []
    for arm in arms_of(seeds):
        for pair in pairs_of(seeds, arm):
            own = pair[1], pair[1]
            cells = []
            for seed in seeds:
                run = decided_in(seed, arm, pair)
                old = run.removal(arm, pair)
                values = [old, run.removal(arm, own), run.removal(arm, own, "transfer_random")]
                of, mark = refusals(run, arm, pair[1]), "" if run is seed else " †"
                cells.append(f"{' / '.join(map(shown, values))} of {of}{mark}" if of else "–")
            rows.append([f"{arm} {arrow(pair)}", *cells])
    return markdown_table(["pair", *(f"seed {seed.number}" for seed in seeds)], rows)


def refusals(seed: Seed, arm: str, step: int) -> int:
    """How many refusals an anchor's transfer rests on; 0: not measured."""
    wanted = {"arm": arm if step else BASE, "to": step, "quantity": "transfer", "rank": 1}
    return max((row["n"] for row in rows_of(seed.tables, "transfer", **wanted)), default=0)


def carrier_table(seeds: Sequence[Seed]) -> str:
    """Where each anchor carries refusal, the seeds one under another."""
    rows = []
    for arm, step in _anchors(seeds):
        for seed in seeds:
            one = seed.anchor(arm, step)
            place = one.place
            spread = cell(seed.tables, "rank", arm=one.arm, step=step, quantity="participation_ratio")
            known = place is not None and place["p_none"] is not None
            gap = "–" if place is None or place["gap"] is None else f"{place['gap']:.1f}"
            rows.append(
                [
                    f"{arm} {step}", str(seed.number), one.carrier, shown(one.depth),
                    share(place["p_none"], 3) if place and known else "–", gap, shown(spread, ".2f"),
                ]
            )  # fmt: skip
    headings = (
        "anchor", "seed", "carrier: layer, position", "depth", "P(no carrier)", "gap, nats", "participation ratio",
    )  # fmt: skip
    return markdown_table(headings, rows)


def profiles(seeds: Sequence[Seed]) -> str:
    """Admissibility profiles in use."""
    return ", ".join(sorted({seed.anchor(BASE, 0).profile for seed in seeds}))


@dataclass(frozen=True)
class Nulls:
    """Labels of step 0, or of other anchors, against themselves with all prompts drawn anew."""

    labels: Counter[str]

    @property
    def false(self) -> int:
        """How many got a label that says that something changed."""
        return sum(self.labels[label] for label in FALSE)

    @property
    def text(self) -> str:
        """`0 false labels of 3 redraws (3 undetermined)`."""
        found = self.labels.total()
        if not found:
            return "not redrawn"
        said = ", ".join(f"{count} *{label}*" for label, count in self.labels.most_common() if count)
        return f"{self.false} false labels of {found} redraws ({said})"


def nulls(seed: Seed) -> Nulls:
    """Redraws of a seed's anchors against themselves."""
    labels: Counter[str] = Counter()
    for row in rows_of(seed.tables, "nulls", kind="same_checkpoint"):
        labels[row["label"]] += row["count"]
    return Nulls(labels)


def nulls_text(seeds: Sequence[Seed]) -> str:
    """False labels by seed."""
    return "; ".join(f"seed {seed.number}: {nulls(seed).text}" for seed in seeds)


def what_ran(seeds: Sequence[Seed]) -> list[str]:
    """Device, number format, unfinished stages and files of every seed."""
    said = []
    for seed in seeds:
        had = seed.provenance
        done = sum(one["stages"] for one in had["seconds"].values())
        note = f", {had['note'].rstrip('.')}" if had["note"] else ""
        left = (
            f"; {len(seed.unfinished)} of {done + len(seed.unfinished)} stages were not run"
            if seed.unfinished
            else ""
        )
        files = ", ".join(
            f"[{name}]({seed.name}/{file})"
            for name, file in (
                ("configuration", "config.yaml"),
                ("provenance", "provenance.json"),
                ("tables", "tables"),
            )
        )
        said.append(f"Seed {seed.number}: {had['device']}, {had['dtype']}{note}{left} ({files}).")
    return said


def attacks(seeds: Sequence[Seed], kind: str) -> str:
    """Budget of an attack: `48 cases × 100 steps at 500`; where it differs, each; step 0 is not named."""
    found = dict.fromkeys(
        (row["cases"], row["steps"], row["step"])
        for seed in seeds
        for row in rows_of(seed.tables, "attacks", attack=kind)
    )
    budgets = {budget[:2]: sorted({one[2] for one in found if one[:2] == budget[:2]}) for budget in found}
    return (
        ", ".join(
            f"{cases} cases × {steps} steps{' at ' if any(at) else ''}{', '.join(str(one) for one in at if one)}"
            for (cases, steps), at in budgets.items()
        )
        or "none"
    )
