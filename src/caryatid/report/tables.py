"""Tables on disk: declared columns, as parquet and CSV, atomically; the same rows give the same bytes."""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from ..artifacts import write_bytes
from ..errors import InputError
from ..texts import inert, visible

_ARROW: Mapping[type, pa.DataType] = {
    int: pa.int64(),
    float: pa.float64(),
    str: pa.string(),
    bool: pa.bool_(),
}


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        kind: int, float, str or bool; any cell may be null. meaning: in plain words. unit: where there is one.
    """

    name: str
    kind: type
    meaning: str
    unit: str = ""


ESTIMATE = (
    Column("value", float, "the rate or mean"),
    Column("n", int, "prompts that it rests on"),
    Column("lo", float, "lower end of the 95 % interval"),
    Column("hi", float, "upper end of the 95 % interval"),
)
CANDIDATE = (
    Column("position", int, "prompt position at which it was extracted; −1 is the last token"),
    Column("layer", int, "block at whose input it was extracted"),
    Column("depth", float, "layer over the number of layers"),
    Column("bypass", float, "mean refusal score of harmful prompts with it ablated everywhere", "nats"),
    Column("induce", float, "mean refusal score of harmless prompts with it added at its layer", "nats"),
    Column("kl", float, "KL(base ‖ ablated) of the next token on harmless prompts", "nats"),
    Column("bypass_effect", float, "share of the gap that ablation removes"),
    Column("induce_effect", float, "share of the gap that addition induces"),
    Column("profile", str, "admissibility profile"),
    Column("admissible", bool, "passes the profile's thresholds"),
    Column("best", bool, "the carrier"),
    Column("kl_answer", float, "the KL over the first answer tokens", "nats per token"),
    Column("selector", str, "what picks among admissible candidates"),
    Column("cosmic_ablated", float, "COSMIC: cosine of ablated harmful and harmless means"),
    Column("cosmic_added", float, "COSMIC: cosine of added harmless and harmful means"),
)
"""A scored candidate direction, in a study (table `carriers`) and of one model (`locate`)."""


def _plain(value: Any) -> Any:
    """numpy scalars as Python's, NaN as null."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and math.isnan(value) else value


def _is(value: Any, kind: type) -> bool:
    """Whether a cell is of a column's type; a boolean is no number."""
    accepted = (int, float) if kind is float else (kind,)
    return isinstance(value, accepted) and (kind is bool or not isinstance(value, bool))


def arrow_table(name: str, columns: Sequence[Column], rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows as a typed table, with what each column means in its metadata. A row may leave out columns.

    Raises:
        InputError: a row has a column that is not declared, or a cell of another type.
    """
    known = {column.name for column in columns}
    unknown = sorted({key for row in rows for key in row} - known)
    if unknown:
        raise InputError(f"undeclared columns: {', '.join(unknown)}", where=f"table {name}")
    arrays, fields = [], []
    for column in columns:
        values = [_plain(row.get(column.name)) for row in rows]
        wrong = [value for value in values if value is not None and not _is(value, column.kind)]
        if wrong:
            raise InputError(
                f"column {column.name!r} holds {wrong[0]!r}, not {column.kind.__name__}",
                where=f"table {name}",
            )
        if column.kind is float:
            values = [None if value is None else float(value) for value in values]
        arrays.append(pa.array(values, type=_ARROW[column.kind]))
        about = {"meaning": column.meaning, "unit": column.unit}
        fields.append(pa.field(column.name, _ARROW[column.kind], metadata=about))
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def write_table(
    folder: Path, name: str, columns: Sequence[Column], rows: Sequence[Mapping[str, Any]]
) -> None:
    """Write `name`.parquet and `name`.csv; in the latter no text acts (`visible`, `inert`). Errors as `arrow_table`."""
    table = arrow_table(name, columns, rows)
    texts = [column.name for column in columns if column.kind is str]
    guarded = [{**row, **{key: inert(visible(row[key])) for key in texts if row.get(key)}} for row in rows]
    parquet, csv = io.BytesIO(), io.BytesIO()
    pq.write_table(table, parquet)
    csv.write((",".join(column.name for column in columns) + "\n").encode())  # pyarrow would quote the names
    cells = arrow_table(name, columns, guarded)
    pyarrow.csv.write_csv(cells, csv, pyarrow.csv.WriteOptions(include_header=False))
    write_bytes(folder / f"{name}.parquet", parquet.getvalue())
    write_bytes(folder / f"{name}.csv", csv.getvalue())


def read_tables(run: Path) -> dict[str, list[dict[str, Any]]]:
    """All tables of a run directory as rows, by name; null stays None.

    Raises:
        InputError: a damaged file.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted((run / "tables").glob("*.parquet")):
        try:
            found[path.stem] = pq.read_table(path).to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"not readable as parquet ({error})",
                where=str(path),
                remedy="Run the study again: it writes its tables anew and computes nothing twice.",
            ) from error
    return found
