"""What runs that differ in their seed cost: seconds of their stages, by kind and by arm."""

import re
from collections.abc import Mapping, Sequence

from across_seeds import Seed, arms_of, ordered
from compared_arms import markdown_table


def cost_table(seeds: Sequence[Seed]) -> str:
    """Seconds of stages by kind, a column a seed, the dearest first; all of them; from start to end; by arm."""
    spent = [{kind: one["seconds"] for kind, one in seed.provenance["seconds"].items()} for seed in seeds]
    kinds = {kind: sum(one.get(kind, 0.0) for one in spent) for kind in ordered(spent)}
    rows = [
        [kind, *(f"{one[kind]:.0f}" if kind in one else "–" for one in spent)]
        for kind in sorted(kinds, key=lambda kind: -kinds[kind])
        if kinds[kind] >= 0.5
    ]
    rows.append(["**all stages**", *(f"{sum(one.values()):.0f}" for one in spent)])
    rows.append(["**start to end**", *(f"{seed.provenance['wall']:.0f}" for seed in seeds)])
    places = [by_arm(seed.provenance["seconds_by_place"], seed.arms) for seed in seeds]
    for arm in [*arms_of(seeds), ""]:
        name = f"of all: {arm} alone" if arm else "of all: shared by the arms (step 0, cases, nulls)"
        rows.append([name, *(f"{one[arm]:.0f}" if arm in one else "–" for one in places)])
    return markdown_table(["stages, s", *(f"seed {seed.number}" for seed in seeds)], rows)


def one_arm(seeds: Sequence[Seed]) -> str:
    """Seconds of one arm of one seed, with all that arms share and without nulls: what it would take alone."""
    said = []
    for arm in arms_of(seeds):
        cells = []
        for seed in seeds:
            places = by_arm(seed.provenance["seconds_by_place"], seed.arms)
            redrawn = seed.provenance["seconds"].get("null", {"seconds": 0.0})["seconds"]
            cells.append(f"{places[arm] + places[''] - redrawn:.0f}" if arm in places else "–")
        said.append(f"`{arm}` {'; '.join(cells)}")
    return ", ".join(said)


def by_arm(places: Mapping[str, float], arms: Sequence[str]) -> dict[str, float]:
    """Seconds of each arm's own places (`r2d2/seed0`, `r2d2@50/seed0`, `base@0-r2d2@50/seed0`); the rest under ""."""
    found = dict.fromkeys([*arms, ""], 0.0)
    for place, seconds in places.items():
        names = re.split(r"[@/-]", place)
        found[next((arm for arm in arms if arm in names), "")] += seconds
    return found
