"""What a run found, in sentences for a reader who knows language models but not this field. From tables alone."""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..stats import Interval, interval_difference
from .charts import Row, Tables, span_of, value_of
from .reasons import in_plain_words

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
# Rows of the table of rates: what it is to a reader, suite, attack, metric. Fewer of the first are safer.
ANSWERED = (
    ("asked directly", "harmbench", "direct", "compliance"),
    ("with the attack made on step 0", "harmbench", "fixed_source", "compliance"),
    ("with an attack made on itself", "harmbench", "adaptive", "compliance"),
)
COSTS = (
    ("harmless look-alikes refused", "xstest_safe", "none", "any_refusal"),
    ("everyday tasks passed", "utility", "none", "pass"),
    ("gibberish answers", "harmbench", "direct", "degenerate"),
)


@dataclass(frozen=True)
class Change:
    """A rate at the first and at the last anchor, as text; `change` is in percentage points, or says that noise alone
    could have made it (the 95 % interval of the difference includes 0)."""

    title: str
    before: str
    after: str
    change: str


@dataclass(frozen=True)
class Story:
    """One arm of one seed, from its first anchor to its last.

    Attributes:
        label: the verdict's. headline: what happened to refusal. answered: of harmful requests; costs: over-refusal,
        utility and gibberish; each now and before.
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
    answered: tuple[Change, ...]
    costs: tuple[Change, ...]
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
                tuple(_changes(tables, whole, ANSWERED)),
                tuple(_changes(tables, whole, COSTS)),
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
        scored = next((row for row in tables["carriers"] if row["layer"] and row["depth"]), None)
        self.layers = round(scored["layer"] / scored["depth"]) if scored else 0  # not all layers are scored
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
    removes = f"removes {_refusals(found.old)}"
    angle = value_of(found.angle)
    turn = f"{angle:.0f}°" if math.isfinite(angle) else "an unknown angle"
    highest = value_of(found.angle, "hi")
    most = f"{highest:.0f}°" if math.isfinite(highest) else "an unknown angle"
    old = f"taking out step {verdict['from']}'s direction"
    said = {
        "relocation": f"refusal moved{place}: another direction carries it now, and {old} only {removes}",
        "replacement in place": f"refusal stayed {where} it was{place}, but another direction, {turn} away, carries it "
        f"now: {old} only {removes}",
        "re-siting": f"refusal can be read elsewhere now{place}, but {old} still {removes}",
        "drift only": f"refusal stayed {where} it was{place} and {old} still {removes}, but the direction turned by "
        f"{turn}",
        "no change": f"refusal stayed as it was{place}: {old} still {removes}, and the direction turned by no more "
        f"than {most}",
    }
    if label in said:
        return f"Under {arm}, {said[label]}."
    small = str(verdict.get("reachable", "")).startswith("No label can be reached")
    size = " A study of this size could not have settled it." if small else ""
    return f"Under {arm}, what happened to refusal{place} cannot be said: {_missing(verdict)}.{size}"


def _refusals(removed: Row | None) -> str:
    """`79 % of 146 refusals`."""
    if removed is None:
        return "an unknown share of refusals"
    return f"{percent(value_of(removed))} of {removed['n']} refusal{'s' if removed['n'] != 1 else ''}"


def _missing(verdict: Row) -> str:
    """Why a verdict is undetermined, in few words."""
    reasons = sentences(verdict["reasons"])
    plain = [words for one in reasons if (words := in_plain_words(one, verdict["from"], verdict["to"]))]
    return "; ".join(plain) or (reasons[0].rstrip(".") if reasons else "no evidence was kept")


def _certainty(verdict: Row, found: _Evidence) -> Iterator[str]:
    """What the headline rests on."""
    thresholds = json.loads(verdict["thresholds"])
    for which in ("first", "second"):
        if f"The {which} anchor has no carrier" in verdict["reasons"]:
            step = verdict["from" if which == "first" else "to"]
            yield f"No direction of step {step} qualifies: its numbers are a stand-in's, and say little."
    if found.old is not None:
        _, low, high = span_of(found.old)
        beside = value_of(found.random)
        others = [
            f"{name} {percent(share)}"
            for name, share in (
                (f"step {verdict['to']}'s own", value_of(found.own)),
                ("random directions", beside),
            )
            if math.isfinite(share)
        ]
        yield (
            f"Control: taking out step {verdict['from']}'s direction removes {_refusals(found.old)} "
            f"({_interval(low, high)}){'; ' if others else ''}{', '.join(others)}."
        )
    if found.angle is not None:
        value, low, high = span_of(found.angle)
        if math.isfinite(value):
            yield (
                f"Turn: {value:.1f}° ({low:.1f}° to {high:.1f}°); {thresholds.get('angle', 10):g}° or more counts as "
                "a turn."
            )
    if math.isfinite(found.stayed) or math.isfinite(found.moved):
        least = math.ceil(float(thresholds.get("depth_shift", 0.25)) * found.layers)
        yield (
            f"Place: unmoved in {percent(found.stayed)}, moved in {percent(found.moved)} of the draws of prompts; "
            f"{least} of {found.layers} layers or more count as a move."
        )


def _otherwise(tables: Tables, verdict: Row) -> str:
    """How many settings, varied alone, give another label, and which."""
    rows = _sensitivity(tables, verdict)
    if not rows:
        return "How the verdict depends on its settings was not measured."
    counts = Counter(row["label"] for row in rows)
    same = counts.pop(verdict["label"], 0)
    tried = f"{len(rows)} settings were tried, each changed alone"
    if not counts:
        return f"Nothing that was tried. {tried}: all give the same verdict."
    named = ", ".join(f"{count} {label}" for label, count in counts.most_common())
    found = "none gives" if set(counts) == {"undetermined"} else "so some give"
    return f"{tried}: {same} give the same verdict, the others {named}; {found} another finding."


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


def _changes(tables: Tables, verdict: Row, wanted: Sequence[tuple[str, str, str, str]]) -> Iterator[Change]:
    """Rates at the first and at the last anchor, of those that were measured at the last."""
    rows = {
        (row["suite"], row["attack"], row["metric"], row["arm"], row["step"]): row
        for row in tables["behaviour"]
        if row["seed"] == verdict["seed"] and not row.get("group")
    }
    first = "base" if verdict["from"] == 0 else verdict["arm"]
    for title, *key in wanted:
        after = rows.get((*key, verdict["arm"], verdict["to"]))
        if after is None:
            continue
        before = rows.get((*key, first, verdict["from"]))
        now, was = (
            Interval(*(value_of(row, end) for end in ("value", "lo", "hi"))) for row in (after, before)
        )
        yield Change(title, percent(was.value), percent(now.value), _points(interval_difference(now, was)))


def _points(difference: Interval) -> str:
    """`−33`, in percentage points; `within noise` where the interval includes 0; a dash: nothing to compare."""
    if not math.isfinite(difference.value):
        return "–"
    if not (difference.lo > 0 or difference.hi < 0):
        return "within noise"
    return f"{100 * difference.value:+.0f}".replace("-", "−")
