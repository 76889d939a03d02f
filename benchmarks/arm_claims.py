"""What the tables say of arms at matched robustness: sentences of which every word follows from numbers."""

from collections.abc import Sequence
from typing import Literal

from caryatid.study.series import BASE
from compared_arms import CLOSED_BY, LIMITS, TARGET, USEFUL, Closing, Matched, Tables, closing, compared
from shares import share

STATES = ("still controls", "replaced", "not shown", "its own does not control")


def claims(tables: Tables, arms: Sequence[str]) -> list[str]:
    """What the tables say of these arms; where refusal is carried is said of those that are matched."""
    every = [one for one in compared(tables) if one.arm in arms]
    matched = [one for one in every if one.matched]
    apart = [one for one in every if not one.matched]
    return [
        f"**Matched** ({share(TARGET)} lies in the interval of direct compliance): {_named(matched)}. "
        f"Not matched: {_named(apart)}.",
        _closed({one.arm: closing(tables, one.arm) for one in every}),
        _broken(Matched(tables, BASE, 0), every),
        _place(matched),
        _direction(matched),
        _number(matched),
    ]


def _named(found: Sequence[Matched]) -> str:
    return ", ".join(one.name for one in found) or "none"


def _having(quantity: Literal["depth", "dimension"], found: Sequence[Matched]) -> tuple[list[Matched], str]:
    """Those of which a quantity is known, and the names of the others."""
    known = {one.name: getattr(one, quantity).there for one in found}
    return [one for one in found if known[one.name]], _named([one for one in found if not known[one.name]])


def _closed(found: dict[str, Closing | None]) -> str:
    by: dict[str, list[str]] = {"closes": [], "open": [], "unknown": []}
    for arm, one in found.items():
        state = "unknown" if one is None else "closes" if one.closes else "open"
        by[state].append(arm if one is None or one.closes else f"{arm} ({one.text()})")
    closes, still, unknown = (", ".join(names) or "none" for names in by.values())
    return (
        f"**Closes** ({share(CLOSED_BY)} below SFT with {share(USEFUL)} of step 0's utility): {closes}. "
        f"Does not: {still}. Not known: {unknown}."
    )


def _broken(before: Matched, every: Sequence[Matched]) -> str:
    more = [one for one in every if one.degenerate.lo > before.degenerate.hi]
    return (
        f"**Broken answers** to direct requests, more than at step 0 ({before.degenerate.text()}), intervals apart: "
        f"{_named(more)}. There a low compliance is not refusal alone."
    )


def _place(matched: Sequence[Matched]) -> str:
    placed, without = _having("depth", matched)
    if len(placed) < 2:
        return (
            f"**Place**: fewer than two matched arms have a carrier ({_named(placed)}; without: {without})."
        )
    depths = [one.depth for one in placed]
    least, most = (edge(one.value for one in depths) for edge in (min, max))
    apart = max(one.lo for one in depths) - min(one.hi for one in depths)
    near = max(one.hi for one in depths) - min(one.lo for one in depths)
    shift = LIMITS.depth_shift
    lie = f"lie {share(shift)} of the layers apart"
    said = (
        f"some {lie}"
        if apart >= shift
        else f"no two {lie}"
        if near < shift
        else f"whether any two {lie} is open"
    )
    return (
        f"**Place**: carriers of {_named(placed)} lie at depths {share(least)} to {share(most)} "
        f"({'; '.join(one.text() for one in depths)}): {said}. Without a carrier: {without}."
    )


def _direction(matched: Sequence[Matched]) -> str:
    turned = [one for one in matched if one.angle.there and one.angle.lo >= LIMITS.angle]
    by = {state: [one for one in matched if one.old_direction == state] for state in STATES}
    by["not known"] = [one for one in matched if one.old_direction not in STATES]
    said = "; ".join(f"{state}: {_named(found)}" for state, found in by.items())
    return (
        f"**Direction**: turned from step 0's by {LIMITS.angle:.0f}° or more, by the lower bound: {_named(turned)}. "
        f"Step 0's carrier at the arm's refusals: {said}."
    )


def _number(matched: Sequence[Matched]) -> str:
    known, without = _having("dimension", matched)
    if len(known) < 2:
        few = f"fewer than two matched arms have a cone ({_named(known)}; without: {without})"
        return f"**Number of directions**: {few}."
    least, most = max(one.dimension.lo for one in known), min(one.dimension.hi for one in known)
    verb = "overlap: no difference is shown" if least <= most else "do not all overlap"
    wider = [one for one in known if one.spread.there and one.spread.lo > 0]
    fewer = [one for one in known if one.spread.there and one.spread.hi < 0]
    return (
        f"**Number of directions**: intervals of the cone's dimension of {_named(known)} {verb}; without: {without}. "
        f"Participation ratio above step 0's: {_named(wider)}; below: {_named(fewer)}."
    )
