"""Tables inside a page: columns as compact JSON, with texts that cannot act on the page."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from ..texts import visible

DIGITS = 6


def columns_of(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """Rows as columns, numbers with six significant digits: one value for a column that has no other (`one`), numbers
    of distinct values where that is shorter (`of`, `at`), else the values (`all`)."""
    return {"n": len(rows), "columns": {name: _column([row.get(name) for row in rows]) for name in names}}


def _column(cells: Sequence[Any]) -> dict[str, Any]:
    values = [_cell(cell) for cell in cells]
    kinds = [(type(value), value) for value in values]
    distinct = list(dict.fromkeys(kinds))
    if len(distinct) == 1:
        return {"one": values[0]}
    if 2 * len(distinct) <= len(values):
        number = {kind: place for place, kind in enumerate(distinct)}
        return {"of": [value for _, value in distinct], "at": [number[kind] for kind in kinds]}
    return {"all": values}


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        short = float(f"{value:.{DIGITS}g}")
        return int(short) if short.is_integer() and abs(short) < 1e15 else short
    return visible(value) if isinstance(value, str) else value


def script_json(value: Any) -> Markup:
    """A value as the content of a script element of type application/json: nothing in it can end the element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character, spelt in (
        ("<", "\\u003c"),
        (">", "\\u003e"),
        ("&", "\\u0026"),
        ("\u2028", "\\u2028"),
        ("\u2029", "\\u2029"),
    ):
        text = text.replace(character, spelt)
    return Markup(text)  # safe: no character of markup is left
