"""What seeds claim together, what would have to be true for it to be wrong, what they cannot say, what they took."""

import itertools
from collections import Counter
from collections.abc import Sequence

from across_seeds import (
    NUMBERS,
    Nulls,
    Pair,
    Seed,
    arms_of,
    arrow,
    counted,
    last_of,
    nulls,
    numbered,
    shown,
)
from compared_arms import rows_of
from seed_claims import GAIN, PLAIN, ROBUST, angles, attacked, every, rates, turns_more

CONTROLS = ("refusal_sft", "r2d2_static")  # taught to refuse the same requests; attacked once, on step 0


def main_claim(seeds: Sequence[Seed]) -> str:
    """What the seeds say together of R2D2's longest pair, if they agree on a label; else what each of them says."""
    pair = 0, last_of(seeds)
    labels = [row["label"] for seed in seeds if (row := seed.verdict(ROBUST, pair))]
    if not labels:
        return f"R2D2 {arrow(pair)} has no verdict, so that nothing is claimed of it. What is said of other pairs"
    if len(set(labels)) > 1 or labels[0] == "undetermined":
        return (
            f"On R2D2 {arrow(pair)} the seeds say {counted(labels)}, so that no one label is claimed. What is said of "
            "single seeds and pairs"
        )
    more = every(turns_more(seed, pair) for seed in seeds if seed.verdict(ROBUST, pair))
    further = ", and R2D2 turns the direction further than SFT" if more else ""
    return f"The claim is *R2D2 {arrow(pair)}: {labels[0]}* ({counted(labels)}){further}. It"


def _kept(seeds: Sequence[Seed], pair: Pair, *settings: str) -> str:
    """How many rows of `sensitivity` keep R2D2's label of a pair; of some settings, or all."""
    said = []
    for seed in seeds:
        row = seed.verdict(ROBUST, pair)
        rows = rows_of(seed.tables, "sensitivity", arm=ROBUST, of=pair[0], to=pair[1])
        mine = [one for one in rows if not settings or one["setting"] in settings]
        if row and mine:
            said.append(f"{sum(one['label'] == row['label'] for one in mine)} of {len(mine)}")
        else:
            said.append("–")
    return "; ".join(said)


def _losses(seeds: Sequence[Seed], arm: str, step: int) -> str:
    """Mean target loss with which adaptive attacks end, nats."""
    found = [rows_of(seed.tables, "attacks", arm=arm, step=step, attack="adaptive") for seed in seeds]
    values = [rows[0]["loss_after"] if rows else None for rows in found]
    return "; ".join("–" if value is None else f"{value:.1f}" for value in values)


def _controls(seeds: Sequence[Seed], pair: Pair) -> str:
    """How far the control arms turn, or that there are none."""
    there = [arm for arm in CONTROLS if arm in arms_of(seeds)]
    missing = " and ".join(f"`{arm}`" for arm in CONTROLS if arm not in there)
    turned = [f"`{arm}` turns by {angles(seeds, arm, pair)}" for arm in there]
    absent = (
        [f"without {missing} this section cannot tell; studies of seed 0 below have these arms"]
        if missing
        else []
    )
    return "; ".join(turned + absent)


def doubts(seeds: Sequence[Seed]) -> list[str]:
    """What would have to be true for the claim to be wrong, and the control that speaks to it."""
    pair = 0, last_of(seeds)
    own, where = (pair[1], pair[1]), f"R2D2 {arrow(pair)}"
    drawn = Nulls(sum((nulls(seed).labels for seed in seeds), Counter[str]())).text
    random = "; ".join(shown(seed.removal(ROBUST, own, "transfer_random")) for seed in seeds)
    removed = "; ".join(shown(seed.removal(ROBUST, own)) for seed in seeds)
    count = (
        "one seed, so this is open"
        if len(seeds) == 1
        else f"{numbered(len(seeds))} seeds, and the agreement above"
    )
    said = [
        f"what is seen were noise of the prompts: SFT on the same prompts turns by {angles(seeds, PLAIN, pair)}, "
        f"{where} by {angles(seeds, ROBUST, pair)}; anchors against themselves, prompts drawn anew: {drawn}",
        "ablation broke the model instead of taking refusal: random subspaces of the same energy remove "
        f"{random} of R2D2's refusals at {pair[1]}, its carrier {removed}",
        f"thresholds, profile, selector or judge made the label: varied one at a time, {_kept(seeds, pair)} rows of "
        f"`sensitivity` keep that of {where}, of those that vary the judge {_kept(seeds, pair, 'judge')}",
        f"one order of batches, one set of attacks or one beginning made it: {count}; all share step 0 and the "
        "prompts of extraction, selection and evaluation, of which agreement says nothing",
    ]
    steps = attacked(seeds)
    if steps:
        step = steps[-1]
        said.append(
            f"closing were knowing suffixes of that kind: attacking R2D2 as it is at {step} gains "
            f"{rates(seeds, ROBUST, step, GAIN)} over asking; the search ends at a mean loss of "
            f"{_losses(seeds, ROBUST, step)} nats (SFT {_losses(seeds, PLAIN, step)}), and where that is high a "
            "stronger one may still succeed"
        )
    else:
        said.append(
            "closing were knowing suffixes of that kind: no adaptive attack was made here, so this is open"
        )
    said.append(f"any training toward refusal, or any attacks, did the same: {_controls(seeds, pair)}")
    return [f"{one};" for one in said[:-1]] + [f"{said[-1]}."]


def lacking(seeds: Sequence[Seed]) -> list[str]:
    """What single seeds lack that others have: stages by kind, tables, cells."""
    tables = sorted({name for seed in seeds for name in seed.tables})
    said = []
    for seed in seeds:
        kinds = Counter(stage.split("/")[0] for stage in seed.unfinished)
        stages = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        absent = ", ".join(f"`{name}`" for name in tables if name not in seed.tables)
        parts = [f"stages {stages}" if stages else "", f"the tables {absent}" if absent else ""]
        if any(parts):
            said.append(f"Seed {seed.number} lacks {' and '.join(filter(None, parts))}.")
    return said


def resamples(seeds: Sequence[Seed]) -> str:
    """Re-extraction resamples behind the carriers' places."""
    found = {row["resamples"] for seed in seeds for row in seed.tables.get("carrier_summary", ())} - {0, None}
    return " or ".join(map(str, sorted(found))) or "no"


def card_time(seeds: Sequence[Seed]) -> str:
    """What seeds took on the cards on which they ran, and an arm of a seed on average; those of one device together."""
    said = []
    for device, some in itertools.groupby(seeds, key=lambda seed: seed.provenance["device"]):
        beside = list(some)
        cards = NUMBERS.index(device.split()[0])
        seconds = cards * max(seed.provenance["wall"] for seed in beside)
        arms = sum(len(seed.arms) for seed in beside)
        left = sum(len(seed.unfinished) for seed in beside)
        stages = left + sum(one["stages"] for seed in beside for one in seed.provenance["seconds"].values())
        numbers = ", ".join(str(seed.number) for seed in beside)
        said.append(
            f"seed{'s' if len(beside) > 1 else ''} {numbers}, on {NUMBERS[cards]} card{'s' if cards > 1 else ''}: "
            f"{seconds / 3600:.2f} card-hours for {arms} arms, {seconds / 60 / arms:.1f} card-minutes each, "
            f"with {left or 'none'} of {stages} stages left undone"
        )
    return "; ".join(said)


def limits(seeds: Sequence[Seed]) -> str:
    """What these runs cannot say, from their own numbers."""
    cases = {
        row["n"]
        for seed in seeds
        for row in rows_of(seed.tables, "behaviour", attack="adaptive", metric="compliance")
    }
    steps = attacked(seeds)
    attacks = (
        f"adaptive attacks on {' or '.join(map(str, sorted(cases)))} behaviours at {', '.join(map(str, steps))} alone"
        if steps
        else "no adaptive attack"
    )
    redraws = sum(nulls(seed).labels.total() for seed in seeds)
    count = f"{numbered(len(seeds)).capitalize()} seed{'s' if len(seeds) > 1 else ''}"
    few = (
        f"{redraws} redraws of nulls bound the rate of false labels loosely" if redraws else "no redrawn null"
    )
    return (
        f"{count} of one recipe and one backbone, a coder model of 0.5B from 4-bit weights: this is about these "
        f"checkpoints, and agreement of so few says little of the regimes. A proxy judge; {attacks}; {few}. Intervals "
        "are over prompts, not over seeds, and none is adjusted for their number; the prompts are the same in all "
        f"seeds, and so is what is peculiar to them. {' '.join(lacking(seeds))}".strip()
    )
