"""Judging answers in files: what `caryatid judge refusal` and `caryatid judge harmful` do."""

import csv
import io
import json
import math
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...artifacts import Chunks, write_bytes
from ...data.readers import decode, parse_json, read_user_bytes
from ...data.user_files import delimited
from ...errors import InputError
from .base import (
    HARMFUL,
    HARMLESS,
    UNSCORED,
    Exchange,
    Judge,
    Judgement,
    judge_answers,
    judge_id,
)
from .copyright import CopyrightHashes
from .registry import open_harm_judge, open_refusal_judge
from .saved import judged

VERDICT_COLUMNS = ("verdict", "verdict_judge")
_LONGEST_CELL = 1 << 28


@dataclass(frozen=True)
class JudgedFile:
    """What became of a file.

    Attributes:
        rows: judged rows. verdicts: how many got which verdict; "" counts the unscored. judge: `name@version`.
        output: where they were written.
    """

    rows: int
    verdicts: Mapping[str, int]
    judge: str
    output: Path

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; unscored rows under `unscored`."""
        named = {name or "unscored": count for name, count in sorted(self.verdicts.items())}
        return {"rows": self.rows, "verdicts": named, "judge": self.judge, "output": str(self.output)}


def _write(path: Path, content: bytes) -> None:
    try:
        write_bytes(path, content)
    except OSError as error:
        raise InputError(
            f"cannot be written ({error.strerror})", where=str(path), remedy="Choose another output file."
        ) from error
    shutil.rmtree(_partial(path), ignore_errors=True)


def read_csv(path: Path) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a user's CSV file, whatever separates its cells; these may be of any length.

    Raises:
        DataMissingError: no such file. InputError: not CSV, or a row of another length than the header.
    """
    text, delimiter, skipped = delimited(decode(read_user_bytes(path), path))
    limit = csv.field_size_limit(_LONGEST_CELL)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
        rows = [row for row in reader if row]
    except csv.Error as error:
        raise InputError(
            f"not CSV ({error})", where=f"{path}:{reader.line_num + skipped}", remedy="Correct the line."
        ) from error
    finally:
        csv.field_size_limit(limit)
    uneven = next((i for i, row in enumerate(rows, start=1) if len(row) != len(header)), None)
    if uneven is not None:
        raise InputError(
            f"{len(rows[uneven - 1])} cells for {len(header)} columns",
            where=f"{path}, row {uneven}",
            remedy="Quote cells that hold commas or line breaks.",
        )
    return header, rows


def _csv_text(table: Sequence[Sequence[str]]) -> str:
    stream = io.StringIO(newline="")
    # Python before 3.13 leaves a lone carriage return unquoted, and readers end the row there.
    returns = any("\r" in cell for row in table for cell in row)
    plain, quoted = (
        csv.writer(stream, lineterminator="\n", quoting=q) for q in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL)
    )
    (quoted if returns else plain).writerows(table)
    return stream.getvalue()


def _kept(judge: Judge, pairs: Sequence[Exchange], output: Path) -> list[Judgement]:
    """Judgements; those of an endpoint are kept in `<output>.partial` while there are more to come."""
    if judge.usage is None:
        return judge_answers(judge, pairs)
    return judged(judge, pairs, Chunks(_partial(output)))


def _partial(output: Path) -> Path:
    return output.with_name(f"{output.name}.partial")


def _column(header: Sequence[str], name: str, path: Path) -> int:
    places = [i for i, found in enumerate(header) if found == name]
    if len(places) != 1:
        problem = "stands twice in the header" if places else "is not in the header"
        raise InputError(
            f"column {name!r} {problem}", where=str(path), remedy=f"Columns: {', '.join(header) or 'none'}."
        )
    return places[0]


def judge_refusal_file(
    source: Path, *, prompt_column: str, completion_column: str, output: Path, judge: Judge | None = None
) -> JudgedFile:
    """Add the columns `verdict` and `verdict_judge` to a CSV file of answers.

    Rows stay in order and all other columns as they are; verdicts of an earlier run are replaced. A verdict is empty
    where the answer could not be scored.

    Raises:
        DataMissingError: there is no such file. InputError: not CSV, no such column, a row of another length, no rows,
            or the output cannot be written.
    """
    used = judge or open_refusal_judge()
    header, rows = read_csv(source)
    prompt, completion = (_column(header, name, source) for name in (prompt_column, completion_column))
    if not rows:
        raise InputError("no rows to judge", where=str(source))
    found = _kept(used, [Exchange(row[prompt], row[completion]) for row in rows], output)
    kept = [i for i, name in enumerate(header) if name not in VERDICT_COLUMNS or i in (prompt, completion)]
    table = [[*(header[i] for i in kept), *VERDICT_COLUMNS]]
    table += [[*(row[i] for i in kept), one.verdict, one.judge] for row, one in zip(rows, found, strict=True)]
    _write(output, _csv_text(table).encode())
    return JudgedFile(len(rows), Counter(one.verdict for one in found), judge_id(used), output)


def _text(row: Mapping[str, Any], key: str, where: str, required: bool) -> str | None:
    value = row.get(key)
    if not required and (value is None or value != value):  # NaN is what pandas writes for nothing
        return None
    if not isinstance(value, str):
        raise InputError(f"{key!r} is {value!r:.60}", where=where, remedy="Give a string.")
    return value


def _exchange(row: object, where: str) -> Exchange:
    if not isinstance(row, dict):
        raise InputError("not an object", where=where, remedy="Give rows with `behavior` and `generation`.")
    if "generation" not in row:
        raise InputError("no 'generation'", where=where, remedy="Give rows with `behavior` and `generation`.")
    behaviour = _text(row, "behavior", where, required=True) or ""
    answer = _text(row, "generation", where, required=False) or ""
    return Exchange(behaviour, answer, _text(row, "context", where, required=False) or None)


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 6)


def judge_harmful_file(
    source: Path, *, output: Path, judge: Judge | None = None, hashes: CopyrightHashes | None = None
) -> JudgedFile:
    """Add `harmful` (1, 0, null = unscored), `harmful_score` and `judge` to a JSON list of answers.

    `harmful_score` is the judge's score, or a classifier's probability.
    Rows have `behavior`, `generation` and optionally `behavior_id` and `context`; they stay in order and keep all other
    keys. A null (or NaN) generation is unscored. Answers to behaviours that `hashes` know by their `behavior_id` are
    compared with these instead. Verdicts are kept beside the output until all are there.

    Raises:
        DataMissingError: there is no such file. InputError: not a JSON list of such rows, no rows, or the output
            cannot be written.
    """
    used = judge or open_harm_judge()
    rows = parse_json(decode(read_user_bytes(source), source), str(source))
    if not isinstance(rows, list) or not rows:
        raise InputError("not a list of answers", where=str(source), remedy="Give a non-empty JSON list.")
    pairs = [_exchange(row, f"{source}, row {i}") for i, row in enumerate(rows, start=1)]
    names = [str(row.get("behavior_id") or "") for row in rows]
    hashed = [hashes is not None and hashes.knows(name) for name in names]
    asked = iter(_kept(used, [pair for pair, known in zip(pairs, hashed, strict=True) if not known], output))
    found = [
        hashes.judge(name, pair.answer) if hashes is not None and known else next(asked)
        for name, pair, known in zip(names, pairs, hashed, strict=True)
    ]
    values = {HARMFUL: 1, HARMLESS: 0, UNSCORED: None}
    judged = [
        {
            **row,
            "harmful": values[one.verdict],
            "harmful_score": _rounded(one.probability if math.isnan(one.score) else one.score),
            "judge": one.judge,
        }
        for row, one in zip(rows, found, strict=True)
    ]
    _write(output, (json.dumps(judged, indent=1) + "\n").encode())
    return JudgedFile(len(rows), Counter(one.verdict for one in found), judge_id(used), output)
