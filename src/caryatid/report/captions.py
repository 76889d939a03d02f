"""All figures of a run, each with a caption that says what its numbers rest on: judge, profile, and n."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from markupsafe import Markup

from . import causal_figures, figures

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
    """A figure's name, its caption, and its SVG; a notebook shows the drawing above the caption."""

    name: str
    caption: str
    svg: Markup

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


def drawn_figures(tables: figures.Tables, basis: Basis, seed: int) -> Iterator[Figure]:
    """All figures of one seed; with several seeds each caption names its own."""
    for figure in _figures(tables, basis, seed):
        named = replace(figure, name=f"{figure.name}-seed{seed}")
        yield replace(named, caption=f"Seed {seed}. {figure.caption}") if basis.several else named


def _figures(tables: figures.Tables, basis: Basis, seed: int) -> Iterator[Figure]:
    yield Figure(
        "behaviour",
        f"Judges: {_judges(tables, 'compliance')} (answered, refused, passed; offline, its rates are proxies), "
        f"{_judges(tables, 'degenerate')} (degenerate). Bars: 95 % Wilson intervals; n: the table below.",
        Markup(figures.behaviour_figure(tables, seed)),
    )
    profile = profile_of(tables)
    scored = f"Teacher-forced on {basis.prompts('selection')}."
    for arm in figures.arms_of(tables, seed):
        yield Figure(
            f"bypass-{arm}",
            f"Profile: {_thresholds(basis, profile)}{_selector(tables)}. Numbers: gap-normalised bypass effect (1 = "
            f"ablation removes the whole gap between harmful and harmless prompts). {scored} Hover a cell for its "
            f"induce effect and KL.{_none_admissible(tables, seed, arm, profile)}",
            Markup(figures.heat_map(tables, seed, arm, profile)),
        )
    if any(row["seed"] == seed for row in tables.get("threshold_sweep", ())):
        yield Figure(
            "bypass-sweep",
            f"Profile {profile} with other KL cuts. {scored} No point: no candidate is admissible under that cut, or "
            "the refusal gap is too small.",
            Markup(figures.sweep_figure(tables, seed)),
        )
    yield Figure(
        "geometry",
        f"Per-category directions, unit norm, of {basis.prompts('extraction')}{_site(tables, seed)} Bars: 95 % "
        "jackknife over extraction prompts.",
        Markup(figures.geometry_figure(tables, seed)),
    )
    yield from _causal_figures(tables, seed)


def _causal_figures(tables: figures.Tables, seed: int) -> Iterator[Figure]:
    """Read-outs, dose response, layer profile and transfer of one seed."""
    for read_out, words in READ_OUTS:
        rows = [row for row in tables["causal"] if (row["read_out"], row["seed"]) == (read_out, seed)]
        if rows:
            caption = _read_out(rows, words, read_out.endswith(causal_figures.RATES))
            svg = causal_figures.causal_figure(tables, seed, read_out, words)
            yield Figure(f"causal-{read_out}", caption, Markup(svg))
    if any(row["seed"] == seed for row in tables["causal"]):
        yield Figure(
            "causal-dose",
            "Teacher-forced, at the anchors with a dose response: refusal score on harmful prompts (nats) against the "
            "NLL of benign answers. Grey line: the frontier, less refusal at no more cost. Hover a point for numbers.",
            Markup(causal_figures.frontier_figure(tables, seed)),
        )
    if any(row["seed"] == seed for row in tables.get("localisation", ())):
        yield Figure(
            "causal-layers",
            "Teacher-forced. Ablation at one block's input and sublayer outputs alone. Bars: 95 % bootstrap over the "
            "prompts.",
            Markup(causal_figures.profile_figure(tables, seed)),
        )
    judge = next((row["judge"] for row in tables["verdict"] if row.get("judge")), "none")
    yield Figure(
        "transfer-control",
        f"Judge: {judge}. Shares of the refusals that each anchor gave: 95 % Wilson intervals; n: the next figure. "
        "Ratio: each bound one-sided at 95 %; missing where an anchor refuses nothing, or its own carrier removes "
        "nothing.",
        Markup(causal_figures.control_figure(tables, seed)),
    )
    yield Figure(
        "transfer",
        f"Judge: {judge}. Evaluation prompts used for neither extraction nor selection; n: refusals of that anchor, "
        "asked again under each carrier. Grey: not measured, or nothing refused.",
        Markup(figures.transfer_figure(tables, seed)),
    )


def _read_out(rows: list[figures.Row], words: str, rate: bool) -> str:
    """What a read-out's numbers rest on."""
    judges = " + ".join(sorted({str(row["judge"]) for row in rows}))
    counts = sorted({int(row["n"]) for row in rows})
    n = f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]}"
    lines = "95 % Wilson intervals" if rate else "95 % bootstrap intervals over the prompts"
    text = f"{words}: {'generated answers, judge ' if rate else ''}{judges}, {n}. Lines: {lines}."
    if any(row["control"] == "random" for row in rows):
        return (
            f"{text} Random: one dot a draw, of the same rank and the same mean ‖Px‖² on benign activations."
        )
    return f"{text} No random controls here."


def _judges(tables: figures.Tables, metric: str) -> str:
    found = {row["judge"] for row in tables["behaviour"] if row["metric"] == metric and row["judge"]}
    return ", ".join(sorted(found)) or "none"


def profile_of(tables: figures.Tables) -> str:
    """The profile that the verdict used."""
    return next((row["profile"] for row in tables["verdict"] if row.get("profile")), "published")


def _selector(tables: figures.Tables) -> str:
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


def _site(tables: figures.Tables, seed: int) -> str:
    """The one place at which anchors are compared, and whether it means anything."""
    row = next((r for r in tables["rank"] if r["seed"] == seed and r["quantity"] == "effective_rank"), None)
    if row is None or row.get("layer") is None:
        return ", at step 0's site."
    place = f" in {row['n']} categories, at step 0's site: input of layer {row['layer']}, position {row['position']}."
    if row["site_admissible"]:
        return place
    return f"{place} Step 0 has no admissible carrier: this is the site of a stand-in, and says little about refusal."


def _none_admissible(tables: figures.Tables, seed: int, arm: str, profile: str) -> str:
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
        " Without a gap there is nothing to normalise by, and the row stays blank." if blank else ""
    )
