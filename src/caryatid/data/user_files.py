"""Rows of files that users bring: CSV as spreadsheets write it, JSON and JSONL as pandas and benchmarks write them."""

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import DataMissingError, InputError

_LINES = (".jsonl", ".ndjson")
_LONGEST_CELL = 1 << 28
_DELIMITERS = ",;\t|"
_MARKS = "\ufeff\u200b"  # byte-order mark and zero-width space, which editors leave before a header


class Row(NamedTuple):
    """A row of a user's file and where it stands."""

    where: str
    values: Mapping[str, Any]


class CsvTable(NamedTuple):
    """A CSV file: its header, and its rows that are not empty, each with its last line."""

    header: list[str]
    rows: list[tuple[int, list[str]]]


def read_user_bytes(path: Path) -> bytes:
    """The content of a file that a user named.

    Raises:
        DataMissingError: no such file, or it cannot be read.
    """
    try:
        return path.expanduser().read_bytes()
    except (OSError, RuntimeError) as error:  # no such home folder
        raise DataMissingError(
            f"cannot be read ({getattr(error, 'strerror', error)})", where=str(path), remedy="Check the path."
        ) from error


def decode(content: bytes, path: Path) -> str:
    """The text of a user's file: UTF-8 with or without a byte-order mark, or UTF-16 with one.

    Raises:
        InputError: neither.
    """
    wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        return content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        remedy = "Save the file as UTF-8 (in Excel: “CSV UTF-8”; with iconv: iconv -f WINDOWS-1252 -t UTF-8)."
        raise InputError(f"not UTF-8 ({error})", where=str(path), remedy=remedy) from error


def parse_json(text: str, where: str, first_line: int = 1) -> Any:
    """JSON, with the line and column of a mistake in the error.

    Raises:
        InputError: not JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"{where}:{first_line + error.lineno - 1}:{error.colno}"
        raise InputError(f"not JSON ({error.msg})", where=place, remedy="Correct the line.") from error
    except RecursionError as error:
        raise InputError("JSON nested too deeply", where=where, remedy="Correct the file.") from error


def encodable(text: str, where: str) -> str:
    """Text that a tokenizer takes: JSON can spell half a surrogate pair (`"\\ud83d"`), which is no character.

    Raises:
        InputError: it holds one.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"half a surrogate pair ({text[error.start]!r}), which is no character",
            where=where,
            remedy="Correct the text.",
        ) from error
    return text


class Delimited(NamedTuple):
    """The text of a CSV file from its header on, what separates its cells, and how many lines stand before it."""

    text: str
    delimiter: str
    skipped: int


def delimited(text: str) -> Delimited:
    """Detect what separates a CSV file's cells: comma, semicolon, tab or bar, or what a first line `sep=;` names."""
    first, _, rest = text.partition("\n")
    if first.strip().lower().startswith("sep=") and len(first.strip()) == 5:
        return Delimited(rest, first.strip()[4], 1)
    return Delimited(text, max(_DELIMITERS, key=lambda mark: len(_cells(first, mark))), 0)


def read_csv(path: Path, text: str) -> CsvTable:
    """A CSV file with a header; the delimiter (comma, semicolon, tab, bar) is detected.

    A first line `sep=;` names it, as Excel writes and reads it. Rows without any text are left out.

    Raises:
        InputError: not CSV, more cells than columns, or a column that stands twice.
    """
    text, delimiter, skipped = delimited(text)
    first = text.partition("\n")[0]
    spaced = any(cell.startswith(" ") for cell in _cells(first, delimiter))
    # Strict: else an open quote would swallow the rest.
    stream = io.StringIO(text, newline="")
    reader = csv.reader(stream, delimiter=delimiter, strict=True, skipinitialspace=spaced)
    limit = csv.field_size_limit(_LONGEST_CELL)
    try:
        header = [cell.strip(_MARKS).strip() for cell in next(reader, [])]
        rows = [(reader.line_num + skipped, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        where = f"{path}:{reader.line_num + skipped}"
        raise InputError(f"not CSV ({error})", where=where, remedy="Correct the line.") from error
    finally:
        csv.field_size_limit(limit)
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise InputError(
            f"column {twice[0]!r} stands twice in the header", where=str(path), remedy="Rename or remove one."
        )
    for line, row in rows:
        if any(cell.strip() for cell in row[len(header) :]):
            named = {",": "commas", ";": "semicolons", "\t": "tabs"}.get(delimiter, repr(delimiter))
            raise InputError(
                "more cells than columns", where=f"{path}:{line}", remedy=f"Quote cells with {named}."
            )
    return CsvTable(header, rows)


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return []


def rows_of(path: Path, content: bytes) -> list[Row]:
    """The rows of a CSV, JSON or JSONL file, with nothing for NaN.

    JSON may be a list, an object with one list in it (`{"data": [...]}`), lists by column, or what pandas' `to_json`
    writes by default (columns of values by index). JSONL may hold objects over several lines.

    Raises:
        InputError: an unknown kind of file, or a mistake in it, with its place.
    """
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".tsv", ".json", *_LINES):
        raise InputError(
            f"unknown kind of file {suffix!r}", where=str(path), remedy="Use .csv, .json or .jsonl."
        )
    text = decode(content, path)
    if suffix in (".csv", ".tsv"):
        table = read_csv(path, text)
        return [Row(f"{path}:{line}", dict(zip(table.header, row, strict=False))) for line, row in table.rows]
    if suffix in _LINES:
        lines = list(_json_lines(path, text))
        if len(lines) != 1 or not isinstance(lines[0][1], list):
            return [Row(where, _as_mapping(value, where)) for where, value in lines]
        listed: Sequence[Any] | None = lines[0][1]
    else:
        listed = _json_rows(path, text)
    if listed is None:
        remedy = "List strings or objects."
        raise InputError("must be a JSON list", where=str(path), remedy=remedy)
    return [
        Row(f"{path}, item {number}", _as_mapping(value, f"{path}, item {number}"))
        for number, value in enumerate(listed, start=1)
    ]


def _json_rows(path: Path, text: str) -> Sequence[Any] | None:
    """The rows of a JSON file, which may hold lines of JSON, as many datasets' files do; None where it has none."""
    try:
        return _listed(parse_json(text, str(path)))
    except InputError:
        found = _json_values(text)
        if not found or not all(isinstance(one, dict) for one in found):
            raise
        return found


def _json_lines(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    lines = [(i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]  # not at U+2028
    try:
        yield from [(f"{path}:{number}", parse_json(line, str(path), number)) for number, line in lines]
    except InputError:
        found = _json_values(text)
        if found is None:
            raise
        yield from ((f"{path}, item {number}", value) for number, value in enumerate(found, start=1))


def _json_values(text: str) -> list[Any] | None:
    """JSON values that follow each other, wherever the lines end; None where there is something else."""
    decoder, place, found = json.JSONDecoder(), 0, []
    try:
        while rest := text[place:].lstrip():
            place = len(text) - len(rest)
            value, place = decoder.raw_decode(text, place)
            found.append(value)
    except (json.JSONDecodeError, RecursionError):
        return None
    return found


def _listed(value: Any) -> Sequence[Any] | None:
    """The rows of a JSON file's value; None where it has none."""
    if isinstance(value, list):
        return value
    if not isinstance(value, dict) or not value:
        return None
    inner = list(value.values())
    if all(isinstance(one, list) for one in inner):
        if len(inner) == 1 and all(isinstance(item, dict) for item in inner[0]):
            return list(inner[0])
        if len({len(one) for one in inner}) == 1:
            return [dict(zip(value, row, strict=True)) for row in zip(*inner, strict=True)]
    if all(isinstance(one, dict) for one in inner):
        index = list(inner[0])
        if all(list(one) == index and all(key.isdigit() for key in one) for one in inner):
            return [{name: one[key] for name, one in value.items()} for key in index]
    lists = [one for one in inner if isinstance(one, list) and one and all(isinstance(x, dict) for x in one)]
    return lists[0] if len(lists) == 1 else None


def _as_mapping(value: object, where: str) -> Mapping[str, Any]:
    if isinstance(value, str):
        return {"text": value}
    if not isinstance(value, dict):
        raise InputError("neither a string nor an object", where=where, remedy='Give text, or {"text": …}.')
    return {str(name): _present(item) for name, item in value.items()}


def _present(value: Any) -> Any:
    """The value; None for NaN and for an empty list or object."""
    missing = (isinstance(value, float) and math.isnan(value)) or value in ([], {})
    return None if missing else value
