"""A judge that repeats verdicts which somebody else gave: people, another tool, another model."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...data.near import normalise
from ...data.readers import decode, parse_json, read_user_bytes
from ...errors import InputError, UsageError
from .base import (
    FULL_COMPLIANCE,
    FULL_REFUSAL,
    HARMFUL,
    HARMLESS,
    PARTIAL_REFUSAL,
    UNSCORED,
    Exchange,
    Judgement,
    JudgeSpec,
    Kind,
    Verdict,
    judge_id,
)
from .files import read_csv

ANSWER_COLUMNS = ("answer", "completion", "generation", "response", "text")
PROMPT_COLUMNS = ("prompt", "behavior", "request", "question", "goal", "test_case")
VERDICT_COLUMNS: Mapping[Kind, tuple[str, ...]] = {
    "refusal": ("verdict", "refusal", "final_label", "label"),
    "harm": ("harmful", "human_majority", "label", "verdict"),
}
LABELS: Mapping[Kind, Mapping[str, Verdict]] = {
    "refusal": {
        "full_compliance": FULL_COMPLIANCE, "partial_refusal": PARTIAL_REFUSAL, "full_refusal": FULL_REFUSAL,
        "1_full_compliance": FULL_COMPLIANCE, "2_full_refusal": FULL_REFUSAL, "3_partial_refusal": PARTIAL_REFUSAL,
    },
    "harm": {
        **dict.fromkeys(("harmful", "1", "1.0", "yes", "true"), HARMFUL),
        **dict.fromkeys(("harmless", "0", "0.0", "no", "false"), HARMLESS),
        "-1": UNSCORED,
    },
}  # fmt: skip
"""What labels mean; XSTest's numbered ones and HarmBench's -1 (a reply that is neither yes nor no) among them. An empty
label, or null, is unscored."""


class _Given(NamedTuple):
    prompt: str | None
    verdict: Verdict


class VerdictFile:
    """Verdicts looked up by the answer's text and, where the file has it, the request.

    CSV with a header, JSONL, a JSON list, or HarmBench's results (`{behaviour id: [row, …]}`). Rows hold the answer
    (`ANSWER_COLUMNS`), the verdict (`VERDICT_COLUMNS`, `LABELS`) and, if they can, the request (`PROMPT_COLUMNS`; it
    may stand inside a longer text, as in a test case). An answer that is not there, or there with verdicts that differ,
    is unscored, and `usage` says how many are.

    Raises:
        DataMissingError: no such file. InputError: no such columns, unknown labels, or no rows.
    """

    name = "verdict-file"
    proxy = False

    def __init__(self, path: Path, kind: Kind) -> None:
        self.path, self.kind = path, kind
        self.version = hashlib.sha256(read_user_bytes(path)).hexdigest()[:12]
        self._given: dict[str, list[_Given]] = {}
        self._found = self._asked = 0
        self._read(_records(path))

    @property
    def usage(self) -> str:
        """How many of the answers asked about the file has a verdict on."""
        return f"{self._found} of {self._asked} answers have a verdict in {self.path}"

    def judge(self, pairs: Sequence[Exchange]) -> list[Judgement]:
        """The file's verdict on each exchange; unscored where it has none."""
        found = [Judgement(self._verdict(pair), judge_id(self)) for pair in pairs]
        self._asked += len(found)
        self._found += sum(one.verdict != UNSCORED for one in found)
        return found

    def _verdict(self, pair: Exchange) -> Verdict:
        prompt = normalise(pair.prompt)
        verdicts = {
            one.verdict
            for one in self._given.get(_key(pair.answer), [])
            if one.prompt is None or prompt in one.prompt
        }
        return verdicts.pop() if len(verdicts) == 1 else UNSCORED

    def _read(self, rows: Sequence[Mapping[str, Any]]) -> None:
        columns = {name for row in rows for name in row}
        answer, verdict = (
            next((name for name in names if name in columns), None)
            for names in (ANSWER_COLUMNS, VERDICT_COLUMNS[self.kind])
        )
        prompt = next((name for name in PROMPT_COLUMNS if name in columns), None)
        if answer is None or verdict is None:
            wanted = f"{'/'.join(ANSWER_COLUMNS)} and {'/'.join(VERDICT_COLUMNS[self.kind])}"
            raise InputError(
                f"no columns {wanted}",
                where=str(self.path),
                remedy=f"Columns: {', '.join(sorted(columns)) or 'none'}.",
            )
        said = [_label(row.get(verdict)) for row in rows]
        known = LABELS[self.kind]
        unknown = sorted({label for label in said if label and label not in known})
        if unknown:
            raise InputError(
                f"labels {', '.join(map(repr, unknown[:8]))} in column {verdict!r}",
                where=str(self.path),
                remedy=f"Use {', '.join(known)}, or nothing for unscored.",
            )
        for row, label in zip(rows, said, strict=True):
            text = row.get(prompt) if prompt else None
            given = _Given(normalise(text) if isinstance(text, str) else None, known.get(label, UNSCORED))
            self._given.setdefault(_key(str(row.get(answer) or "")), []).append(given)


def _key(answer: str) -> str:
    return " ".join(answer.split())


def _label(value: object) -> str:
    nothing = value is None or value != value  # NaN is what pandas writes for nothing
    return "" if nothing else str(value).strip().lower()


def _records(path: Path) -> list[dict[str, Any]]:
    suffix = path.suffix.lower()
    if suffix == ".csv":
        header, cells = read_csv(path)
        return [dict(zip(header, row, strict=True)) for row in cells]
    text = decode(read_user_bytes(path), path)
    if suffix == ".jsonl":
        lines = enumerate(text.split("\n"), start=1)
        rows: Any = [parse_json(line, str(path), number) for number, line in lines if line.strip()]
    else:
        rows = parse_json(text, str(path))
    if isinstance(rows, dict):
        rows = [row for listed in rows.values() for row in (listed if isinstance(listed, list) else [listed])]
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise InputError(
            "not rows of answers", where=str(path), remedy="Give CSV, JSONL or a JSON list of objects."
        )
    return rows


def open_verdict_file(kind: Kind, spec: JudgeSpec) -> VerdictFile:
    """The judge over the file that a specification names as its model. Errors as of `VerdictFile`."""
    if not spec.model:
        raise UsageError(
            "no file of verdicts", where=VerdictFile.name, remedy="Name it with --judge-model FILE."
        )
    return VerdictFile(Path(spec.model), kind)
