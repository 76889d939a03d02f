"""The report: one self-contained HTML file from a run's tables and artifacts; no model, no network, no GPU."""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from ..artifacts import write_bytes
from . import figures
from .captions import Figure, profile_of

# arXiv 2604.27019: Mistral-7B, LoRA, UltraChat. Facts beside which a run is shown, not targets.
PUBLISHED = (
    ("R2D2 fixed-source HarmBench ASR", ("0.000", "0.000", "0.035", "0.250")),
    ("R2D2 XSTest any-refusal (250 safe prompts)", ("1.000", "1.000", "0.664", "0.228")),
    ("R2D2 adaptive GCG ASR", ("0", "–", "0.415", "0.613")),
    ("R2D2 best admissible carrier", ("late layer", "late layer", "early layer", "early layer")),
    ("SFT fixed-source HarmBench ASR", ("0.505–0.588 over these anchors", "", "", "")),
)
# Columns of the trajectory's table: title, suite, attack, metric.
KEY_NUMBERS = (
    figures.TRAJECTORY[0],
    figures.TRAJECTORY[-1],
    figures.TRAJECTORY[1],
    ("Fixed-source − direct", "harmbench", "fixed_source", "compliance_minus_direct"),
    *figures.TRAJECTORY[2:-1],
    ("Direct: judged harmful", "harmbench", "direct", "harm"),
    ("Perplexity", "perplexity", "none", "perplexity"),
)
# What low compliance is never shown without.
BESIDE = {"xstest_safe": "XSTest safe", "xstest_unsafe": "XSTest unsafe"}
SENTENCES: Mapping[str, str] = {
    "relocation": "refusal moved: another site, and the old direction no longer controls it",
    "replacement in place": "refusal was replaced where it was: the old direction no longer controls it",
    "re-siting": "the site moved, but the old direction still controls refusal",
    "drift only": "the carrier turned, at the same site, and still controls refusal",
    "no change": "no change was found, with the precision to have found one",
    "undetermined": "the evidence does not settle what happened",
}


@dataclass(frozen=True)
class Fold:
    """A table that the page shows by itself, folded away in a section, with a paragraph below it."""

    table: str
    section: str
    title: str
    columns: tuple[str, ...]
    note: str


@dataclass(frozen=True)
class Content:
    """What the page is made of.

    Attributes:
        settings: the resolved configuration; config: the same as text. manifest: the run's. tables: rows by name.
        figures: of each seed, in the page's order. folds: tables that need no words of the page's own.
        sources: prompt sets. samples: answers, redacted already.
    """

    settings: Mapping[str, Any]
    config: str
    manifest: Mapping[str, Any]
    tables: figures.Tables
    figures: Mapping[int, Sequence[Figure]]
    folds: tuple[Fold, ...]
    sources: tuple[Mapping[str, Any], ...]
    samples: tuple[Mapping[str, Any], ...]
    show_answers: bool


def write_page(folder: Path, content: Content) -> Path:
    """Write `report/index.html` and `figures/*.svg` into a run directory; returns the page's path."""
    tables, settings, manifest = content.tables, content.settings, content.manifest
    for found in content.figures.values():
        for figure in found:
            name = re.sub(r"[^\w.-]+", "_", figure.name)  # arms of an observed series may be called anything
            write_bytes(folder / "figures" / f"{name}.svg", str(figure.svg).encode())
    html = rendered(
        "template.html",
        name=settings["name"],
        manifest=manifest,
        facts=manifest["facts"],
        config=content.config,
        chat_note=_chat_note(settings),
        tables=tables,
        folds=content.folds,
        seeds=list(content.figures),
        figures=content.figures,
        headlines=list(_headlines(tables)),
        columns=_trajectory(tables)[0],
        trajectory=_trajectory(tables)[1],
        warnings=list(_warnings(tables)),
        published=PUBLISHED,
        summary=_best_rows(tables),
        causal=[row for row in tables["causal"] if not row["control"].startswith("random")],
        coupling=[row for row in tables["causal"] if row["read_out"] == "utility_coupling"],
        dropped=tables["dropped"],
        samples=content.samples,
        show_answers=content.show_answers,
        judges=sorted({row["judge"] for row in tables["behaviour"] if row["judge"]}),
        sources=content.sources,
        answers=f"greedy, at most {settings['behaviour']['max_new_tokens']} tokens",
    )
    path = folder / "report" / "index.html"
    write_bytes(path, html.encode())
    return path


def rendered(template: str, **values: Any) -> str:
    """A page from one of this package's templates; everything from outside is escaped."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["cell"] = cell
    source = (resources.files(__package__) / template).read_text(encoding="utf-8")
    return environment.from_string(source).render(**values)


def cell(value: Any) -> str:
    """A table cell: numbers with three significant digits, nothing for null."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1e4 else f"{value:.2e}"
    return str(value)


def _chat_note(settings: Mapping[str, Any]) -> str:
    """What the chat data of the SFT term are, and what that means for the SFT arm (protocol §3)."""
    chat = settings["chat"]
    if chat["source"] != "self_distilled":
        return f"Chat data of the SFT term: {chat['path'] or chat['dataset']}."
    own = "Chat data of the SFT term: the backbone's own greedy answers"
    if settings["warmup"]["enabled"]:
        return f"{own}, given before the warm-up, so that plain SFT leads back to the backbone that refuses less."
    return f"{own}, so that plain SFT is nearly idle."


def _headlines(tables: figures.Tables) -> Iterator[dict[str, Any]]:
    """The first-to-last verdict of every arm and seed, in words."""
    rows = tables["verdict"]
    for seed, arm in dict.fromkeys((row["seed"], row["arm"]) for row in rows):
        mine = [row for row in rows if (row["seed"], row["arm"]) == (seed, arm)]
        whole = max(mine, key=lambda row: (row["to"] - row["from"], -row["from"]))
        site = next((row for row in tables["rank"] if row["seed"] == seed), {})
        yield {
            **whole,
            "sentence": SENTENCES[whole["label"]],
            "sentences": re.split(r"(?<=[.]) (?=[A-Z])", whole["reasons"]),
            "settings": ", ".join(
                f"{name} {value:g}" for name, value in json.loads(whole["thresholds"]).items()
            ),
            "site_admissible": site.get("site_admissible"),
        }


def _trajectory(tables: figures.Tables) -> tuple[list[dict[str, str]], list[dict[str, Any]]]:
    """Columns (title, judge) of the key numbers that were measured, and one row of cells per anchor, each with its
    interval and n."""
    columns: dict[str, set[str]] = {title: set() for title, *_ in KEY_NUMBERS}
    found: dict[tuple[int, str, int], dict[str, dict[str, Any]]] = {}
    for row in tables["behaviour"]:
        cells = found.setdefault((row["seed"], row["arm"], row["step"]), {})
        for title, *wanted in KEY_NUMBERS:
            if [row["suite"], row["attack"], row["metric"]] == wanted and not row.get("group"):
                cells[title] = _reading(row)
                columns[title].add(row["judge"] or "model")
    shown = {title for cells in found.values() for title in cells}
    heads = [{"title": k, "judge": ", ".join(sorted(v))} for k, v in columns.items() if k in shown]
    return heads, [{"seed": a, "arm": b, "step": c, "cells": cells} for (a, b, c), cells in found.items()]


def _reading(row: Mapping[str, Any]) -> dict[str, Any]:
    """A value, its interval and n; rates with two decimals."""

    def shown(value: float | None) -> str:
        return f"{value:.2f}" if value is not None and abs(value) <= 1 else cell(value)

    return {
        "value": shown(row["value"]),
        "interval": f"[{shown(row['lo'])}, {shown(row['hi'])}]",
        "n": row["n"],
    }


def _warnings(tables: figures.Tables) -> Iterator[str]:
    """What must be known before the behaviour is read."""
    for seed, note in dict.fromkeys(
        (row["seed"], row["note"]) for row in tables["behaviour"] if row.get("note")
    ):
        yield f"Fixed-source attack (seed {seed}): {note}."
    measured = {row["suite"] for row in tables["behaviour"]}
    missing = [name for suite, name in BESIDE.items() if suite not in measured]
    if missing:
        yield f"Not measured: {', '.join(missing)}. Low compliance may be blanket refusal."


def _best_rows(tables: figures.Tables) -> list[Mapping[str, Any]]:
    """Carrier summaries, one row per anchor and quantity: those of the study's profile first."""
    rows = [row for row in tables.get("carrier_summary", ()) if row["quantity"] != "argmin_depth"]
    return sorted(rows, key=lambda row: row["profile"] != profile_of(tables))
