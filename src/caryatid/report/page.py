"""The report: one self-contained HTML file from a run's tables and artifacts; no model, no network, no GPU."""

import base64
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from ..artifacts import write_bytes
from ..models.planted import PLANTED
from ..texts import visible
from . import figures
from .captions import Figure, no_carrier, profile_of, without_carrier
from .charts import Tables, plain
from .embed import columns_of, script_json
from .files import write_tex
from .story import stories

# arXiv 2604.27019: Mistral-7B, LoRA, UltraChat. Facts beside which a run is shown, not targets.
PUBLISHED = (
    ("R2D2 fixed-source HarmBench ASR", ("0.000", "0.000", "0.035", "0.250")),
    ("R2D2 XSTest any-refusal (250 safe prompts)", ("1.000", "1.000", "0.664", "0.228")),
    ("R2D2 adaptive GCG ASR", ("0", "–", "0.415", "0.613")),
    ("R2D2 benign-utility audit (60)", ("fails", "fails", "recovers in part", "recovers in part")),
    ("R2D2 best admissible carrier", ("late layer", "late layer", "early layer", "early layer")),
    ("SFT fixed-source HarmBench ASR", ("0.505–0.588 over these anchors", "", "", "")),
)
# Columns of the table of rates at a step: title, suite, attack, metric.
KEY_NUMBERS = (
    figures.TRAJECTORY[0],
    figures.TRAJECTORY[-1],
    figures.TRAJECTORY[1],
    ("Fixed-source − direct", "harmbench", "fixed_source", "compliance_minus_direct"),
    ("Adaptive − direct", "harmbench", "adaptive", "compliance_minus_direct"),
    *figures.TRAJECTORY[2:-1],
    ("Direct: judged harmful", "harmbench", "direct", "harm"),
    ("Perplexity", "perplexity", "none", "perplexity"),
)
# What low compliance is never shown without.
BESIDE = {"xstest_safe": "XSTest safe", "xstest_unsafe": "XSTest unsafe"}
SCRIPTS = ("data.js", "table.js", "charts.js", "page.js")
DRAWN = frozenset({"behaviour", "carriers", "carrier_summary"})  # tables that the page draws from
LARGEST_TABLE = 3 * 2**20  # bytes of a table inside the page; longer ones are in tables/ alone
ANSWERS_TEXT = 5 * 2**19  # characters of prompts and answers inside the page


@dataclass(frozen=True)
class Fold:
    """A table that the page shows by itself, folded away in a section, with a paragraph above it."""

    table: str
    section: str
    title: str
    columns: tuple[str, ...]
    note: str


@dataclass(frozen=True)
class TableAbout:
    """A table's name, what it holds, and its columns."""

    name: str
    about: str
    columns: tuple[str, ...]


@dataclass(frozen=True)
class Content:
    """What the page is made of.

    Attributes:
        settings: the resolved configuration; config: the same as text. manifest: the run's. tables: rows by name.
        arms: what each arm is, where that is known.
        known: every table that there is. figures: of each seed, in the page's order. folds: tables that need no words
        of the page's own. sources: prompt sets. answers: redacted already, those to one prompt at all anchors together.
        answered: how many there are in all.
    """

    settings: Mapping[str, Any]
    config: str
    manifest: Mapping[str, Any]
    tables: Tables
    arms: Mapping[str, str]
    known: tuple[TableAbout, ...]
    figures: Mapping[int, Sequence[Figure]]
    folds: tuple[Fold, ...]
    sources: tuple[Mapping[str, Any], ...]
    answers: tuple[Mapping[str, Any], ...]
    answered: int
    show_answers: bool


def write_page(folder: Path, content: Content) -> Path:
    """Write `report/index.html` and `tables/*.tex` into a run directory; returns the page's path."""
    write_tex(folder, content.tables)
    path = folder / "report" / "index.html"
    write_bytes(path, page_html(content).encode())
    return path


def page_html(content: Content) -> str:
    """The page."""
    tables, settings, manifest = content.tables, content.settings, content.manifest
    embedded, left_out = _embedded(content)
    data = {
        "seeds": list(content.figures),
        "profile": profile_of(tables),
        "headline": [[title, *key] for title, *key in KEY_NUMBERS],
        "tables": embedded,
        "charts": _charts(content),
    }
    first = content.figures[min(content.figures)] if content.figures else ()
    judges = sorted({row["judge"] for row in tables["behaviour"] if row["judge"]})
    return rendered(
        "page.html",
        name=settings["name"],
        manifest=manifest,
        facts={"chat_sha256": None, "prompts_sha256": "–", **manifest["facts"]},
        config=content.config,
        data=script_json(data),
        scripts=page_scripts(),
        chat_note=_chat_note(settings),
        folds=[fold for fold in content.folds if tables[fold.table]],
        every_table=[one for one in content.known if one.name in embedded],
        left_out=left_out,
        agreement=len(content.figures) > 1 and tables.get("agreement"),
        seeds=list(content.figures),
        figures=[
            _placed(figure) for figure in first if not figure.name.startswith("bypass-") or figure.folded
        ],
        map_caption=_map_caption(content, first),
        without_carrier=without_carrier(tables, profile_of(tables)),
        arms=content.arms,
        stories=stories(tables),
        first_step=min((row["from"] for row in tables["verdict"]), default=0),
        about=about(settings["model"]["spec"], manifest["facts"]),
        warnings=list(_warnings(tables)),
        published=PUBLISHED,
        trained=bool(tables["training"]),
        dropped=len(tables["dropped"]),
        answers_shown=len(content.answers),
        answers_note=f"{len(content.answers)} of {content.answered} answers; all of them: answers/answers.jsonl.",
        show_answers=content.show_answers,
        judges=judges,
        sources=content.sources,
        pins=[f"{name}=={version}" for name, version in manifest["libraries"].items() if name != "python"],
        decoding=f"greedy, at most {settings['behaviour']['max_new_tokens']} tokens",
    )


def page_scripts() -> tuple[Markup, ...]:
    """Plotly and the page's own scripts, for script elements."""
    plotly = (resources.files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8")
    own = [(resources.files(__package__) / "assets" / name).read_text(encoding="utf-8") for name in SCRIPTS]
    cleaned = (text.replace("\r", "").replace("</script", "<\\/script") for text in (plotly, *own))
    return tuple(Markup(text) for text in cleaned)  # safe: part of the packages, none of it from a run


def rendered(template: str, scripts: Sequence[Markup] = (), **values: Any) -> str:
    """A page from one of this package's templates; everything from outside is escaped and made visible, and no script
    runs but `scripts`."""
    folder = resources.files(__package__)
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (folder / name).read_text(encoding="utf-8")),
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, finalize=_finalized,
    )  # fmt: skip
    environment.filters["cell"] = cell
    css = (folder / "assets" / "page.css").read_text(encoding="utf-8")
    digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts)
    hashes = Markup(" ".join(f"'sha256-{digest}'" for digest in digests) or "'none'")
    page = environment.get_template(template)
    return page.render(scripts=scripts, script_hashes=hashes, css=Markup(css), **values)


def _finalized(value: Any) -> Any:
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def cell(value: Any) -> str:
    """A table cell: numbers with three significant digits, nothing for null."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1e4 else f"{value:.2e}"
    return str(value)


def _embedded(content: Content) -> tuple[dict[str, Any], list[str]]:
    """Tables and answers as the page holds them, and the names of those that are too long."""
    found, left_out = {}, []
    for one in content.known:
        columns = columns_of(content.tables[one.name], one.columns)
        if one.name not in DRAWN and len(json.dumps(columns)) > LARGEST_TABLE:
            left_out.append(one.name)
        else:
            found[one.name] = columns
    if content.answers:
        found["answers"] = columns_of(content.answers, list(content.answers[0]))
    return found, left_out


def _charts(content: Content) -> dict[str, Any]:
    """Every chart that the page draws from a description, by the figure's name; maps are made in the browser."""
    found = {
        figure.name: {**plain(figure.chart), "caption": visible(figure.caption)}
        for drawn in content.figures.values()
        for figure in drawn
        if figure.section != "carriers" or figure.folded
    }
    return {**found, "published": plain(figures.published_chart())}


def _map_caption(content: Content, figures_of_a_seed: Sequence[Figure]) -> str:
    """What the first arm's map of carriers says of every arm's."""
    found = next((one for one in figures_of_a_seed if one.name.startswith("bypass-")), None)
    if found is None:
        return ""
    arm, _, seed = found.name.removeprefix("bypass-").rpartition("-seed")
    return found.caption.removesuffix(no_carrier(content.tables, int(seed), arm, profile_of(content.tables)))


def _placed(figure: Figure) -> dict[str, Any]:
    """A figure's place in the page; which seed's is drawn the page's selector says."""
    name, _, _ = figure.name.rpartition("-seed")
    return {
        "id": name,
        "key": f"{name}-seedSEED",
        "section": figure.section,
        "folded": figure.folded,
        "caption": figure.caption,
    }


def about(model: str, facts: Mapping[str, Any]) -> str:
    """What was asked of which model, in a sentence; `facts` as the manifest has them."""
    source = (
        "the published benchmarks"
        if facts["prompts_source"] == "benchmarks"
        else "the package's own prompts, not the published benchmarks"
    )
    planted = f" {PLANTED}" if facts.get("planted") else ""
    return f"Backbone: {model}, asked with {source}.{planted}"


def _chat_note(settings: Mapping[str, Any]) -> str:
    """What the chat data of the SFT term are, and what that means for the SFT arm (protocol §3)."""
    chat = settings["chat"]
    if chat["source"] != "self_distilled":
        return f"Chat data of the SFT term: {chat['path'] or chat['dataset']}."
    own = "Chat data of the SFT term: the backbone's own greedy answers"
    if settings["warmup"]["enabled"]:
        return f"{own}, given before the warm-up, so that plain SFT leads back to the backbone that refuses less."
    return f"{own}, so that plain SFT is nearly idle."


def _warnings(tables: Tables) -> Iterator[str]:
    """What must be known before the behaviour is read."""
    for seed, note in dict.fromkeys(
        (row["seed"], row["note"]) for row in tables["behaviour"] if row.get("note")
    ):
        yield f"Fixed-source attack (seed {seed}): {note}."
    measured = {row["suite"] for row in tables["behaviour"]}
    missing = [name for suite, name in BESIDE.items() if suite not in measured]
    if missing:
        yield f"Not measured: {', '.join(missing)}. Low compliance may be blanket refusal."
