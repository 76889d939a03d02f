"""Answers in files: JSONL and parquet of one schema; prompts for, and answers from, another engine."""

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..artifacts import write_bytes
from ..data.prompts import Prompt
from ..data.readers import decode, parse_json, read_user_bytes
from ..errors import InputError
from ..models.template import ChatFormat
from ..models.turns import Sent, plain_text
from .answers import SCHEMA, AnswerRow, Attack
from .suites import Answer, answer_row

_TYPES: Mapping[str, pa.DataType] = {
    "schema": pa.int64(),
    "n_tokens": pa.int64(),
    "sample": pa.int64(),
    "harmful": pa.int64(),
    "ended": pa.bool_(),
    "check": pa.bool_(),
    "harm_score": pa.float64(),
    "harm_probability": pa.float64(),
    "proxy": pa.bool_(),
    "harm_proxy": pa.bool_(),
    "step": pa.int64(),
    "seed": pa.int64(),
}


def answer_schema(extra: Iterable[str] = ()) -> pa.Schema:
    """Columns of an answers file: `extra` ones (arm, step, seed), the schema's version, those of `AnswerRow`."""
    names = [*extra, "schema", *AnswerRow.__dataclass_fields__]
    fields = [pa.field(name, _TYPES.get(name, pa.string())) for name in names]
    return pa.schema(fields, metadata={"caryatid.answers": str(SCHEMA)})


def write_answers(
    folder: Path, rows: Sequence[AnswerRow], where: Sequence[Mapping[str, Any]] | None = None
) -> None:
    """Write `answers.jsonl` and `answers.parquet`; `where` adds columns to each row, such as arm and step."""
    extra = list(where[0]) if where else []
    values = [{**(where[i] if where else {}), **row.to_json()} for i, row in enumerate(rows)]
    lines = "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)
    write_bytes(folder / "answers.jsonl", lines.encode("utf-8", "backslashreplace"))
    parquet = io.BytesIO()
    safe = [
        {
            k: v.encode("utf-8", "backslashreplace").decode() if isinstance(v, str) else v
            for k, v in row.items()
        }
        for row in values
    ]
    pq.write_table(pa.Table.from_pylist(safe, schema=answer_schema(extra)), parquet)
    write_bytes(folder / "answers.parquet", parquet.getvalue())


def read_answers(path: Path) -> list[AnswerRow]:
    """Answers of `write_answers`' JSONL; added columns are left out.

    Raises:
        DataMissingError: no such file. InputError: not such a file, or of another schema.
    """
    return [row for _, row in read_placed_answers(path)]


def read_placed_answers(path: Path) -> list[tuple[dict[str, Any], AnswerRow]]:
    """Answers of `write_answers`' JSONL, each with its added columns (arm, step and seed in a run directory).

    Raises:
        DataMissingError: no such file. InputError: not such a file, or of another schema.
    """
    known = {"schema", *AnswerRow.__dataclass_fields__}
    return [
        (
            {key: value for key, value in row.items() if key not in known},
            AnswerRow.from_json({key: value for key, value in row.items() if key in known}),
        )
        for row in _json_lines(path)
    ]


def _json_lines(path: Path) -> list[dict[str, Any]]:
    rows = []
    text = decode(read_user_bytes(path), path)
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines would cut at U+2028, too
        if line.strip():
            row = parse_json(line, str(path), number)
            if not isinstance(row, dict):
                raise InputError(
                    "not an object", where=f"{path}:{number}", remedy="Give one JSON object a line."
                )
            rows.append(row)
    return rows


def _key(suite: str, prompt: Prompt, sample: int) -> str:
    return f"{suite}/{prompt.id}#{sample}"


def export_prompts(
    path: Path,
    suites: Mapping[str, Sequence[Prompt]],
    chat: ChatFormat,
    *,
    cases: Mapping[str, Sent] | None = None,
    samples: int = 1,
) -> int:
    """Write prompts for another engine as JSONL: `id`, `user_text` (what the user says) and `prompt` (templated, to be
    completed as it is); returns how many.

    Args:
        suites: prompts by suite. cases: the text that is sent by behaviour id, for HarmBench.
    """
    rows = [
        {
            "id": _key(suite, prompt, number),
            "user_text": sent,
            "prompt": chat.asked(sent),
        }
        for suite, prompts in suites.items()
        for prompt in prompts
        for sent in [_sent(suite, prompt, cases)]
        for number in range(samples)
    ]
    write_bytes(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
    return len(rows)


def _sent(suite: str, prompt: Prompt, cases: Mapping[str, Sent] | None) -> str:
    return (
        plain_text(cases[prompt.id], prompt.id)
        if cases is not None and suite == "harmbench"
        else prompt.user_text
    )


def _check_facts(row: Mapping[str, Any], where: str) -> None:
    tokens, ended = row.get("n_tokens"), row.get("ended")
    if tokens is not None and (type(tokens) is not int or tokens < 0):
        raise InputError(f"'n_tokens' is {tokens!r}", where=where, remedy="Give a count, or leave it out.")
    if ended is not None and type(ended) is not bool:
        raise InputError(f"'ended' is {ended!r}", where=where, remedy="Give true or false, or leave it out.")


def import_answers(
    path: Path,
    suites: Mapping[str, Sequence[Prompt]],
    attacks: Mapping[str, Attack],
    *,
    cases: Mapping[str, Sent] | None = None,
    samples: int = 1,
) -> list[AnswerRow]:
    """Answers of another engine, not yet judged: JSONL rows with `id` (of `export_prompts`) and `text`, optionally
    `n_tokens` and `ended`. Rows come back in the prompts' order, whatever their order in the file.

    Raises:
        DataMissingError: no such file. InputError: not such rows, an id twice, or prompts without an answer.
    """
    found: dict[str, dict[str, Any]] = {}
    for number, row in enumerate(_json_lines(path), start=1):
        if not isinstance(row.get("id"), str) or not isinstance(row.get("text"), str):
            raise InputError(
                "no `id` and `text`", where=f"{path}, row {number}", remedy="Give both as strings."
            )
        if row["id"] in found:
            raise InputError(
                f"{row['id']!r} is answered twice", where=str(path), remedy="Keep one answer each."
            )
        _check_facts(row, f"{path}, row {number}")
        found[row["id"]] = row
    asked = [
        (suite, prompt, number)
        for suite, prompts in suites.items()
        for prompt in prompts
        for number in range(samples)
    ]
    missing = [key for key in (_key(*one) for one in asked) if key not in found]
    if missing:
        raise InputError(
            f"no answer to {len(missing)} of {len(asked)} prompts, first {missing[0]!r}",
            where=str(path),
            remedy="Export and answer with the same suites, limit, seed and cases.",
        )
    rows = []
    for suite, prompt, number in asked:
        given = found[_key(suite, prompt, number)]
        answer = Answer(given["text"], given.get("n_tokens") or 0, given.get("ended") is not False)
        rows.append(answer_row(prompt, suite, attacks[suite], _sent(suite, prompt, cases), answer, number))
    return rows
