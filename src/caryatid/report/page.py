"""The report: one self-contained HTML file from a run's tables and artifacts; no model, no network, no GPU."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from ..artifacts import read_json, write_bytes
from ..errors import UsageError
from . import causal_figures, figures
from .tables import read_tables

CONTRACT = ("behaviour", "carriers", "rank", "drift", "transfer", "causal", "training", "verdict")
HARMFUL_SUITES = frozenset({"harmbench", "strongreject", "xstest_unsafe"})
SAMPLE_ANSWERS = 3
READ_OUTS = (
    ("harmbench_any_refusal", "Harmful requests refused (generated answers)"),
    ("xstest_safe_any_refusal", "XSTest-safe prompts refused (generated answers)"),
    ("xstest_unsafe_any_refusal", "XSTest-unsafe prompts refused (generated answers)"),
    ("utility_pass", "Utility audit passed (generated answers)"),
    ("refusal_score", "Refusal score on harmful prompts, nats (teacher-forced, with random controls)"),
    ("benign_kl", "KL on benign answers, nats per token (teacher-forced, with random controls)"),
)
# arXiv 2604.27019: Mistral-7B, LoRA, UltraChat. Facts beside which a run is shown, not targets.
PUBLISHED = (
    ("R2D2 fixed-source HarmBench ASR", ("0.000", "0.000", "0.035", "0.250")),
    ("R2D2 XSTest any-refusal (250 safe prompts)", ("1.000", "1.000", "0.664", "0.228")),
    ("R2D2 adaptive GCG ASR", ("0", "–", "0.415", "0.613")),
    ("R2D2 best admissible carrier", ("late layer", "late layer", "early layer", "early layer")),
    ("SFT fixed-source HarmBench ASR", ("0.505–0.588 over these anchors", "", "", "")),
)
SENTENCES: Mapping[str, str] = {
    "relocation": "refusal moved: another site, and the old direction no longer controls it",
    "replacement in place": "refusal was replaced where it was: the old direction no longer controls it",
    "re-siting": "the site moved, but the old direction still controls refusal",
    "drift only": "the carrier turned, at the same site, and still controls refusal",
    "no change": "no change was found, with the precision to have found one",
    "undetermined": "the evidence does not settle what happened",
}


@dataclass(frozen=True)
class Figure:
    """A figure's file name, its caption, and its SVG."""

    name: str
    caption: str
    svg: Markup


def build_report(run: Path, *, show_answers: bool = False) -> Path:
    """Write `report/index.html` and `figures/*.svg` from artifacts; answers to harmful prompts stay redacted.

    Raises:
        UsageError: the run has no tables yet.
    """
    tables = read_tables(run)
    missing = [name for name in CONTRACT if name not in tables]
    if missing:
        raise UsageError(
            f"no table {missing[0]!r} yet",
            where=str(run),
            remedy="Finish the study with `caryatid study run`.",
        )
    manifest = read_json(run / "manifest.json")
    seeds = sorted({row["seed"] for row in tables["behaviour"]})
    drawn = {seed: list(_figures(tables, manifest, seed)) for seed in seeds}
    for found in drawn.values():
        for figure in found:
            write_bytes(run / "figures" / f"{figure.name}.svg", str(figure.svg).encode())
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["cell"] = cell
    template = environment.from_string(
        (resources.files("caryatid.report") / "template.html").read_text(encoding="utf-8")
    )
    html = template.render(
        name=_config_value(run, "name") or run.name,
        manifest=manifest,
        facts=manifest["facts"],
        config=(run / "config.yaml").read_text(encoding="utf-8"),
        tables=tables,
        seeds=seeds,
        figures=drawn,
        headlines=list(_headlines(tables)),
        trajectory=list(_trajectory(tables)),
        published=PUBLISHED,
        summary=_best_rows(tables),
        causal=[row for row in tables["causal"] if not row["control"].startswith("random")],
        coupling=[row for row in tables["causal"] if row["read_out"] == "utility_coupling"],
        dropped=tables.get("dropped", []),
        samples=list(_samples(run, manifest, show_answers)),
        show_answers=show_answers,
        judges=sorted({row["judge"] for row in tables["behaviour"] if row["judge"]}),
        sources=_sources(run, manifest),
    )
    path = run / "report" / "index.html"
    write_bytes(path, html.encode())
    return path


def cell(value: Any) -> str:
    """A table cell: numbers with three significant digits, nothing for null."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1e4 else f"{value:.2e}"
    return str(value)


def _config_value(run: Path, key: str) -> str | None:
    for line in (run / "config.yaml").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{key}:"):
            return line.partition(":")[2].strip()
    return None


def _figures(tables: figures.Tables, manifest: Mapping[str, Any], seed: int) -> Iterator[Figure]:
    """All figures of one seed, with captions that say what the numbers rest on."""
    suffix = f"-seed{seed}"
    judge = next((row["judge"] for row in tables["behaviour"] if row["judge"]), "none")
    interval = "Bars: 95 % Wilson intervals; hover a point for its n."
    yield Figure(
        f"behaviour{suffix}",
        f"Judge: {judge} (an offline judge; its rates are proxies). {interval}",
        Markup(figures.behaviour_figure(tables, seed)),
    )
    profile = _profile(tables)
    for arm in figures.arms_of(tables, seed):
        none = _none_admissible(tables, seed, arm, profile)
        yield Figure(
            f"bypass-{arm}{suffix}",
            f"Profile: {profile}, selector: {_selector(tables)}. Numbers: gap-normalised bypass effect (1 = ablation "
            f"removes the whole gap between harmful and harmless prompts).{none}",
            Markup(figures.heat_map(tables, seed, arm, profile)),
        )
    if any(row["seed"] == seed for row in tables.get("threshold_sweep", ())):
        yield Figure(
            f"bypass-sweep{suffix}",
            f"Profile {profile} with other KL cuts. No point: no candidate is admissible under that cut, or the "
            "refusal gap is too small.",
            Markup(figures.sweep_figure(tables, seed)),
        )
    yield Figure(
        f"geometry{suffix}",
        "Per-category directions, unit norm, at step 0's carrier site. Bars: 95 % jackknife over extraction prompts.",
        Markup(figures.geometry_figure(tables, seed)),
    )
    yield from _causal_figures(tables, seed, suffix)


def _causal_figures(tables: figures.Tables, seed: int, suffix: str) -> Iterator[Figure]:
    """Read-outs, dose response, layer profile and transfer of one seed."""
    for read_out, words in READ_OUTS:
        if any(row["read_out"] == read_out and row["seed"] == seed for row in tables["causal"]):
            yield Figure(
                f"causal-{read_out}{suffix}",
                f"{words}. Random controls have the carrier's rank and the same mean ‖Px‖² on benign activations.",
                Markup(figures.causal_figure(tables, seed, read_out)),
            )
    if any(row["seed"] == seed for row in tables["causal"]):
        yield Figure(
            f"causal-dose{suffix}",
            "Teacher-forced, at the anchors with a dose response: refusal score on harmful prompts (nats) against the "
            "NLL of benign answers. Grey line: the frontier, less refusal at no more cost. Hover a point for numbers.",
            Markup(causal_figures.frontier_figure(tables, seed)),
        )
    if any(row["seed"] == seed for row in tables.get("localisation", ())):
        yield Figure(
            f"causal-layers{suffix}",
            "Ablation at one block's input and sublayer outputs alone. Bars: 95 % bootstrap over the prompts.",
            Markup(causal_figures.profile_figure(tables, seed)),
        )
    yield Figure(
        f"transfer-control{suffix}",
        "Shares: 95 % Wilson intervals. Ratio: each bound one-sided at 95 %; missing where an anchor refuses nothing, "
        "or its own carrier removes nothing.",
        Markup(causal_figures.control_figure(tables, seed)),
    )
    yield Figure(
        f"transfer{suffix}",
        "Evaluation prompts used for neither extraction nor selection; grey: not measured, or nothing refused.",
        Markup(figures.transfer_figure(tables, seed)),
    )


def _profile(tables: figures.Tables) -> str:
    """The profile that the verdict used."""
    return next((row["profile"] for row in tables["verdict"] if row.get("profile")), "published")


def _selector(tables: figures.Tables) -> str:
    """By what carriers were picked."""
    return next((row["selector"] for row in tables["verdict"] if row.get("selector")), "bypass")


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
    blank = not {"no refusal", "undiscriminating refusal", "gap too small"}.isdisjoint(reasons.values())
    return f" No carrier at {named}." + (
        " Without a gap there is nothing to normalise by, and the row stays blank." if blank else ""
    )


def _headlines(tables: figures.Tables) -> Iterator[dict[str, Any]]:
    """The first-to-last verdict of every arm and seed, in words."""
    rows = tables["verdict"]
    for seed, arm in dict.fromkeys((row["seed"], row["arm"]) for row in rows):
        mine = [row for row in rows if (row["seed"], row["arm"]) == (seed, arm)]
        whole = max(mine, key=lambda row: (row["to"] - row["from"], -row["from"]))
        yield {**whole, "sentence": SENTENCES[whole["label"]]}


def _trajectory(tables: figures.Tables) -> Iterator[dict[str, Any]]:
    """One row per anchor with the key numbers, each with its interval and n."""
    found: dict[tuple[int, str, int], dict[str, str]] = {}
    for row in tables["behaviour"]:
        key = (row["suite"], row["attack"], row["metric"])
        for title, *wanted in (*figures.TRAJECTORY, ("Perplexity", "perplexity", "none", "perplexity")):
            if list(key) == wanted and not row.get("group"):
                words = f"{cell(row['value'])} [{cell(row['lo'])}, {cell(row['hi'])}] n={row['n']}"
                found.setdefault((row["seed"], row["arm"], row["step"]), {})[title] = words
    for (seed, arm, step), cells in found.items():
        yield {"seed": seed, "arm": arm, "step": step, "cells": cells}


def _best_rows(tables: figures.Tables) -> list[Mapping[str, Any]]:
    """Carrier summaries under both profiles, one row per anchor and quantity."""
    return [row for row in tables.get("carrier_summary", ()) if row["quantity"] != "argmin_depth"]


def _sources(run: Path, manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every prompt set with its role, size, source and licence."""
    for entry in manifest["stages"].values():
        stored = run / entry["folder"] / "prompts.json"
        if entry["kind"] == "prompts" and stored.exists():
            sets = read_json(stored)["sets"]
            return [
                {
                    "field": name,
                    "n": len(one["prompts"]),
                    **{k: one[k] for k in ("role", "source", "licence")},
                }
                for name, one in sets.items()
            ]
    return []


def _samples(run: Path, manifest: Mapping[str, Any], show: bool) -> Iterator[dict[str, Any]]:
    """A few answers of each suite at each anchor; those to harmful prompts redacted unless asked for."""
    for name, entry in manifest["stages"].items():
        stored = run / entry["folder"] / "answers.json"
        if entry["kind"] != "answers" or not stored.exists():
            continue
        rows = read_json(stored)
        for suite, attack in dict.fromkeys((row["suite"], row["attack"]) for row in rows):
            mine: Sequence[dict[str, Any]] = [r for r in rows if (r["suite"], r["attack"]) == (suite, attack)]
            for row in mine[:SAMPLE_ANSWERS]:
                hidden = suite in HARMFUL_SUITES and not show
                yield {
                    "anchor": name.split("/", 1)[1],
                    "suite": suite,
                    "attack": attack,
                    "prompt": row["user_text"],
                    "answer": f"[redacted, {len(row['text'])} characters]" if hidden else row["text"],
                    "verdict": row["verdict"] or "unscored",
                    "judge": row["judge"],
                    "degenerate": row["degenerate"] or "",
                }
