"""Several studies on one page: their verdicts in words, rates side by side, and their tables joined."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from markupsafe import Markup

from ..artifacts import RunDirectory, write_bytes
from ..errors import UsageError
from ..models.planted import PLANTED
from .charts import (
    SYMBOLS,
    Chart,
    Line,
    Panel,
    Row,
    Tables,
    colour,
    plain,
    shortened,
    span_of,
    value_of,
    words,
)
from .embed import columns_of, script_json
from .figures import TRAJECTORY
from .page import page_scripts, rendered
from .story import Story, stories
from .tables import Column, read_tables, write_table

RUN = Column("run", str, "the study, by the name of its folder")
JOINED = ("verdict", "behaviour", "carrier_summary", "transfer", "drift", "rank", "training", "sensitivity")
_KINDS: Mapping[pa.DataType, type] = {
    pa.int64(): int,
    pa.float64(): float,
    pa.string(): str,
    pa.bool_(): bool,
}


@dataclass(frozen=True)
class Compared:
    """A study: a name that no other one has here, its folder, its tables, whether it is about a planted refusal."""

    name: str
    folder: Path
    tables: Tables
    planted: bool = False


def opened(folders: Sequence[Path]) -> list[Compared]:
    """Studies by their folders.

    Raises:
        UsageError: fewer than two, or one without tables. InputError: a damaged table.
    """
    if len(folders) < 2:
        raise UsageError("one study is nothing to compare", remedy="Name two run directories or more.")
    found, names = [], Counter[str]()
    for folder in folders:
        tables = read_tables(folder)
        if "verdict" not in tables or "behaviour" not in tables:
            remedy = "Finish the study with `caryatid study run`."
            raise UsageError("no tables of a finished study", where=str(folder), remedy=remedy)
        base = folder.resolve().name
        names[base] += 1
        name = base if names[base] == 1 else f"{base} ({names[base]})"
        found.append(Compared(name, folder, tables, _is_planted(RunDirectory(folder))))
    return found


def _is_planted(run: RunDirectory) -> bool:
    facts = run.manifest().get("facts") if run.manifest_path.exists() else None
    return isinstance(facts, dict) and bool(facts.get("planted"))


def write_comparison(out: Path, runs: Sequence[Compared]) -> Path:
    """Write `index.html` and the joined tables (`tables/`, column `run` first) to a folder; returns the page's path."""
    joined = {name: _joined(name, runs) for name in JOINED if all(name in run.tables for run in runs)}
    for name, (columns, rows) in joined.items():
        write_table(out / "tables", name, columns, rows)
    told = [(run, story) for run in runs for story in stories(run.tables)]
    charts = {"evidence": plain(evidence_chart(told)), "behaviour": plain(behaviour_chart(runs))}
    tables = {
        name: columns_of(rows, [one.name for one in columns]) for name, (columns, rows) in joined.items()
    }
    own = (resources.files(__package__) / "assets" / "compare.js").read_text(encoding="utf-8")
    html = rendered(
        "compare.html",
        scripts=(*page_scripts()[:-1], Markup(own)),
        data=script_json({"tables": tables, "charts": charts}),
        told=told,
        agreement=agreement(told),
        tables=list(joined),
        runs=runs,
        planted=PLANTED,
    )
    write_bytes(out / "index.html", html.encode())
    return out / "index.html"


def agreement(told: Sequence[tuple[Compared, Story]]) -> list[dict[str, Any]]:
    """How often each label came out for each arm, over studies and seeds; nothing is pooled."""
    counts = Counter((story.arm, story.label) for _, story in told)
    every = Counter(story.arm for _, story in told)
    return [{"arm": arm, "label": label, "count": n, "of": every[arm]} for (arm, label), n in counts.items()]


def evidence_chart(told: Sequence[tuple[Compared, Story]]) -> Chart:
    """What verdicts rest on, study by study: the corrected angle, and what the old direction still removes."""
    names = tuple(f"{shortened(run.name)}, {shortened(story.arm)} {story.seed}" for run, story in told)
    arms = list(dict.fromkeys(story.arm for _, story in told))
    shown = (
        ("Turned, first to last", "degrees", "drift", {"quantity": "corrected_angle", "site": "first anchor"}),
        ("Refusals that the old direction removes", "share", "transfer", {"quantity": "transfer", "rank": 1}),
    )  # fmt: skip
    panels = []
    for title, unit, table, wanted in shown:
        lines = []
        for arm in arms:
            spans = [
                (place, *span_of(row))
                for place, (run, story) in enumerate(told)
                if story.arm == arm and (row := _evidence(run.tables[table], story, wanted)) is not None
            ]
            tips = tuple(f"{names[place]}: {words(*span)}" for place, *span in spans)
            xs, ys = tuple(float(s[0]) for s in spans), tuple(s[1] for s in spans)
            low, high = tuple(s[2] for s in spans), tuple(s[3] for s in spans)
            lines.append(Line(arm, colour(arm, arms), xs, ys, low, high, tips, "dots"))
        panels.append(Panel(title, tuple(lines), "", unit, steps=False, x_names=names))
    return Chart("What the verdicts rest on", tuple(panels), columns=1)


def _evidence(rows: Sequence[Row], story: Story, wanted: Mapping[str, Any]) -> Row | None:
    place = {"seed": story.seed, "arm": story.arm, "from": story.start, "to": story.end, **wanted}
    return next((row for row in rows if all(row[key] == value for key, value in place.items())), None)


def behaviour_chart(runs: Sequence[Compared]) -> Chart:
    """Rates over the anchors: a line a study, arm and seed; a colour an arm, a symbol a study."""
    every = [row for run in runs for row in run.tables["behaviour"]]
    arms = list(dict.fromkeys(row["arm"] for row in every if row["arm"] != "base"))
    panels = []
    for title, *key in TRAJECTORY:
        lines = []
        for number, run in enumerate(runs):
            rows = [
                row
                for row in run.tables["behaviour"]
                if [row["suite"], row["attack"], row["metric"]] == key and not row.get("group")
            ]
            for arm, seed in dict.fromkeys((row["arm"], row["seed"]) for row in rows if row["arm"] != "base"):
                mine = [row for row in rows if row["seed"] == seed and row["arm"] in ("base", arm)]
                mine.sort(key=lambda row: row["step"])
                name = f"{run.name}: {arm}, seed {seed}"
                lines.append(
                    Line(
                        name,
                        colour(arm, arms),
                        tuple(float(row["step"]) for row in mine),
                        tuple(value_of(row) for row in mine),
                        tips=tuple(f"{name}, step {row['step']}: {words(*span_of(row))}" for row in mine),
                        symbol=SYMBOLS[number % len(SYMBOLS)],
                    )
                )
        if lines:
            panels.append(Panel(title, tuple(lines), y="share", y_range=(0.0, 1.0)))
    return Chart("Behaviour, study by study", tuple(panels))


def _joined(name: str, runs: Sequence[Compared]) -> tuple[list[Column], list[dict[str, Any]]]:
    """A table of all studies: its columns, those that only some have included, and its rows with the study's name."""
    columns = {RUN.name: RUN}
    for run in runs:
        for field in pq.read_schema(run.folder / "tables" / f"{name}.parquet"):
            about = {key.decode(): value.decode() for key, value in (field.metadata or {}).items()}
            one = Column(field.name, _KINDS[field.type], about.get("meaning", ""), about.get("unit", ""))
            columns.setdefault(field.name, one)
    return list(columns.values()), [{**row, RUN.name: run.name} for run in runs for row in run.tables[name]]
