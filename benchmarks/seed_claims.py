"""What runs that differ in their seed show: sentences whose wording follows from intervals, and from how many seeds.

Something *holds* in a seed where intervals say so, does not where they do not, and is unknown where it was not
measured. Two rates differ where their intervals do not overlap, which is stricter than a test of the difference.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from across_seeds import (
    Pair,
    Seed,
    anchors_of,
    arms_of,
    arrow,
    counted,
    decided,
    decided_in,
    pairs_of,
    refusals,
    shown,
)
from caryatid.study.series import BASE
from compared_arms import LIMITS, Cell, rows_of

ROBUST, PLAIN = "r2d2", "sft"
NAMES = {ROBUST: "R2D2", PLAIN: "SFT", BASE: "step 0"}
DIRECT, FIXED, ADAPTIVE = "direct answered", "fixed-source answered", "adaptive answered"
GAIN, SAFE, USEFUL = "adaptive − direct, paired", "XSTest safe refused", "utility passed"
CHANGES = ("relocation", "replacement in place", "re-siting")
State = bool | None


def below(low: Cell, high: Cell) -> State:
    """Whether one interval lies below another; None: one of them is not measured."""
    return low.hi < high.lo if low.there and high.there else None


def positive(value: Cell) -> State:
    """Whether an interval lies above 0."""
    return value.lo > 0 if value.there else None


def every(found: Iterable[State]) -> State:
    """False if one is, else None if one is unknown, or there is none."""
    states = list(found)
    if False in states:
        return False
    return None if None in states or not states else True


def some(found: Iterable[State]) -> State:
    """True if one is, else None if one is unknown, or there is none."""
    states = list(found)
    if True in states:
        return True
    return None if None in states or not states else False


def all_of(count: int) -> str:
    """`in all 3 seeds`, `in both seeds`."""
    return "in both seeds" if count == 2 else f"in all {count} seeds"


def held(states: Mapping[int, State]) -> str:
    """In which seeds something holds: `in all 3 seeds`, `in 2 of 3 seeds (0, 2)`, `in none of 2 seeds (unknown: 1)`."""
    known = {number: state for number, state in states.items() if state is not None}
    yes = [str(number) for number, state in known.items() if state]
    unknown = ", ".join(str(number) for number in states if number not in known)
    if not known:
        return "in no seed (not measured)"
    if len(known) == 1:
        said = "in the one seed measured" if yes else "not in the one seed measured"
    elif len(yes) == len(known):
        said = all_of(len(known))
    else:
        said = f"in {len(yes) or 'none'} of {len(known)} seeds" + (f" ({', '.join(yes)})" if yes else "")
    return f"{said} (unknown: {unknown})" if unknown else said


def headed(states: Mapping[int, State], holds: str, does_not: str, topic: str) -> str:
    """The bold words: for what holds in all seeds that are known, in some or in none, or the topic, unmeasured."""
    known = [state for state in states.values() if state is not None]
    if not known:
        return f"**{topic}: not measured**"
    if any(known) and not all(known):
        return f"**{holds}, in some seeds**"
    return f"**{holds}**" if all(known) else f"**{does_not}**"


def rates(seeds: Sequence[Seed], arm: str, step: int, name: str) -> str:
    """A rate of every seed, in their order."""
    return "; ".join(shown(seed.rate(arm, step, name)) for seed in seeds)


def angles(seeds: Sequence[Seed], arm: str, pair: Pair) -> str:
    """A corrected angle of every seed, in their order."""
    return "; ".join(shown(seed.angle(arm, pair), ".1f", "°") for seed in seeds)


def behaviour_claims(seeds: Sequence[Seed]) -> list[str]:
    """What is said of behaviour."""
    return [closing(seeds), reopening(seeds), over_refusal(seeds), adaptive(seeds)]


def geometry_claims(seeds: Sequence[Seed]) -> list[str]:
    """What is said of place, control, direction and rank."""
    return [place(seeds), control(seeds), turning(seeds), rank(seeds)]


def closes(seed: Seed, step: int) -> State:
    """Whether R2D2 answers fewer fixed-source cases at a step than step 0 and than SFT at that step."""
    own = seed.rate(ROBUST, step, FIXED)
    return every(below(own, seed.rate(arm, at, FIXED)) for arm, at in ((BASE, 0), (PLAIN, step)))


def closing(seeds: Sequence[Seed]) -> str:
    """Fixed-source attacks: closed at the first anchor, and afterwards."""
    steps = anchors_of(seeds, ROBUST)
    if not steps:
        return "**Fixed-source attacks: not measured**."
    first, later = steps[0], steps[1:]
    states = {seed.number: closes(seed, first) for seed in seeds}
    stays = {seed.number: every(closes(seed, step) for step in steps) for seed in seeds}
    kept = " and stays closed" if later and True in stays.values() and False not in stays.values() else ""
    head = headed(
        states,
        f"R2D2 closes against fixed-source attacks by step {first}{kept}",
        f"R2D2 is not seen to close against fixed-source attacks by step {first}",
        f"Fixed-source attacks at step {first}",
    )
    beside = ((ROBUST, first), (PLAIN, first), (BASE, 0))
    values = ", ".join(f"{NAMES[arm]} {rates(seeds, arm, at, FIXED)}" for arm, at in beside)
    said = (
        f"{head}: fewer cases answered than at step 0 and than by SFT at {first}, intervals apart, {held(states)} "
        f"({values})."
    )
    if not later:
        return said
    ended = rates(seeds, ROBUST, later[-1], FIXED)
    return f"{said} There and at each of {', '.join(map(str, later))} {held(stays)} (R2D2 at {later[-1]}: {ended})."


def reopening(seeds: Sequence[Seed]) -> str:
    """Direct requests: from the first trained anchor to the last, and beside step 0."""
    steps = anchors_of(seeds, ROBUST)
    if not steps:
        return "**Direct requests: not measured**."
    first, last = steps[0], steps[-1]
    before = {seed.number: seed.rate(BASE, 0, DIRECT) for seed in seeds}
    fewer = {seed.number: below(seed.rate(ROBUST, last, DIRECT), before[seed.number]) for seed in seeds}
    more = {seed.number: below(before[seed.number], seed.rate(PLAIN, last, DIRECT)) for seed in seeds}
    beside = (
        f"At {last} R2D2 answers fewer than step 0 ({rates(seeds, BASE, 0, DIRECT)}) {held(fewer)}, SFT more "
        f"{held(more)} ({rates(seeds, PLAIN, last, DIRECT)})."
    )
    ended = rates(seeds, ROBUST, last, DIRECT)
    if first == last:
        return f"**Direct requests under R2D2**: {ended} at its one anchor, so nothing of reopening. {beside}"
    states = {
        seed.number: below(seed.rate(ROBUST, first, DIRECT), seed.rate(ROBUST, last, DIRECT))
        for seed in seeds
    }
    head = headed(
        states,
        "Direct requests reopen under R2D2",
        "Direct requests are not seen to reopen under R2D2",
        "Reopening of direct requests",
    )
    return (
        f"{head}: more answered at {last} ({ended}) than at {first} ({rates(seeds, ROBUST, first, DIRECT)}), intervals "
        f"apart, {held(states)}. {beside}"
    )


def rises(seed: Seed, steps: Iterable[int]) -> State:
    """Whether R2D2 refuses more of XSTest safe than step 0 at some of these anchors."""
    return some(below(seed.rate(BASE, 0, SAFE), seed.rate(ROBUST, step, SAFE)) for step in steps)


def over_refusal(seeds: Sequence[Seed]) -> str:
    """Harmless look-alikes refused, and utility, beside step 0."""
    steps = anchors_of(seeds, ROBUST)
    if not steps:
        return "**Over-refusal: not measured**."
    states = {seed.number: rises(seed, steps) for seed in seeds}
    head = headed(states, "R2D2 over-refuses", "No over-refusal is seen at these anchors", "Over-refusal")
    last = steps[-1]
    less = {seed.number: below(seed.rate(ROBUST, last, SAFE), seed.rate(BASE, 0, SAFE)) for seed in seeds}
    worse = {
        seed.number: some(below(seed.rate(ROBUST, at, USEFUL), seed.rate(BASE, 0, USEFUL)) for at in steps)
        for seed in seeds
    }
    shown_at = {0: BASE, steps[0]: ROBUST, last: ROBUST}
    values = ", ".join(f"at {at} {rates(seeds, arm, at, SAFE)}" for at, arm in shown_at.items())
    return (
        f"{head}: under R2D2 more of XSTest safe is refused than at step 0 at some anchor {held(states)}, less at "
        f"{last} {held(less)} ({values}). Utility is below step 0's at some anchor {held(worse)}."
    )


def attacked(seeds: Sequence[Seed]) -> list[int]:
    """Anchors at which R2D2 was attacked as it is, in any seed."""
    return [
        step
        for step in anchors_of(seeds, ROBUST)
        if any(seed.rate(ROBUST, step, ADAPTIVE).there for seed in seeds)
    ]


def advantage(seed: Seed, step: int) -> Cell:
    """SFT's adaptive rate minus R2D2's at a step, paired by behaviour."""
    wanted = {"suite": "harmbench", "attack": "adaptive", "metric": "compliance", "matched": "step"}
    for first, second, sign in ((PLAIN, ROBUST, 1), (ROBUST, PLAIN, -1)):
        found = rows_of(
            seed.tables, "comparisons", arm_a=first, arm_b=second, step_a=step, step_b=step, **wanted
        )
        if found and found[0]["difference"] is not None:
            low, high = sorted((sign * found[0]["lo"], sign * found[0]["hi"]))
            return Cell(sign * found[0]["difference"], low, high)
    return Cell(why="not measured")


def adaptive(seeds: Sequence[Seed]) -> str:
    """Attacks made on the trained model, at the last anchor that has them."""
    steps = attacked(seeds)
    if not steps:
        return "**Adaptive attacks: not measured**."
    step = steps[-1]
    gaps = {seed.number: advantage(seed, step) for seed in seeds}
    better = {number: positive(gap) for number, gap in gaps.items()}
    head = headed(
        better,
        f"Attacked as it is at {step}, R2D2 withstands more than SFT",
        f"Attacked as it is at {step}, R2D2 is not shown to withstand more than SFT",
        f"R2D2 beside SFT, both attacked as they are at {step}",
    )
    values = f"SFT − R2D2 {'; '.join(map(shown, gaps.values()))}; R2D2 {rates(seeds, ROBUST, step, ADAPTIVE)}"
    said = (
        f"{head}: fewer of the same behaviours answered, paired interval above 0, {held(better)} ({values})."
    )
    asked = ", ".join(f"{NAMES.get(arm, arm)} {rates(seeds, arm, step, DIRECT)}" for arm in arms_of(seeds))
    said += f" Asked directly they answer {asked}."
    for arm in arms_of(seeds):
        gains = {seed.number: positive(seed.rate(arm, step, GAIN)) for seed in seeds}
        values = rates(seeds, arm, step, GAIN)
        said += f" On {NAMES.get(arm, arm)} attacking gains over asking {held(gains)} ({values})."
    return said


def labels_of(seed: Seed, arm: str) -> dict[Pair, str]:
    """Labels of an arm's pairs."""
    return {(row["from"], row["to"]): row["label"] for row in decided(seed) if row["arm"] == arm}


def place(seeds: Sequence[Seed]) -> str:
    """Labels from step 0 on, and whether any pair has one that says moved or replaced."""
    found = {seed.number: labels_of(seed, ROBUST) for seed in seeds}
    changed = {
        number: any(label in CHANGES for label in mine.values()) if mine else None
        for number, mine in found.items()
    }
    head = headed(
        changed,
        "R2D2's carrier moves or is replaced",
        "No pair of R2D2's anchors is a relocation, a replacement or a re-siting",
        "What becomes of R2D2's carrier",
    )
    where = [
        f"{arrow(pair)} {label} (seed {number})"
        for number, mine in found.items()
        for pair, label in mine.items()
        if label in CHANGES
    ]
    labels = [label for mine in found.values() for label in mine.values()]
    few = f"{labels.count('undetermined')} of {len(labels)} are *undetermined*"
    said = f"{head}{': ' if where else ''}{', '.join(where)}; {few}."
    for arm in (ROBUST, PLAIN):
        parts = []
        for pair in (pair for pair in pairs_of(seeds, arm) if pair[0] == 0):
            rows = [decided_in(seed, arm, pair).verdict(arm, pair) for seed in seeds]
            labels = [row["label"] for row in rows if row]
            parts += [f"to {pair[1]} {counted(labels)}"] if labels else []
        said += f" {NAMES[arm]} from step 0: {'; '.join(parts) or 'no verdict'}."
    return said


def grip(seed: Seed, arm: str, pair: Pair) -> str:
    """What a's carrier does to b's refusals where b's own controls them, by the thresholds of the verdict."""
    own, target = (pair[1], pair[1]), seed.removal(arm, pair, "contrast_replaced")
    removed, above = seed.removal(arm, own), seed.removal(arm, own, "transfer_above_random")
    if not (removed.there and above.there and target.there):
        return "not measured"
    carried = removed.carried and target.carried
    if not carried or removed.value < LIMITS.control or above.lo < LIMITS.control_above_random:
        return "not shown"
    return "still controls" if target.lo >= 0 else "replaced" if target.hi < 0 else "not shown"


def control(seeds: Sequence[Seed]) -> str:
    """Whether the place changed from step 0 to each anchor, and what step 0's carrier does there."""
    said = "**From step 0 to each anchor of each seed**, by the verdict's thresholds; place is measured with a verdict."
    for arm in (ROBUST, PLAIN):
        places, grips, least = Counter[str](), Counter[str](), list[tuple[float, str]]()
        for seed in seeds:
            for pair in (pair for pair in seed.pairs(arm) if pair[0] == 0):
                run = decided_in(seed, arm, pair)
                state = {True: "moved", False: "unchanged", None: "not shown"}[run.moved(arm, pair)]
                places[state if run.placed(arm, pair) else "not measured"] += 1
                grips[grip(run, arm, pair)] += 1
                removed, of = run.removal(arm, pair), refusals(run, arm, pair[1])
                mark = "" if run is seed else " †"
                if removed.there:
                    least.append(
                        (removed.value, f"{removed.text()} of {of} at {pair[1]}, seed {seed.number}{mark}")
                    )
        if places:
            lowest = f", and removes least in {min(least)[1]}" if least else ""
            said += f" {NAMES[arm]}: place {_tally(places)}; step 0's carrier {_tally(grips)}{lowest}."
    return said


def _tally(counts: Counter[str]) -> str:
    return ", ".join(f"{name} in {count} of {counts.total()}" for name, count in counts.most_common())


def turns_more(seed: Seed, pair: Pair) -> State:
    """Whether R2D2 turns the direction by more than SFT between two anchors."""
    return below(seed.angle(PLAIN, pair), seed.angle(ROBUST, pair))


def turning(seeds: Sequence[Seed]) -> str:
    """R2D2's corrected angle beside SFT's, pair by pair."""
    pairs = [pair for pair in pairs_of(seeds, ROBUST) if pair in pairs_of(seeds, PLAIN)]
    states = {pair: {seed.number: turns_more(seed, pair) for seed in seeds} for pair in pairs}
    since, between = (
        {pair: found for pair, found in states.items() if (pair[0] == 0) == first} for first in (True, False)
    )
    measured = {
        seed.number: every(found[seed.number] for found in since.values() if found[seed.number] is not None)
        for seed in seeds
    }
    head = headed(
        measured,
        "From step 0 to every anchor R2D2 turns the direction more than SFT",
        "R2D2 does not turn the direction more than SFT from step 0 to every anchor",
        "Turn of the direction",
    )
    said = f"{head}: intervals apart {held(measured)}."
    others = [arm for arm in arms_of(seeds) if arm not in (ROBUST, PLAIN)]
    for arm in others:
        beside = {
            seed.number: every(
                below(seed.angle(arm, pair), seed.angle(ROBUST, pair))
                for pair in since
                if seed.angle(arm, pair).there and seed.angle(ROBUST, pair).there
            )
            for seed in seeds
        }
        said += f" More than `{arm}` {held(beside)}."
    if between:
        said += (
            f" Between neighbours, beside SFT: "
            f"{', '.join(f'{arrow(pair)} {held(found)}' for pair, found in between.items())}."
        )
    if not pairs:
        return said
    pair = max(pairs, key=lambda one: one[1] - one[0])
    return (
        f"{said} From {arrow(pair)}: "
        + ", ".join(f"{NAMES[arm]} {angles(seeds, arm, pair)}" for arm in (ROBUST, PLAIN))
        + "."
    )


def flags(seeds: Sequence[Seed]) -> list[tuple[str, str]]:
    """Rank flag of every verdict, and where it stands."""
    return [
        (row["rank_change"], f"{row['arm']} {row['from']} → {row['to']}, seed {seed.number}")
        for seed in seeds
        for row in decided(seed)
    ]


def rank(seeds: Sequence[Seed]) -> str:
    """Rank flags of all pairs."""
    every_flag = flags(seeds)
    found = [f"{flag} ({where})" for flag, where in every_flag if flag != "none"]
    if not every_flag:
        return "**Rank: not measured**."
    if not found:
        return f"**No change of rank is flagged** in any of {len(every_flag)} verdicts."
    return (
        f"**A change of rank is flagged** in {len(found)} of {len(every_flag)} verdicts: {', '.join(found)}."
    )
