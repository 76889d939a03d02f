"""All figures of a run, each with a caption that says what its numbers rest on: judge, profile, and n."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from markupsafe import Markup

from . import causal_figures, figures
from .charts import Chart, Row, Tables, arms_of
from .plot import drawn

READ_OUTS = (
    ("harmbench_any_refusal", "Harmful requests refused"),
    ("harmbench_degenerate", "Harmful requests answered with gibberish"),
    ("xstest_safe_any_refusal", "XSTest-safe prompts refused"),
    ("xstest_unsafe_any_refusal", "XSTest-unsafe prompts refused"),
    ("utility_pass", "Utility audit passed"),
    ("refusal_score", "Refusal score on harmful prompts, nats"),
    ("benign_kl", "KL on benign answers, nats per token"),
)
NO_GAP = frozenset({"no refusal", "undiscriminating refusal", "gap too small"})


@dataclass(frozen=True)
class Figure:
    """A figure's name, its section of the page, its caption, and what it draws; a notebook shows the drawing above the
    caption. `folded`: the page shows it where details are unfolded."""

    name: str
    section: str
    caption: str
    chart: Chart
    folded: bool = False

    @cached_property
    def svg(self) -> Markup:
        """The drawing, for a web page or a file."""
        return Markup(drawn(self.chart, "svg")[0].decode())

    @cached_property
    def pdf(self) -> bytes:
        """The drawing, for a paper."""
        return drawn(self.chart, "pdf")[0]

    def _repr_html_(self) -> str:
        return str(Markup("<figure>{}<figcaption>{}</figcaption></figure>").format(self.svg, self.caption))


@dataclass(frozen=True)
class Basis:
    """What captions name besides the tables.

    Attributes:
        sizes: number of prompts by field. settings: the run's configuration. several: there is more than one seed.
    """

    sizes: Mapping[str, int]
    settings: Mapping[str, Any]
    several: bool

    def prompts(self, role: str) -> str:
        """`24 harmful and 24 harmless extraction prompts`."""
        harmful, harmless = (self.sizes.get(f"{role}_{side}", "–") for side in ("harmful", "harmless"))
        return f"{harmful} harmful and {harmless} harmless {role} prompts"


def drawn_figures(tables: Tables, basis: Basis, seed: int) -> Iterator[Figure]:
    """All figures of one seed; with several seeds each caption names its own."""
    for figure in _figures(tables, basis, seed):
        named = replace(figure, name=f"{figure.name}-seed{seed}")
        yield replace(named, caption=f"Seed {seed}. {figure.caption}") if basis.several else named


def _figures(tables: Tables, basis: Basis, seed: int) -> Iterator[Figure]:
    yield Figure(
        "behaviour",
        "behaviour",
        f"Judges: {_judges(tables, 'compliance')} (answered, refused, passed; offline, its rates are proxies), "
        f"{_judges(tables, 'degenerate')} (degenerate). Bars: 95 % Wilson intervals; n: the table below.",
        figures.behaviour_chart(tables, seed),
    )
    yield Figure(
        "frontier",
        "frontier",
        "Up: withstands more requests of the strongest attack that was measured. Right: costs less. Numbers: steps. "
        "Withstood includes degenerate answers, so read it beside degeneracy above.",
        figures.frontier_chart(tables, seed),
    )
    profile = profile_of(tables)
    scored = f"Teacher-forced on {basis.prompts('selection')}."
    for arm in arms_of(tables, seed):
        yield Figure(
            f"bypass-{arm}",
            "carriers",
            f"Profile: {_thresholds(basis, profile)}{_selector(tables)}. Numbers: gap-normalised bypass effect (1 = "
            f"ablation removes the whole gap between harmful and harmless prompts), at each layer's best position. "
            f"{scored}{no_carrier(tables, seed, arm, profile)}",
            figures.map_chart(tables, seed, arm, profile),
        )
    if any(row["seed"] == seed for row in tables.get("threshold_sweep", ())):
        yield Figure(
            "bypass-sweep",
            "carriers",
            f"Profile {profile} with other KL cuts. {scored} No point: no candidate is admissible under that cut, or "
            "the refusal gap is too small.",
            figures.sweep_chart(tables, seed),
            True,
        )
    yield Figure(
        "geometry",
        "geometry",
        f"Per-category directions, unit norm, of {basis.prompts('extraction')}{_site(tables, seed)} Bars: 95 % "
        "jackknife over extraction prompts. Band: what the published study reports of its own model.",
        figures.geometry_chart(tables, seed),
    )
    yield Figure(
        "drift",
        "geometry",
        f"Corrected angle between mean directions at the pair's first anchor's site, of {basis.prompts('extraction')}. "
        f"Bars: 95 % intervals over extraction prompts. Dashed: {basis.settings['verdict']['angle']:g}°, from which on "
        f"a turn counts. {_nulls(tables, seed)}",
        figures.drift_chart(tables, seed, float(basis.settings["verdict"]["angle"])),
    )
    yield from _causal_figures(tables, seed)
    if tables.get("training"):
        yield Figure(
            "training",
            "training",
            "Losses: means since the anchor before; the attack's: a moving average. Distances: since step 0.",
            figures.training_chart(tables, seed),
        )


def _nulls(tables: Tables, seed: int) -> str:
    """What the nulls say, which a turn must be seen beside."""
    rows = [row for row in tables.get("nulls", ()) if row["seed"] == seed]
    again = [row for row in rows if row["kind"] == "same_checkpoint" and row["count"]]
    said = ", ".join(f"{row['label']} ({row['arm']} {row['step']}) {row['count']}" for row in again)
    parts = [f"One checkpoint against itself, prompts drawn anew: {said}." if said else ""]
    if any(row["kind"] == "same_regime" for row in rows):
        parts.append("Flat marks: the angle between two seeds of the same recipe.")
    return " ".join(filter(None, parts)) or "No nulls were run (caryatid study run --null)."


def _causal_figures(tables: Tables, seed: int) -> Iterator[Figure]:
    """Read-outs, dose response, layer profile and transfer of one seed."""
    for read_out, title in READ_OUTS:
        rows = [row for row in tables["causal"] if (row["read_out"], row["seed"]) == (read_out, seed)]
        if rows:
            caption = _read_out(rows, title, read_out.endswith(causal_figures.RATES))
            chart = causal_figures.causal_chart(tables, seed, read_out, title)
            yield Figure(f"causal-{read_out}", "causal", caption, chart, True)
    if any(row["seed"] == seed for row in tables["causal"]):
        yield Figure(
            "causal-dose",
            "causal",
            "Down: less refusal (score on harmful prompts, nats). Left: less cost (NLL of benign answers). A point is "
            "an intervention of one rank (k) or strength (α); grey line: the frontier, less refusal at no more cost. "
            "Teacher-forced, at the anchors with a dose response.",
            causal_figures.dose_chart(tables, seed),
        )
    if any(row["seed"] == seed for row in tables.get("localisation", ())):
        yield Figure(
            "causal-layers",
            "causal",
            "By how much the refusal score on harmful prompts falls when the carrier is ablated at one block alone "
            "(its input and what its sublayers add). Teacher-forced; bars: 95 % bootstrap over the prompts.",
            causal_figures.layers_chart(tables, seed),
        )
    judge = next((row["judge"] for row in tables["verdict"] if row.get("judge")), "none")
    yield Figure(
        "transfer",
        "transfer",
        f"Judge: {judge}. Evaluation prompts used for neither extraction nor selection; rank 1; n: refusals of that "
        "anchor, asked again under each carrier. Blank: not measured, or nothing refused.",
        figures.transfer_chart(tables, seed),
    )
    yield Figure(
        "transfer-control",
        "transfer",
        f"Judge: {judge}. Shares of the refusals that each anchor gave, rank 1: 95 % Wilson intervals; n: the figure "
        "above. Ratio: each bound one-sided at 95 %; missing where an anchor refuses nothing, or its own carrier "
        "removes nothing.",
        causal_figures.control_chart(tables, seed),
    )


def _read_out(rows: list[Row], title: str, rate: bool) -> str:
    """What a read-out's numbers rest on."""
    judges = " + ".join(sorted({str(row["judge"]) for row in rows}))
    counts = sorted({int(row["n"]) for row in rows})
    n = f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]}"
    lines = "95 % Wilson intervals" if rate else "95 % bootstrap intervals over the prompts"
    text = f"{title}: {'generated answers, judge ' if rate else ''}{judges}, {n}. Lines: {lines}."
    if any(row["control"] == "random" for row in rows):
        return (
            f"{text} Random: one dot a draw, of the same rank and the same mean ‖Px‖² on benign activations."
        )
    return f"{text} No random controls here."


def _judges(tables: Tables, metric: str) -> str:
    found = {row["judge"] for row in tables["behaviour"] if row["metric"] == metric and row["judge"]}
    return ", ".join(sorted(found)) or "none"


def profile_of(tables: Tables) -> str:
    """The profile that the verdict used."""
    return next((row["profile"] for row in tables["verdict"] if row.get("profile")), "published")


def _selector(tables: Tables) -> str:
    """By what carriers were picked, where the verdicts say it."""
    found = next((row["selector"] for row in tables["verdict"] if row.get("selector")), "")
    return f", selector: {found}" if found else ""


def _thresholds(basis: Basis, name: str) -> str:
    """A profile with the thresholds it had in this run."""
    used = basis.settings["geometry"][name]
    parts = [f"KL ≤ {used['kl_max']:g}"]
    if used["induce_min"] is not None:
        parts.append(f"induce ≥ {used['induce_min']:g} nats")
    if used["effects_min"] is not None:
        parts.append(f"both effects ≥ {used['effects_min']:g}")
    return f"{name} ({', '.join(parts)}, first {used['depth_fraction']:.0%} of the layers)"


def _site(tables: Tables, seed: int) -> str:
    """The one place at which anchors are compared, and whether it means anything."""
    row = next((r for r in tables["rank"] if r["seed"] == seed and r["quantity"] == "effective_rank"), None)
    if row is None or row.get("layer") is None:
        return ", at step 0's site."
    place = f" in {row['n']} categories, at step 0's site: input of layer {row['layer']}, position {row['position']}."
    if row["site_admissible"]:
        return place
    return f"{place} Step 0 has no admissible carrier: this is the site of a stand-in, and says little about refusal."


def without_carrier(tables: Tables, profile: str) -> list[str]:
    """Where an arm has no carrier under a profile and why, a sentence or two for each seed and arm."""
    found = []
    for seed, arm in dict.fromkeys((row["seed"], row["arm"]) for row in tables["carriers"]):
        if arm != "base" and (said := no_carrier(tables, seed, arm, profile)):
            found.append(f"{arm}, seed {seed}:{said}")
    return found


def no_carrier(tables: Tables, seed: int, arm: str, profile: str) -> str:
    """At which steps an arm has no carrier under a profile, and why; empty where it has one at all of them."""
    rows = [
        row
        for row in tables["carriers"]
        if (row["seed"], row["profile"]) == (seed, profile) and row["arm"] in ("base", arm)
    ]
    without = sorted({row["step"] for row in rows} - {row["step"] for row in rows if row["best"]})
    if not without:
        return ""
    reasons = {
        row["step"]: row["reason"]
        for row in tables.get("carrier_summary", [])
        if (row["seed"], row["profile"]) == (seed, profile) and row["arm"] in ("base", arm) and row["reason"]
    }
    named = ", ".join(f"step {step} ({reasons.get(step, 'no admissible carrier')})" for step in without)
    blank = not NO_GAP.isdisjoint(reasons.values())
    return f" No carrier at {named}." + (
        " Without a gap there is nothing to normalise by, and its column stays blank." if blank else ""
    )
