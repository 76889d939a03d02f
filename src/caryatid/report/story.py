"""What a run found, in sentences for a reader who knows language models but not this field. From tables alone."""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from .charts import Row, Tables, span_of, value_of

SENTENCES: Mapping[str, str] = {
    "relocation": "refusal moved: another site, and the old direction no longer controls it",
    "replacement in place": "refusal was replaced where it was: the old direction no longer controls it",
    "re-siting": "the site moved, but the old direction still controls refusal",
    "drift only": "the carrier turned, at the same site, and still controls refusal",
    "no change": "no change was found, with the precision to have found one",
    "undetermined": "the evidence does not settle what happened",
}
# What a setting of the sensitivity table is to somebody who has not read the protocol.
SETTINGS: Mapping[str, str] = {
    "depth_shift": "how large a change of layer counts as a move",
    "probability": "how sure a move must be",
    "replaced_below": "how little the old direction may control to count as replaced",
    "kept_above": "how much the old direction must control to count as kept",
    "angle": "how large an angle counts as a turn",
    "control": "how many refusals a direction must remove to count as controlling",
    "control_above_random": "how far beyond random directions that must be",
    "rank_change": "how large a change of dimension counts",
    "carrier selector": "how the direction is picked",
    "profile": "which directions are admitted",
    "kl_max": "how much a direction may disturb harmless answers",
    "transfer rank": "how many dimensions are removed",
    "judge": "who judges refusals",
}
ATTACKS: Mapping[str, str] = {
    "direct": "asked directly",
    "fixed_source": "under the attack made against step 0",
    "adaptive": "under an attack made against itself",
}


@dataclass(frozen=True)
class Story:
    """One arm of one seed, from its first anchor to its last.

    Attributes:
        label: the verdict's. headline: what happened to refusal. cost: what the model does now, and did before.
        certainty: what the headline rests on, a sentence an item. otherwise: what would have changed the verdict, in
        a sentence; variations: a setting an item. reasons: the verdict's own, a sentence an item.
    """

    arm: str
    seed: int
    start: int
    end: int
    label: str
    rank_change: str
    headline: str
    cost: tuple[str, ...]
    certainty: tuple[str, ...]
    otherwise: str
    variations: tuple[str, ...]
    reasons: tuple[str, ...]


def stories(tables: Tables) -> list[Story]:
    """The first-to-last verdict of every arm and seed."""
    found = []
    rows = tables["verdict"]
    for seed, arm in dict.fromkeys((row["seed"], row["arm"]) for row in rows):
        mine = [row for row in rows if (row["seed"], row["arm"]) == (seed, arm)]
        whole = max(mine, key=lambda row: (row["to"] - row["from"], -row["from"]))
        evidence = _Evidence(tables, whole)
        found.append(
            Story(
                arm,
                seed,
                whole["from"],
                whole["to"],
                whole["label"],
                whole["rank_change"],
                _headline(whole, evidence),
                tuple(_cost(tables, whole)),
                tuple(_certainty(whole, evidence)),
                _otherwise(tables, whole),
                tuple(_variations(tables, whole)),
                sentences(whole["reasons"]),
            )
        )
    return found


def sentences(text: str) -> tuple[str, ...]:
    """A text's sentences; a full stop inside a number ends none."""
    parts: list[str] = []
    for piece in text.split(". "):
        if parts and not piece[:1].isupper():
            parts[-1] += f". {piece}"
        else:
            parts.append(piece)
    return tuple(part if part.endswith(".") else f"{part}." for part in parts if part)


def percent(value: float) -> str:
    """`76 %`, not broken between lines; a dash for NaN."""
    return f"{value:.0%}".replace("%", "\u00a0%") if math.isfinite(value) else "–"


def _interval(low: float, high: float) -> str:
    return (
        f"{100 * low:.0f} to {percent(high)}" if math.isfinite(low) and math.isfinite(high) else "no interval"
    )


class _Evidence:
    """The numbers behind a verdict; NaN or None where they were not measured."""

    def __init__(self, tables: Tables, verdict: Row) -> None:
        seed, arm, start, end = (verdict[key] for key in ("seed", "arm", "from", "to"))
        self.layers = 1 + max((row["layer"] for row in tables["carriers"]), default=-1)
        first = "base" if start == 0 else arm
        places = [
            row
            for row in tables.get("carrier_summary", ())
            if (row["seed"], row["profile"], row["quantity"]) == (seed, verdict.get("profile"), "depth")
        ]
        self.before, self.after = (
            next((row["depth_layer"] for row in places if (row["arm"], row["step"]) == place), None)
            for place in ((first, start), (arm, end))
        )
        to = [
            row
            for row in tables["transfer"]
            if (row["seed"], row["arm"], row["to"]) == (seed, arm, end) and row.get("rank") in (1, None)
        ]
        self.old = _pick(to, "transfer", first, start)
        self.own = _pick(to, "transfer", arm, end)
        self.random = _pick(to, "transfer_random", first, start)
        drift = {
            row["quantity"]: row
            for row in tables["drift"]
            if (row["seed"], row["arm"], row["from"], row["to"]) == (seed, arm, start, end)
            and row.get("site") in ("first anchor", None)
        }
        self.angle = drift.get("corrected_angle")
        self.stayed = value_of(drift.get("p_depth_stayed"))
        self.moved = value_of(drift.get("p_depth_moved"))


def _pick(rows: Sequence[Row], quantity: str, arm: str, step: int) -> Row | None:
    wanted = quantity, arm, step
    return next((row for row in rows if (row["quantity"], row["from_arm"], row["from"]) == wanted), None)


def _headline(verdict: Row, found: _Evidence) -> str:
    """What happened to refusal, with the measured place, control and turn."""
    arm, label = verdict["arm"], verdict["label"]
    place, where = "", "where"
    if found.before is not None and found.after is not None:
        same = found.before == found.after
        where = "where" if same else "about where"
        span = f"layer {found.before}" if same else f"layer {found.before} → {found.after}"
        place = f" ({span} of {found.layers})"
    removes = f"removes {percent(value_of(found.old))} of refusals"
    angle = value_of(found.angle)
    turn = f"{angle:.0f}°" if math.isfinite(angle) else "an unknown angle"
    said = {
        "relocation": f"refusal moved{place}: another direction carries it now, and the old one only {removes}",
        "replacement in place": f"refusal stayed {where} it was{place}, but another direction carries it now: the old "
        f"one, {turn} away, only {removes}",
        "re-siting": f"refusal can be read elsewhere now{place}, but the old direction still {removes}",
        "drift only": f"refusal stayed {where} it was{place} and the old direction still {removes}, but it turned by "
        f"{turn}",
        "no change": f"refusal stayed as it was{place}: the old direction still {removes}, and it turned by no more "
        f"than {turn}",
    }
    if label in said:
        return f"Under {arm}, {said[label]}."
    measured = f"the old direction {removes}" if found.old is not None else ""
    if found.angle is not None and math.isfinite(angle):
        measured = " and ".join(filter(None, (measured, f"it turned by {turn}")))
    return f"Under {arm}, what happened to refusal{place} cannot be said" + (
        f" from this evidence: {measured}, but {_missing(verdict)}."
        if measured
        else f": {_missing(verdict)}."
    )


def _missing(verdict: Row) -> str:
    """Why a verdict is undetermined, in few words."""
    lacking = [text for text in sentences(verdict["reasons"]) if text.startswith("Missing: ")]
    if lacking:
        return "; ".join(text.removeprefix("Missing: ").rstrip(".") for text in lacking)
    first = sentences(verdict["reasons"])[:1]
    return first[0].rstrip(".")[:1].lower() + first[0].rstrip(".")[1:] if first else "no evidence was kept"


def _certainty(verdict: Row, found: _Evidence) -> Iterator[str]:
    """What the headline rests on."""
    thresholds = json.loads(verdict["thresholds"])
    if found.old is not None:
        value, low, high = span_of(found.old)
        beside = value_of(found.random)
        other = f"; random directions remove {percent(beside)}" if math.isfinite(beside) else ""
        own = f"; the new direction removes {percent(value_of(found.own))}" if found.own is not None else ""
        yield (
            f"Control: the old direction removes {percent(value)} (95 % interval {_interval(low, high)}) of "
            f"{found.old['n']} refusals{own}{other}."
        )
    if found.angle is not None:
        value, low, high = span_of(found.angle)
        if math.isfinite(value):
            yield (
                f"Turn: {value:.1f}° (95 % interval {low:.1f}° to {high:.1f}°); {thresholds.get('angle', 10):g}° and "
                "more count as a turn."
            )
    if math.isfinite(found.stayed) or math.isfinite(found.moved):
        yield (
            f"Place: unmoved in {percent(found.stayed)} and moved in {percent(found.moved)} of the resamples; a move "
            f"is {percent(float(thresholds.get('depth_shift', 0.25)))} of the layers or more."
        )


def _otherwise(tables: Tables, verdict: Row) -> str:
    """How many settings, varied alone, give another label, and which."""
    rows = _sensitivity(tables, verdict)
    if not rows:
        return "How the verdict depends on its settings was not measured."
    other = [row for row in rows if row["label"] != verdict["label"]]
    if not other:
        return f"Nothing that was tried: all {len(rows)} variations of the settings give the same verdict."
    counts = Counter(row["label"] for row in other)
    named = ", ".join(f"{count} {label}" for label, count in counts.most_common())
    found = "no other finding" if set(counts) == {"undetermined"} else "another finding among them"
    return f"{len(other)} of {len(rows)} variations of one setting give another verdict ({named}): {found}."


def _variations(tables: Tables, verdict: Row) -> Iterator[str]:
    """Every setting that, varied alone, gives another label, with its values."""
    groups: dict[tuple[str, str], list[str]] = {}
    for row in _sensitivity(tables, verdict):
        if row["label"] != verdict["label"]:
            groups.setdefault((row["setting"], row["label"]), []).append(str(row["choice"]))
    for (setting, label), choices in groups.items():
        yield f"{SETTINGS.get(setting, setting)} ({setting.replace('_', ' ')} {', '.join(choices)}): {label}."


def _sensitivity(tables: Tables, verdict: Row) -> list[Row]:
    key = ("seed", "arm", "from", "to")
    return [row for row in tables.get("sensitivity", ()) if all(row[name] == verdict[name] for name in key)]


def _cost(tables: Tables, verdict: Row) -> Iterator[str]:
    """What the model does at the last anchor, and did at the first."""
    rows = {
        (row["suite"], row["attack"], row["metric"], row["arm"], row["step"]): row
        for row in tables["behaviour"]
        if row["seed"] == verdict["seed"] and not row.get("group")
    }
    first = "base" if verdict["from"] == 0 else verdict["arm"]

    def change(suite: str, attack: str, metric: str) -> str | None:
        before = rows.get((suite, attack, metric, first, verdict["from"]))
        after = rows.get((suite, attack, metric, verdict["arm"], verdict["to"]))
        if after is None:
            return None
        was = f" (before: {percent(value_of(before))})" if before is not None else ""
        return f"{percent(value_of(after))}{was}"

    harmful = [
        f"{found} {where}"
        for attack, where in ATTACKS.items()
        if (found := change("harmbench", attack, "compliance")) is not None
    ]
    if harmful:
        yield f"It answers harmful requests: {', '.join(harmful)}."
    costs = [
        f"{words} {found}"
        for words, key in (
            ("refuses safe look-alikes", ("xstest_safe", "none", "any_refusal")),
            ("passes everyday tasks", ("utility", "none", "pass")),
            ("answers with gibberish", ("harmbench", "direct", "degenerate")),
        )
        if (found := change(*key)) is not None
    ]
    if costs:
        yield f"It {', '.join(costs)}."
