"""Seeds beside the publication: which of its patterns they show.

*Agrees*: intervals show the published pattern. *Disagrees*: they show another, or exclude the published value on the
other side. *Open*: neither. The bank's rank, which has no interval, is compared by points. The publication
(arXiv 2604.27019) has another model, other prompts and another judge.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from across_seeds import (
    Pair,
    Seed,
    anchors_of,
    arrow,
    pairs_of,
    shown,
)
from caryatid.study.series import BASE
from compared_arms import LIMITS, Cell, cell, markdown_table, rows_of
from seed_claims import (
    ADAPTIVE,
    FIXED,
    NAMES,
    PLAIN,
    ROBUST,
    SAFE,
    all_of,
    angles,
    attacked,
    below,
    closes,
    every,
    flags,
    rates,
    rises,
    turns_more,
)

Outcome = Literal["agrees", "disagrees", "open"] | None  # None: not measured
PUBLISHED: Mapping[str, Mapping[int, float]] = {  # R2D2's rates by step (docs/protocol.md)
    FIXED: {50: 0.0, 100: 0.0, 250: 0.035, 500: 0.25},
    SAFE: {50: 1.0, 100: 1.0, 250: 0.664, 500: 0.228},
    ADAPTIVE: {50: 0.0, 250: 0.415, 500: 0.613},
}

EARLY_FROM = 250  # at which step the publication's carrier is seen in an early layer


def outcome(agrees: bool | None, disagrees: bool | None) -> Outcome:
    """From whether the pattern, or its contrary, is shown."""
    if agrees is None and disagrees is None:
        return None
    return "agrees" if agrees else "disagrees" if disagrees else "open"


def _length(pair: Pair) -> int:
    return pair[1] - pair[0]


def under(own: Cell, known: float) -> bool:
    """Whether an interval lies below a published rate, both as the page shows them."""
    return round(own.hi, 2) < round(known, 2)


def closing(seed: Seed) -> Outcome:
    """Fixed-source attacks at the first anchor."""
    steps = anchors_of([seed], ROBUST)
    if not steps:
        return None
    known, own = PUBLISHED[FIXED].get(steps[0]), seed.rate(ROBUST, steps[0], FIXED)
    return outcome(closes(seed, steps[0]), own.lo > known if own.there and known is not None else None)


def reopening(name: str) -> Callable[[Seed], Outcome]:
    """A rate of R2D2 at its last anchor that has it, beside its first; the same anchor shows no reopening."""

    def found(seed: Seed) -> Outcome:
        steps = [step for step in anchors_of([seed], ROBUST) if seed.rate(ROBUST, step, name).there]
        if not steps:
            return None
        first, last = seed.rate(ROBUST, steps[0], name), seed.rate(ROBUST, steps[-1], name)
        known = PUBLISHED[name].get(steps[-1])
        return outcome(below(first, last), under(last, known) if known is not None else None)

    return found


def over_refusal(seed: Seed) -> Outcome:
    """XSTest safe at any anchor above step 0, or below the published rate wherever there is one."""
    steps = anchors_of([seed], ROBUST)
    beside = [
        (seed.rate(ROBUST, step, SAFE), known) for step, known in PUBLISHED[SAFE].items() if step in steps
    ]
    less = every(under(own, known) if own.there else None for own, known in beside)
    return outcome(rises(seed, steps), less)


def relocation(arm: str) -> Callable[[Seed], Outcome]:
    """A change of an arm's place between any two anchors, or its absence up to where the publication has it."""

    def found(seed: Seed) -> Outcome:
        pairs = [pair for pair in seed.pairs(arm) if seed.placed(arm, pair)]
        moved = [seed.moved(arm, pair) for pair in pairs]
        stayed = every(None if one is None else not one for one in moved)
        late_enough = any(b >= EARLY_FROM for _, b in pairs)
        return outcome(True in moved, stayed if late_enough else None) if moved else None

    return found


def spread(seed: Seed, arm: str) -> Cell:
    """By how much the participation ratio changed over an arm's longest pair."""
    pair = max(seed.pairs(arm), key=_length, default=(0, 0))
    where = {"arm": arm, "of": pair[0], "to": pair[1], "site": "first anchor"}
    return cell(seed.tables, "drift", quantity="participation_ratio_difference", **where)


def rank(seed: Seed) -> Outcome:
    """Changes over the longest pairs shown to stay below what is flagged, or a flag in any verdict."""
    changes = [spread(seed, arm) for arm in (ROBUST, PLAIN)]
    small = every(max(-one.lo, one.hi) < LIMITS.rank_change if one.there else None for one in changes)
    found = [flag != "none" for flag, _ in flags([seed])]
    return outcome(small and not any(found), any(found) if found else None)


def drift(seed: Seed) -> Outcome:
    """SFT turned more than R2D2 over the longest pair, or less."""
    pairs = [pair for pair in seed.pairs(ROBUST) if pair in seed.pairs(PLAIN)]
    if not pairs:
        return None
    pair = max(pairs, key=_length)
    return outcome(below(seed.angle(ROBUST, pair), seed.angle(PLAIN, pair)), turns_more(seed, pair))


@dataclass(frozen=True)
class Line:
    """One pattern of the publication. `here`: what the seeds have, in numbers."""

    topic: str
    published: str
    found: Callable[[Seed], Outcome]
    here: Callable[[Sequence[Seed]], str]


def _ends(name: str) -> Callable[[Sequence[Seed]], str]:
    """R2D2's rate at its first and last anchor that have it."""

    def said(seeds: Sequence[Seed]) -> str:
        steps = attacked(seeds) if name == ADAPTIVE else anchors_of(seeds, ROBUST)
        ends = dict.fromkeys((*steps[:1], *steps[-1:]))
        return ", ".join(f"{rates(seeds, ROBUST, step, name)} at {step}" for step in ends) or "–"

    return said


def _turns(seeds: Sequence[Seed]) -> str:
    pairs = [pair for pair in pairs_of(seeds, ROBUST) if pair in pairs_of(seeds, PLAIN)]
    if not pairs:
        return "–"
    pair = max(pairs, key=_length)
    return f"{arrow(pair)}: R2D2 {angles(seeds, ROBUST, pair)}, SFT {angles(seeds, PLAIN, pair)}"


def _layers(arm: str) -> Callable[[Sequence[Seed]], str]:
    """The carrier's layers over the anchors."""

    def said(seeds: Sequence[Seed]) -> str:
        found = []
        for seed in seeds:
            places = [seed.anchor(arm, step).place for step in (0, *seed.anchors(arm))]
            layers = [
                "–" if one is None or one["argmin_layer"] is None else f"{one['argmin_layer']}"
                for one in places
            ]
            found.append(", ".join(layers))
        steps = ", ".join(map(str, (0, *anchors_of(seeds, arm))))
        return f"layers at {steps}: {'; '.join(found)}"

    return said


def bank(seed: Seed, arm: str, step: int) -> float | None:
    """Effective rank of the directions that are admissible at an anchor."""
    where = {"arm": arm if step else BASE, "step": step, "quantity": "effective_rank_bank"}
    found = rows_of(seed.tables, "rank", **where)
    return found[0]["value"] if found else None


def bank_grows(seed: Seed) -> Outcome:
    """Whether the bank's effective rank grows from step 0 to R2D2's last anchor that has one; by points."""
    ranks = [bank(seed, ROBUST, step) for step in (0, *seed.anchors(ROBUST))]
    known = [one for one in ranks[1:] if one is not None]
    if ranks[0] is None or not known:
        return None
    return outcome(known[-1] <= ranks[0], known[-1] > ranks[0])


def _bank(seeds: Sequence[Seed]) -> str:
    found = []
    for arm in (ROBUST, PLAIN):
        rows = [[bank(seed, arm, step) for step in (0, *seed.anchors(arm))] for seed in seeds]
        said = (", ".join("–" if one is None else f"{one:.1f}" for one in row) for row in rows)
        found.append(f"{NAMES[arm]} {'; '.join(said)}")
    return f"at the anchors: {', '.join(found)}; of banks whose sizes differ"


def _spread(seeds: Sequence[Seed]) -> str:
    changes = (
        f"{NAMES[arm]} {'; '.join(shown(spread(seed, arm), '+.2f') for seed in seeds)}"
        for arm in (ROBUST, PLAIN)
    )
    return f"change over the longest pair: {', '.join(changes)}"


LINES = (
    Line("closing", "R2D2, fixed-source: .000 at 50 and 100", closing, _ends(FIXED)),
    Line("reopening, fixed-source", "R2D2: .035 at 250, .250 at 500", reopening(FIXED), _ends(FIXED)),
    Line("reopening, adaptive", "R2D2: 0 at 50, .415 at 250, .613 at 500", reopening(ADAPTIVE), _ends(ADAPTIVE)),
    Line(
        "over-refusal", "XSTest safe 1.000 at 50 and 100, .664 at 250, .228 at 500", over_refusal, _ends(SAFE)
    ),
    Line("relocation, R2D2", "late layer at 50 and 100, early at 250 and 500", relocation(ROBUST), _layers(ROBUST)),
    Line("relocation, SFT", "early, and sooner than under R2D2", relocation(PLAIN), _layers(PLAIN)),
    Line("rank of the bank", "does not grow: 1.23 to 1.27", bank_grows, _bank),
    Line("participation ratio of the categories", "its rank of the bank does not grow", rank, _spread),
    Line("drift", "SFT turns more than R2D2", drift, _turns),
)  # fmt: skip


def judged(seeds: Sequence[Seed], found: Callable[[Seed], Outcome]) -> str:
    """`agrees in all 3 seeds`; `agrees in 2 of 3 seeds (0, 1), open in 1 (2)`; `not measured`."""
    by: dict[str, list[int]] = {}
    for seed in seeds:
        by.setdefault(found(seed) or "not measured", []).append(seed.number)
    if len(by) == 1:
        (word,) = by
        every_seed = "in the one seed" if len(seeds) == 1 else all_of(len(seeds))
        return word if word == "not measured" else f"{word} {every_seed}"
    return ", ".join(
        f"{word} in {len(by[word])} of {len(seeds)} ({', '.join(map(str, by[word]))})"
        for word in ("agrees", "disagrees", "open", "not measured")
        if word in by
    )


def beside_publication(seeds: Sequence[Seed]) -> str:
    """Every pattern of the publication, and whether the seeds show it."""
    rows = [[line.topic, line.published, line.here(seeds), judged(seeds, line.found)] for line in LINES]
    return markdown_table(["", "arXiv 2604.27019", "here, by seed", "so it"], rows)
