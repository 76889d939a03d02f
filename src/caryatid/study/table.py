"""What a table of a study is: its columns with type and meaning, its rows, and how the report shows it.

One file a table in `tables/`; nothing else knows a table by name, except the report's figures, which draw some.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..registry import Registry
from ..report.tables import ESTIMATE, Column, write_table
from .run import Run
from .stage import import_all

Row = Mapping[str, Any]
Section = Literal[
    "verdict", "behaviour", "carriers", "geometry", "causal", "transfer", "training", "data", "more"
]

SEED = Column("seed", int, "seed of training, subsets and draws")
ARM = Column("arm", str, "training recipe, or the name of an observed series; `base`: step 0")
ANCHOR = (SEED, ARM, Column("step", int, "optimizer updates since step 0"))
PAIR = (
    SEED,
    ARM,
    Column("from", int, "step of the earlier anchor"),
    Column("to", int, "step of the later anchor"),
)
QUANTITY = (
    Column("quantity", str, "what is measured"),
    Column("value", float, "its value"),
    Column("lo", float, "lower end of the 95 % interval"),
    Column("hi", float, "upper end of the 95 % interval"),
)
RATE = (*ESTIMATE, Column("judge", str, "`name@version` of what judged the answers"))
NOISE = Column("noise", str, "which sampling noise the interval contains")
SITE = (
    Column("layer", int, "block at whose input it is read"),
    Column("position", int, "prompt position; −1 is the last token"),
    Column("site_admissible", bool, "a profile's carrier is there, not a stand-in"),
)
PROFILE = Column("profile", str, "admissibility profile")
SELECTOR = Column("selector", str, "what picks among admissible candidates")


@dataclass(frozen=True)
class Shown:
    """Where the report shows a table by itself.

    Attributes:
        section: of the page. title: of the fold. columns: which, all by default. note: a paragraph below it.
    """

    section: Section
    title: str
    columns: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        about: what it holds, in a sentence or two. rows: from a finished run. shown: None where the page shows it in a
            way of its own, or not at all.
    """

    name: str
    about: str
    columns: tuple[Column, ...]
    rows: Callable[[Run], Iterable[Row]]
    shown: Shown | None = None


_registered: Registry[str, Table] = Registry("table")


def register_table(table: Table) -> Table:
    """The table is written for every study from now on; see `Registry.register`."""
    return _registered.register(table.name, table)


def all_tables() -> list[Table]:
    """The package's own tables (one file each in `tables/`) and those of other packages, by name."""
    import_all(f"{__package__}.tables")
    return sorted(_registered.values(), key=lambda table: table.name)


def write_tables(run: Run) -> None:
    """Write every table as parquet and CSV."""
    for table in all_tables():
        write_table(run.path / "tables", table.name, table.columns, list(table.rows(run)))


def tables_markdown() -> str:
    """`docs/tables.md`: every table with its columns."""
    lines = [
        "# Tables of a run",
        "",
        "Made from `src/caryatid/study/tables/` by `python -m caryatid.study.table`; a test keeps it true. Each is",
        "written as `tables/NAME.parquet` and `.csv`; any cell may be empty (not measured, or not defined).",
    ]
    for table in all_tables():
        lines += ["", f"## {table.name}", "", table.about, "", "| column | type | meaning |", "|---|---|---|"]
        for column in table.columns:
            unit = f" ({column.unit})" if column.unit else ""
            lines.append(f"| {column.name} | {column.kind.__name__} | {column.meaning}{unit} |")
    return "\n".join(lines) + "\n"


def pick(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    """Rows whose columns have these values."""
    return [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]


if __name__ == "__main__":
    from . import table  # the copy in which the tables register; this one has none

    print(table.tables_markdown(), end="")
