"""Publish a finished run in docs/results/: its tables, what it ran on, and the text, whose every number is looked up.

    python benchmarks/publish.py add RUN NAME --device "one NVIDIA H200" --wall 938  # copies tables, then renders
    python benchmarks/publish.py add RUN NAME … --tables behaviour attacks                # of an unfinished run
    python benchmarks/publish.py render                                               # the text alone

`add` copies parquet tables, the figure of behaviour, configuration (absolute paths reduced to file names), versions and
seconds by stage; neither answers nor prompts nor weights. The text is `docs/results/README.md.j2`; a test renders it
again and compares. Runs named `…-trajectory-seedN` are one study with several seeds: they have a section and a figure
of their own (`seeds.md.j2`, `trajectory.svg`), which come and go with them; `…-again-seedN` is an arm of such a run
that was trained and measured anew.
"""

import argparse
import json
import re
import shutil
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import jinja2
import pyarrow.parquet
from ruamel.yaml import YAML

import across_seeds
import compared_arms
import repeated_run
import seed_claims
import seed_comparison
import seed_costs
import seed_doubts
import seed_figure
from arm_claims import claims
from caryatid.artifacts import file_sha256, write_bytes, write_json
from caryatid.report.captions import Basis, drawn_figures
from caryatid.report.plot import drawn
from caryatid.report.tables import read_tables, write_table
from caryatid.study.demo import portable_config
from caryatid.study.plan import Plan
from caryatid.study.run import Run, open_run
from caryatid.study.table import all_tables
from shares import bounds, share

RESULTS = Path(__file__).parents[1] / "docs" / "results"
Row = dict[str, Any]


def finished_part(run: Run) -> Run:
    """The run with the stages alone that are done."""
    done = tuple(entry for entry in run.plan if entry.folder(run.directory).done())
    return Run(Plan(run.study, done), run.directory)


def write_named(run: Run, out: Path, names: Sequence[str]) -> None:
    """Some tables of the stages that are done, without their CSV files."""
    for table in all_tables():
        if table.name in names:
            write_table(out / "tables", table.name, table.columns, list(table.rows(run)))
            (out / "tables" / f"{table.name}.csv").unlink()


def write_some(run: Run, out: Path, names: Sequence[str], written: bool) -> None:
    """Some tables, and the figure of behaviour. `written`: as they lie in the run."""
    if written:
        for name in names:
            shutil.copyfile(run.path / "tables" / f"{name}.parquet", out / "tables" / f"{name}.parquet")
    else:
        write_named(run, out, names)
    basis = Basis({}, run.study.settings, False)
    (behaviour,) = islice(drawn_figures(read_tables(out), basis, run.config.seeds[0]), 1)
    write_bytes(out / f"{behaviour.name}.svg", drawn(behaviour.chart, "svg")[0])


def add(
    run_path: Path,
    name: str,
    device: str,
    note: str,
    wall: float,
    some: Sequence[str] = (),
    written: bool = False,
) -> None:
    """Copy what is published of a run to `docs/results/NAME`.

    Args:
        some: these tables alone, of an unfinished run. written: take them as they lie in it, where what they are made
            from was too large to be brought along.
    """
    whole, out = open_run(run_path, recorded=not some), RESULTS / name
    run = finished_part(whole)
    (out / "tables").mkdir(parents=True, exist_ok=True)
    if some:
        write_some(run, out, some, written)
    else:
        for table in sorted((run_path / "tables").glob("*.parquet")):
            shutil.copyfile(table, out / "tables" / table.name)
        for figure in sorted((run_path / "figures").glob("behaviour-*.svg")):
            shutil.copyfile(figure, out / figure.name)
    write_bytes(out / "config.yaml", portable_config(run).encode())
    seconds, stages = defaultdict(float), defaultdict(int)
    places = defaultdict(float)
    for entry in run.plan:
        took = entry.folder(run.directory).manifest()["seconds"]
        seconds[entry.stage.kind] += took
        stages[entry.stage.kind] += 1
        places[entry.stage.place.name if entry.stage.place else "study"] += took
    manifest = run.directory.manifest()
    provenance = {
        "device": device,
        "note": note,
        "wall": wall,
        "model": manifest["facts"]["model_identity"],
        "dtype": manifest["facts"]["dtype"],
        "batch": manifest["facts"]["batch"],
        "libraries": manifest["libraries"],
        "seconds": {kind: {"seconds": round(s, 1), "stages": stages[kind]} for kind, s in seconds.items()},
        "unfinished": sorted(entry.id for entry in whole.plan if entry.id not in run.plan),
        "seconds_by_place": {place: round(s, 1) for place, s in places.items()},
        "tables": {file.name: file_sha256(file) for file in sorted((out / "tables").glob("*.parquet"))},
    }
    write_json(out / "provenance.json", provenance)


@cache
def read_rows(file: Path, _changed: int) -> list[Row]:
    """The rows of a table, read once for as long as its file stays as it is (when it was changed, in nanoseconds)."""
    return list(pyarrow.parquet.read_table(file).to_pylist())


@cache
def read_settings(file: Path, _changed: int) -> Any:
    """A configuration, read once as `read_rows` reads."""
    return YAML(typ="safe").load(file.read_text(encoding="utf-8"))


class Published:
    """A published run, as the text asks for its numbers."""

    def __init__(self, name: str) -> None:
        self.folder = RESULTS / name
        self.provenance = json.loads((self.folder / "provenance.json").read_text(encoding="utf-8"))

    def tables(self) -> dict[str, list[Row]]:
        """All tables, by name."""
        return read_tables(self.folder)

    def rows(self, table: str, **wanted: Any) -> list[Row]:
        """Rows of a table whose columns have these values; `of` stands for the column `from`."""
        if "of" in wanted:
            wanted["from"] = wanted.pop("of")
        file = self.folder / "tables" / f"{table}.parquet"
        every = read_rows(file, file.stat().st_mtime_ns)
        return [row for row in every if all(row[key] == value for key, value in wanted.items())]

    def row(self, table: str, **wanted: Any) -> Row:
        """The one such row."""
        found = self.rows(table, **wanted)
        if len(found) != 1:
            raise LookupError(f"{len(found)} rows of {table} with {wanted}")
        return found[0]

    def setting(self, *path: str) -> str:
        """A setting of its configuration, by its path: `setting("training", "lat", "radius")`."""
        file = self.folder / "config.yaml"
        found = read_settings(file, file.stat().st_mtime_ns)
        for key in path:
            found = found[key]
        return str(found)

    def rate(self, arm: str, step: int, suite: str, metric: str, attack: str = "none") -> str:
        """A behaviour with its interval: `.72 [.67, .78]`."""
        return bounds(self.row("behaviour", arm=arm, step=step, suite=suite, metric=metric, attack=attack))

    def stages(self) -> int:
        """Stages of the study, finished or not."""
        done = sum(one["stages"] for one in self.provenance["seconds"].values())
        return int(done) + len(self.provenance["unfinished"])

    def seconds(self, *kinds: str) -> float:
        """Of all stages of some kinds; without any of all."""
        spent = self.provenance["seconds"]
        return sum(spent[kind]["seconds"] for kind in kinds or spent)


def runs_by_seed(kind: str = "trajectory") -> list[across_seeds.Seed]:
    """The published runs named `…-KIND-seedN`, by seed.

    `trajectory` differ in it alone, and have their arms that were run anew with them; `again` are those, of which a
    seed may have several.
    """
    found = []
    for folder in RESULTS.glob(f"*-{kind}-seed*"):
        number = re.search(r"-seed(\d+)$", folder.name)
        if number and (folder / "provenance.json").is_file():
            found.append(seed_of(folder.name, int(number[1])))
    found.sort(key=lambda seed: (seed.number, seed.name))
    return repeated_run.with_again(found, runs_by_seed("again")) if kind == "trajectory" else found


def seed_of(name: str, number: int) -> across_seeds.Seed:
    """A published run of one seed, as the claims over seeds take it."""
    run = Published(name)
    return across_seeds.Seed(name, number, run.tables(), run.provenance)


def render() -> None:
    """Write the text, and the figure of the seeds where there are any."""
    (RESULTS / "README.md").write_text(rendered(), encoding="utf-8")
    seeds, figure = runs_by_seed(), RESULTS / "trajectory.svg"
    figure.unlink(missing_ok=True)
    if seeds:
        write_bytes(figure, seed_figure.svg(seeds))


def rendered(template: str = "README.md.j2") -> str:
    """The text, or what another template makes of the runs."""
    loader = jinja2.FileSystemLoader(RESULTS)
    environment = jinja2.Environment(
        loader=loader, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True, autoescape=False,
    )  # fmt: skip  # Markdown, from our own tables
    published = [path.parent.name for path in RESULTS.glob("*/provenance.json")]
    seeds = runs_by_seed()
    many = across_seeds.numbered(len(seeds))
    last = across_seeds.last_of(seeds) if seeds else 0
    anchor = f"{many}-seed{'s' if len(seeds) > 1 else ''}-step-0-to-{last}"  # of the heading in seeds.md.j2
    names = {
        "run": Published,
        "seed_of": seed_of,
        "bounds": bounds,
        "share": share,
        "compared": compared_arms,
        "claims": claims,
        "published": published,
        "seeds": seeds,
        "many": many,
        "seeds_anchor": f"#qwen25-coder-05b-instruct-{anchor}-what-sft-and-r2d2-do-to-refusal",
        "across": across_seeds,
        "said": seed_claims,
        "repeated": repeated_run,
        "reruns": runs_by_seed("again"),
        "beside": seed_comparison,
        "costs": seed_costs,
        "doubting": seed_doubts,
    }
    return environment.get_template(template).render(**names)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("add")
    one.add_argument("run", type=Path)
    one.add_argument("name")
    one.add_argument("--device", required=True)
    one.add_argument("--note", default="")
    one.add_argument(
        "--wall", type=float, required=True, help="seconds from start to end, as `study run` printed"
    )
    one.add_argument(
        "--tables", nargs="+", default=(), help="of an unfinished run, from the stages that are done"
    )
    one.add_argument(
        "--written", action="store_true", help="with --tables: take them as they lie in RUN, make none anew"
    )
    commands.add_parser("render")
    options = parser.parse_args()
    if options.command == "add":
        add(
            options.run,
            options.name,
            options.device,
            options.note,
            options.wall,
            options.tables,
            options.written,
        )
    render()


if __name__ == "__main__":
    main()
