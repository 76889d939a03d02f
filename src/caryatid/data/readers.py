"""Reading prompt files: the benchmarks' own formats, and files that a user names."""

import ast
import csv
import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import InputError
from .prompts import Label, Prompt, PromptSet, Role
from .user_files import Row, decode, encodable, parse_json, read_user_bytes, rows_of

__all__ = ["decode", "encodable", "parse_json", "read_prompt_file", "read_user_bytes"]

TEXT_COLUMNS = ("prompt", "text", "goal", "behavior", "instruction", "forbidden_prompt", "question")
_MESSAGES = ("messages", "turns", "conversations")
_SENT_ELSEWHERE = frozenset({"system", "system_prompt", "history", "input"})
_LABEL_COLUMNS = ("label", "prompt_harm_label")
_ALIASES = {
    "id": ("id", "behaviorid", "behavior_id", "id_v2"),
    "category": ("category", "semanticcategory"),
    "kind": ("kind", "functionalcategory", "type"),
    "context": ("context", "contextstring"),
    "targets": ("targets", "target"),
    "check": ("check",),
    "answer": ("answer", "output"),
}
CHECK_KEYS = ("any", "all", "regex", "not")
LABELS: Mapping[str, Label] = {
    "safe": "harmless",
    "harmless": "harmless",
    "unharmful": "harmless",
    "benign": "harmless",
    "unsafe": "harmful",
    "harmful": "harmful",
}


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


def _optional_text(values: Mapping[str, Any], name: str, where: str) -> str | None:
    """A column's text; whole numbers, which spreadsheets and pandas make of ids and categories, count as text."""
    for alias in _ALIASES[name]:
        value = values.get(alias)
        if value is None or value == "":
            continue
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and name in ("id", "category", "kind"):
            return str(value)
        if not isinstance(value, str):
            raise InputError(f"{alias} must be text, not {value!r}", where=where, remedy="Quote it.")
        return value
    return None


def _targets(values: Mapping[str, Any], where: str) -> tuple[str, ...]:
    found = values.get("targets", values.get("target"))
    if isinstance(found, str) and re.fullmatch(
        r"\s*\[.*\]\s*", found, re.DOTALL
    ):  # a list, as pandas writes it
        with suppress(ValueError, SyntaxError):
            found = ast.literal_eval(found.strip())
    listed = [found] if isinstance(found, str) else found or []
    if not isinstance(listed, list) or not all(isinstance(target, str) for target in listed):
        raise InputError("targets must be text or a list of texts", where=where, remedy="Correct the row.")
    return tuple(target for target in listed if target.strip())


def _names_lowered(row: Row) -> Row:
    return Row(row.where, {str(name).strip().lower(): value for name, value in row.values.items()})


def _text_column(row: Row) -> str | None:
    """The column that holds a row's request; None where there is none by name.

    Raises:
        InputError: several could be meant, or another column holds text that would not be sent.
    """
    used = {name for name, value in row.values.items() if value not in (None, "")}
    found = [name for name in TEXT_COLUMNS if name in used]
    if "goal" in found and "target" in used:  # AdvBench and JailbreakBench, where `behavior` is a short name
        found = [name for name in found if name != "behavior"]
    if len(found) > 1:
        raise InputError(
            f"columns {' and '.join(found)} could both hold the request",
            where=row.where,
            remedy="Rename or remove the other one.",
        )
    beside = sorted(used & _SENT_ELSEWHERE - ({"input"} if found == ["instruction"] else set()))
    if found and beside:
        raise InputError(
            f"column {beside[0]!r} holds text that would not be sent",
            where=row.where,
            remedy="Put it into the prompt, or rename it; a system message is set with --system or model.system.",
        )
    return found[0] if found else None


def _request(values: Mapping[str, Any], column: str | None, where: str) -> str:
    """The text of a row: a string, or the one user turn of a list of messages.

    Alpaca's `input` follows its instruction after a blank line.
    """
    found = values.get(column) if column else next((values[n] for n in _MESSAGES if values.get(n)), None)
    if isinstance(found, list):
        turns = [
            _one_text(one.get("content", one.get("value"))) if isinstance(one, dict) else one for one in found
        ]
        roles = [str(one.get("role", one.get("from"))) if isinstance(one, dict) else "user" for one in found]
        if len(turns) != 1 or roles[0] not in ("user", "human") or not isinstance(turns[0], str):
            raise InputError(
                f"a conversation of {len(turns)} turns ({', '.join(roles[:4])})",
                where=where,
                remedy="Give one user turn for a prompt; set a system message with --system or model.system.",
            )
        found = turns[0]
    if not isinstance(found, str) or not found.strip():
        raise InputError(
            "no prompt in this row"
            if found in (None, "") or isinstance(found, str)
            else f"its {column} is no text",
            where=where,
            remedy=f"Name the column one of {', '.join(TEXT_COLUMNS)}.",
        )
    given = values.get("input") if column == "instruction" else None
    if given is not None and not isinstance(given, str):
        raise InputError(f"input must be text, not {given!r}", where=where, remedy="Quote it.")
    return f"{found}\n\n{given}" if given and given.strip() else found


def _one_text(content: object) -> object:
    """The text of a turn that is one part of text, as in `[{"type": "text", "text": …}]`; else the content as it is."""
    if (
        isinstance(content, list)
        and len(content) == 1
        and isinstance(content[0], dict)
        and set(content[0]) <= {"type", "text"}
    ):
        return content[0].get("text")
    return content


def _user_prompt(row: Row, number: int, stem: str, label: Label) -> Prompt:
    values = row.values
    text = _request(values, _text_column(row), row.where)
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


def _labels(rows: Sequence[Row], path: Path) -> list[Label | None]:
    """What each row says of itself: by its `label`, or, in XSTest's older file, by its type; None: nothing.

    Raises:
        InputError: labels that are not understood, or that only some rows have.
    """
    column = next((c for c in _LABEL_COLUMNS if any(row.values.get(c) is not None for row in rows)), "label")
    values = [row.values.get(column) for row in rows]
    given = ["" if value is None else str(value).strip().lower() for value in values]
    if any(given):
        unknown = sorted({label for label in given if label not in LABELS})
        if unknown:
            shown = ", ".join(repr(label) if label else "nothing" for label in unknown[:6])
            raise InputError(
                f"its labels are not understood: {shown}",
                where=str(path),
                remedy=f"Use {', '.join(LABELS)} in the column `{column}`, or rename it if it means something else.",
            )
        return [LABELS[label] for label in given]
    kinds = [str(row.values.get("type") or "") for row in rows]
    if any(kind.startswith("contrast_") for kind in kinds):
        return ["harmful" if kind.startswith("contrast_") else "harmless" for kind in kinds]
    return [None] * len(rows)


def read_prompt_file(path: Path, *, name: str, role: Role, label: Label) -> PromptSet:
    """Prompts of a file that a user named.

    CSV with a header, JSON, or JSONL (see `user_files.rows_of`). The text is in a column named one of `TEXT_COLUMNS`,
    or the one user turn of `messages`; `id`, `category`, `kind`, `context`, `target(s)`, `check` and `answer`, and
    HarmBench's, XSTest's and Alpaca's names for them, are read where present. A list of strings will do in JSON and
    JSONL. Rows whose `label` says the opposite (safe or harmless, unsafe or harmful) are left out, so that XSTest's own
    file serves both its halves.

    Raises:
        DataMissingError: no such file.
        InputError: a row that cannot be used (with its line), unknown labels, two columns of requests, or no rows.
    """
    content = read_user_bytes(path)
    found = [_names_lowered(row) for row in rows_of(path, content)]
    own = _labels(found, path)
    rows = [row for row, said in zip(found, own, strict=True) if said in (None, label)]
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
