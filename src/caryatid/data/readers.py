"""Reading prompt files: the benchmarks' own formats, and files that a user names."""

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import DataMissingError, InputError
from .prompts import Label, Prompt, PromptSet, Role

TEXT_COLUMNS = ("prompt", "text", "goal", "behavior", "instruction", "forbidden_prompt", "question")
_ALIASES = {
    "id": ("id", "behaviorid", "behavior_id"),
    "category": ("category", "semanticcategory"),
    "kind": ("kind", "functionalcategory", "type"),
    "context": ("context", "contextstring"),
    "targets": ("targets", "target"),
    "check": ("check",),
    "answer": ("answer",),
}
CHECK_KEYS = ("any", "all", "regex", "not")
LABELS: Mapping[str, Label] = {
    "safe": "harmless",
    "harmless": "harmless",
    "unsafe": "harmful",
    "harmful": "harmful",
}


class Row(NamedTuple):
    """A row of a user's file and where it stands."""

    where: str
    values: Mapping[str, Any]


def _csv_rows(content: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline="")))


def read_harmbench(set_name: str, contents: Sequence[bytes]) -> list[Prompt]:
    """HarmBench's behaviours (CSV), and their targets (JSON by behaviour id: one string, or a list of them)."""
    behaviours, targets_file = contents
    targets = json.loads(targets_file)
    prompts = []
    for row in _csv_rows(behaviours):
        found = targets[row["BehaviorID"]]
        listed = [found] if isinstance(found, str) else found
        prompts.append(
            Prompt(
                id=row["BehaviorID"],
                text=row["Behavior"],
                set_name=set_name,
                label="harmful",
                category=row.get("SemanticCategory") or row.get("Category") or None,
                kind=row.get("FunctionalCategory") or None,
                context=row["ContextString"] or None,
                # The released lists hold a few empty strings.
                targets=tuple(target for target in listed if target.strip()),
            )
        )
    return prompts


def read_strongreject(set_name: str, contents: Sequence[bytes]) -> list[Prompt]:
    """StrongREJECT's CSV; it has no ids, so rows are numbered from 1."""
    return [
        Prompt(
            id=f"strongreject_{number:03d}",
            text=row["forbidden_prompt"],
            set_name=set_name,
            label="harmful",
            category=row["category"],
        )
        for number, row in enumerate(_csv_rows(contents[0]), start=1)
    ]


def _read_xstest(set_name: str, content: bytes, wanted: str, label: Label) -> list[Prompt]:
    return [
        Prompt(
            id=f"xstest_{row['id']}",
            text=row["prompt"],
            set_name=set_name,
            label=label,
            category=row["note"] or None,
            kind=row["type"],
        )
        for row in _csv_rows(content)
        if row["label"] == wanted
    ]


def read_xstest_safe(set_name: str, contents: Sequence[bytes]) -> list[Prompt]:
    """The safe prompts of XSTest v2."""
    return _read_xstest(set_name, contents[0], "safe", "harmless")


def read_xstest_unsafe(set_name: str, contents: Sequence[bytes]) -> list[Prompt]:
    """The unsafe contrast prompts of XSTest v2."""
    return _read_xstest(set_name, contents[0], "unsafe", "harmful")


def _read_split(set_name: str, content: bytes, label: Label) -> list[Prompt]:
    rows = json.loads(content)
    width = len(str(len(rows)))
    return [
        Prompt(
            id=f"{set_name}_{number:0{width}d}",
            text=row["instruction"],
            set_name=set_name,
            label=label,
            category=row["category"],
        )
        for number, row in enumerate(rows, start=1)
    ]


def read_harmful_split(set_name: str, contents: Sequence[bytes]) -> list[Prompt]:
    """A harmful split of the refusal-direction repository, rows numbered from 1."""
    return _read_split(set_name, contents[0], "harmful")


def read_harmless_split(set_name: str, contents: Sequence[bytes]) -> list[Prompt]:
    """A harmless split of the refusal-direction repository, rows numbered from 1."""
    return _read_split(set_name, contents[0], "harmless")


def read_seed_tasks(set_name: str, contents: Sequence[bytes]) -> list[Prompt]:
    """Self-instruct's seed tasks: instruction, a blank line and the input if there is one; first answer."""
    prompts = []
    for line in contents[0].decode().strip().split("\n"):
        row = json.loads(line)
        first = row["instances"][0]
        text = f"{row['instruction']}\n\n{first['input']}" if first["input"] else row["instruction"]
        prompts.append(
            Prompt(id=row["id"], text=text, set_name=set_name, label="harmless", answer=first["output"])
        )
    return prompts


def validated_check(check: object, where: str) -> dict[str, Any] | None:
    """A utility check as it is stored, or None.

    Raises:
        InputError: unknown keys, wrong types, or a regular expression that does not compile.
    """
    if check is None:
        return None
    remedy = "Use any, all, not (lists of strings) or regex (a string)."
    if not isinstance(check, dict) or not check or set(check) - set(CHECK_KEYS):
        raise InputError(f"check {check!r} is not understood", where=where, remedy=remedy)
    for key, value in check.items():
        if key == "regex":
            try:
                re.compile(value)
            except (re.error, TypeError) as error:
                raise InputError(f"check.regex {value!r}: {error}", where=where, remedy=remedy) from error
        elif not isinstance(value, list) or not value or not all(isinstance(x, str) and x for x in value):
            raise InputError(f"check.{key} must be a list of strings", where=where, remedy=remedy)
    return dict(check)


def read_user_bytes(path: Path) -> bytes:
    """The content of a file that a user named.

    Raises:
        DataMissingError: no such file, or it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataMissingError(
            f"cannot be read ({error.strerror})", where=str(path), remedy="Check the path."
        ) from error


def decode(content: bytes, path: Path) -> str:
    """UTF-8 text (with or without a byte-order mark) of a user's file.

    Raises:
        InputError: not UTF-8.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 ({error})", where=str(path), remedy="Save the file as UTF-8.") from error


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


def _user_csv(path: Path, text: str) -> Iterator[Row]:
    reader = csv.DictReader(
        io.StringIO(text, newline=""), strict=True
    )  # an open quote would swallow the rest
    try:
        for values in reader:
            where = f"{path}:{reader.line_num}"
            if None in values:
                raise InputError("more cells than columns", where=where, remedy="Quote cells with commas.")
            yield Row(where, values)
    except csv.Error as error:
        where = f"{path}:{reader.line_num}"
        raise InputError(f"not CSV ({error})", where=where, remedy="Correct the line.") from error


def _rows(path: Path, text: str) -> Iterator[Row]:
    suffix = path.suffix.lower()
    if suffix == ".csv":
        yield from _user_csv(path, text)
        return
    if suffix == ".jsonl":
        for number, line in enumerate(text.split("\n"), start=1):  # splitlines would cut at U+2028, too
            if line.strip():
                yield Row(
                    f"{path}:{number}", _as_mapping(parse_json(line, str(path), number), f"{path}:{number}")
                )
        return
    if suffix != ".json":
        raise InputError(
            f"unknown kind of file {suffix!r}", where=str(path), remedy="Use .csv, .json or .jsonl."
        )
    listed = parse_json(text, str(path))
    if not isinstance(listed, list):
        raise InputError("must be a JSON list", where=str(path), remedy="List strings or objects.")
    for number, value in enumerate(listed, start=1):
        yield Row(f"{path}, item {number}", _as_mapping(value, f"{path}, item {number}"))


def _as_mapping(value: object, where: str) -> Mapping[str, Any]:
    if isinstance(value, str):
        return {"text": value}
    if not isinstance(value, dict):
        raise InputError("neither a string nor an object", where=where, remedy='Give text, or {"text": …}.')
    return value


def _optional_text(values: Mapping[str, Any], name: str, where: str) -> str | None:
    for alias in _ALIASES[name]:
        value = values.get(alias)
        if value is None or value == "":
            continue
        if isinstance(value, int) and name == "id":
            return str(value)
        if not isinstance(value, str):
            raise InputError(f"{alias} must be text, not {value!r}", where=where, remedy="Quote it.")
        return value
    return None


def _targets(values: Mapping[str, Any], where: str) -> tuple[str, ...]:
    found = values.get("targets", values.get("target"))
    listed = [found] if isinstance(found, str) else found or []
    if not isinstance(listed, list) or not all(isinstance(target, str) for target in listed):
        raise InputError("targets must be text or a list of texts", where=where, remedy="Correct the row.")
    return tuple(target for target in listed if target.strip())


def _names_lowered(row: Row) -> Row:
    return Row(row.where, {str(name).strip().lower(): value for name, value in row.values.items()})


def _user_prompt(row: Row, number: int, stem: str, label: Label) -> Prompt:
    values = row.values
    text = next((values[name] for name in TEXT_COLUMNS if values.get(name)), None)
    if text is None or not isinstance(text, str) or not text.strip():
        raise InputError(
            "no prompt in this row",
            where=row.where,
            remedy=f"Name the column one of {', '.join(TEXT_COLUMNS)}.",
        )
    optional = {
        name: _optional_text(values, name, row.where) for name in ("category", "kind", "context", "answer")
    }
    check = values.get("check") or None
    if isinstance(check, str):
        check = parse_json(check, row.where)
    found = Prompt(
        id=_optional_text(values, "id", row.where) or f"{stem}_{number:04d}",
        text=text,
        set_name=stem,
        label=label,
        targets=_targets(values, row.where),
        check=validated_check(check, row.where),
        **optional,
    )
    for part in (found.id, found.user_text, found.category, found.kind, *found.targets):
        encodable(part or "", row.where)
    return found


def read_prompt_file(path: Path, *, name: str, role: Role, label: Label) -> PromptSet:
    """Prompts of a file that a user named.

    CSV with a header, JSON (a list), or JSONL. The text is in a column named one of `TEXT_COLUMNS`; `id`, `category`,
    `kind`, `context`, `target(s)`, `check` and `answer`, and HarmBench's names for them, are read where present.
    A list of strings will do in JSON and JSONL. Rows whose `label` says the opposite (safe or harmless, unsafe or
    harmful) are left out, so that XSTest's own file serves both its halves.

    Raises:
        DataMissingError: no such file.
        InputError: a row that cannot be used (with its line), or no rows.
    """
    content = read_user_bytes(path)
    rows = [_names_lowered(row) for row in _rows(path, decode(content, path))]
    rows = [row for row in rows if LABELS.get(str(row.values.get("label")).lower(), label) == label]
    if not rows:
        raise InputError(f"no prompts for {name}", where=str(path), remedy="Add rows, or leave the file out.")
    return PromptSet(
        name=name,
        role=role,
        prompts=tuple(_user_prompt(row, i, path.stem, label) for i, row in enumerate(rows, start=1)),
        source=str(path),
        licence="user's own",
        sha256=hashlib.sha256(content).hexdigest(),
    )
