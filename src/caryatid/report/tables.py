"""Tables on disk: the contract's columns, as parquet and CSV, atomically; the same rows give the same bytes."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ..artifacts import write_bytes
from ..errors import InputError

_RATE = {"value": "double", "n": "int64", "lo": "double", "hi": "double", "judge": "string"}
_ANCHOR = {"seed": "int64", "arm": "string", "step": "int64"}
_PAIR = {"seed": "int64", "arm": "string", "from": "int64", "to": "int64"}
_QUANTITY = {"quantity": "string", "value": "double", "lo": "double", "hi": "double"}

# The contract's tables and the columns they have at least; further columns follow in the order of first appearance.
SCHEMAS: Mapping[str, Mapping[str, str]] = {
    "behaviour": {
        **_ANCHOR,
        **dict.fromkeys(("suite", "prompt_set", "attack", "metric"), "string"),
        **_RATE,
    },
    "carriers": {
        **_ANCHOR,
        "position": "int64",
        "layer": "int64",
        **dict.fromkeys(("depth", "bypass", "induce", "kl", "bypass_effect", "induce_effect"), "double"),
        "profile": "string",
        "admissible": "bool",
        "best": "bool",
    },
    "rank": {**_ANCHOR, **_QUANTITY},
    "drift": {**_PAIR, **_QUANTITY},
    "transfer": {**_PAIR, **_QUANTITY},
    "causal": {
        **_ANCHOR,
        "intervention": "string",
        "rank": "int64",
        "alpha": "double",
        "control": "string",
        "read_out": "string",
        **_RATE,
    },
    "training": {
        **_ANCHOR,
        **dict.fromkeys(("loss_sft", "loss_away", "loss_toward", "gcg_loss"), "double"),
        "gcg_steps": "int64",
        "tokens": "int64",
        **dict.fromkeys(("flops", "delta_weight", "benign_kl", "seconds"), "double"),
    },
    "verdict": {
        **_PAIR,
        "label": "string",
        "expansion": "bool",
        "reasons": "string",
        "thresholds": "string",
    },
}
# Columns that further tables have also when they are empty.
ADDITIONAL: Mapping[str, Mapping[str, str]] = {
    "behaviour_by_group": {**SCHEMAS["behaviour"], "group": "string"},
    "comparisons": {
        "matched": "string",
        **dict.fromkeys(("step_a", "step_b", "seed"), "int64"),
        **dict.fromkeys(("benign_kl_a", "benign_kl_b"), "double"),
        **dict.fromkeys(("arm_a", "arm_b", "suite", "attack", "metric"), "string"),
        **dict.fromkeys(("value_a", "value_b", "difference", "lo", "hi"), "double"),
        "n": "int64",
        "p": "double",
        "p_holm": "double",
    },
    "attacks": {
        **_ANCHOR,
        "attack": "string",
        **dict.fromkeys(("cases", "steps", "stalled_steps", "candidates", "forward_tokens"), "int64"),
        **dict.fromkeys(("seconds", "loss_before", "loss_after"), "double"),
        "sha256": "string",
    },
    "carrier_places": {
        **_ANCHOR,
        **dict.fromkeys(("profile", "noise", "axis"), "string"),
        "place": "int64",
        "probability": "double",
    },
    "drift_by_layer": {**_PAIR, "layer": "int64", "quantity": "string", "value": "double"},
    "dropped": {
        "seed": "int64",
        **dict.fromkeys(("prompt_id", "set_name", "role", "kept_id", "kept_set", "kept_role"), "string"),
        "similarity": "double",
    },
    "sensitivity": {
        **_PAIR,
        "setting": "string",
        "threshold": "double",
        "choice": "string",
        "label": "string",
        "expansion": "bool",
        "note": "string",
    },
    "agreement": {
        "arm": "string",
        "from": "int64",
        "to": "int64",
        "label": "string",
        "agree": "int64",
        "seeds": "int64",
        "which": "string",
        "expansions": "int64",
    },
    "controls": {
        **_ANCHOR,
        "rank": "int64",
        "kind": "string",
        "draw": "int64",
        "energy": "double",
        "carrier": "double",
        "tilt": "double",
    },
    "localisation": {**_ANCHOR, "layer": "int64", **_QUANTITY, "n": "int64"},
    "shifts": {
        **_PAIR,
        **dict.fromkeys(("depth_from", "depth_to", "argmin_from", "argmin_to"), "double"),
        "draws": "int64",
    },
    "selectors": {
        **_ANCHOR,
        **dict.fromkeys(("selector", "profile", "reason"), "string"),
        "position": "int64",
        "layer": "int64",
        **dict.fromkeys(("depth", "score", "bypass", "kl"), "double"),
        "agrees": "bool",
    },
    "threshold_sweep": {
        **_ANCHOR,
        "profile": "string",
        "kl_max": "double",
        "depth": "double",
        "reason": "string",
    },
}
_PYTHON = {"int64": int, "double": float, "string": str, "bool": bool}
_ARROW = {"int64": pa.int64(), "double": pa.float64(), "string": pa.string(), "bool": pa.bool_()}


def _kind(name: str, column: str, values: Sequence[Any]) -> str:
    """The type of a column that the contract does not fix, from its values."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {bool}:
        return "bool" if kinds else "string"
    if kinds == {int}:
        return "int64"
    if kinds <= {int, float}:
        return "double"
    if kinds <= {str}:
        return "string"
    raise InputError(f"column {column!r} mixes {sorted(k.__name__ for k in kinds)}", where=f"table {name}")


def _plain(value: Any) -> Any:
    """numpy scalars as Python's, NaN as null."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and math.isnan(value) else value


def _table(name: str, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    fixed = dict(SCHEMAS.get(name) or ADDITIONAL.get(name, {}))
    found = list(dict.fromkeys(key for row in rows for key in row))
    missing = [key for key in fixed if rows and key not in found]
    if missing:
        raise InputError(f"columns missing: {', '.join(missing)}", where=f"table {name}")
    arrays, fields = [], []
    for column in [*fixed, *(key for key in found if key not in fixed)]:
        values = [_plain(row.get(column)) for row in rows]
        kind = fixed.get(column) or _kind(name, column, values)
        accepted = (int, float) if kind == "double" else _PYTHON[kind]
        wrong = [value for value in values if value is not None and not isinstance(value, accepted)]
        if wrong:
            raise InputError(f"column {column!r} holds {wrong[0]!r}, not {kind}", where=f"table {name}")
        if kind == "double":
            values = [None if value is None else float(value) for value in values]
        arrays.append(pa.array(values, type=_ARROW[kind]))
        fields.append(pa.field(column, _ARROW[kind]))
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def write_table(folder: Path, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `name`.parquet and `name`.csv; an empty table has the contract's columns.

    Raises:
        InputError: a column of the contract is missing, or holds another type.
    """
    table = _table(name, rows)
    parquet = io.BytesIO()
    pq.write_table(table, parquet)
    write_bytes(folder / f"{name}.parquet", parquet.getvalue())
    write_bytes(folder / f"{name}.csv", table.to_pandas(types_mapper=_nullable).to_csv(index=False).encode())


def _nullable(kind: pa.DataType) -> Any:
    """Integers and booleans keep their type beside nulls."""
    return {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}.get(kind)


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
