"""Saved test cases: made once, and sent unchanged to every anchor. HarmBench's own format is read and written, too."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..artifacts import canonical_json, nan_to_none, none_to_nan, read_json, write_json
from ..data.readers import decode, encodable, parse_json, read_user_bytes
from ..errors import DataMissingError, InputError
from ..models.turns import Sent, SoftTokens, Turn, plain_text, soft_from_json
from .base import AttackResult, sent_of

_FORMAT = 2


@dataclass(frozen=True)
class TestCase:
    """What an attack found for a behaviour (HarmBench's term), and its loss on the model it was found on.

    Attributes:
        user_text: behaviour, with its context where it has one, before the attack.
        sent_text: what the user sends.
        suffix_ids: tokens of the model it was found on; another model re-encodes `sent_text`.
        begun_text, soft: of an attack that is more than a text, see `AttackResult`.
    """

    __test__ = False  # not a pytest class

    attack: str
    behavior_id: str
    user_text: str
    target: str
    sent_text: str
    loss: float
    suffix_text: str = ""
    suffix_ids: tuple[int, ...] = ()
    begun_text: str = ""
    soft: SoftTokens | None = None

    @property
    def sent(self) -> Sent:
        """What the model is sent: `sent_text`, or a turn where that is not all."""
        return sent_of(self.sent_text, self.begun_text, self.soft)

    @classmethod
    def of(cls, result: AttackResult) -> "TestCase":
        """The part of a result that is sent, without what finding it cost."""
        return cls(**{one.name: getattr(result, one.name) for one in fields(cls)})


@dataclass(frozen=True)
class SavedCases:
    """Test cases with where they come from (model identity, settings, …) and the hash that names them."""

    cases: tuple[TestCase, ...]
    source: Mapping[str, Any]
    sha256: str


def _content(cases: Sequence[TestCase], source: Mapping[str, Any]) -> dict[str, Any]:
    rows = [nan_to_none({**asdict(case), "suffix_ids": list(case.suffix_ids)}) for case in cases]
    for row in rows:  # cases of text have the fields that they have always had
        for name in ("begun_text", "soft"):
            if not row[name]:
                del row[name]
    return {"format": _FORMAT, "source": dict(source), "cases": rows}


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()


def save_cases(path: Path, cases: Sequence[TestCase], source: Mapping[str, Any] | None = None) -> SavedCases:
    """Write cases as JSON, atomically, with the SHA-256 of their content.

    Args:
        source: plain JSON values that say where the cases come from.
    """
    content = _content(cases, source or {})
    digest = _digest(content)
    write_json(path, {**content, "sha256": digest})
    return SavedCases(tuple(cases), dict(source or {}), digest)


def load_cases(path: Path) -> SavedCases:
    """Read what `save_cases` wrote.

    Raises:
        DataMissingError: no such file. InputError: not such a file, or changed since it was written.
    """
    if not path.is_file():
        raise DataMissingError("no such file of test cases", where=str(path), remedy="Check the path.")
    value = read_json(path)
    try:
        digest = value.pop("sha256")
        intact, known = digest == _digest(value), value["format"]
        rows = value["cases"] if known == _FORMAT else []
        cases = tuple(
            TestCase(
                **{
                    **none_to_nan(row, TestCase),
                    "suffix_ids": tuple(row["suffix_ids"]),
                    "soft": soft_from_json(row.get("soft")),
                }
            )
            for row in rows
        )
        source = dict(value["source"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            "not a file of test cases", where=str(path), remedy="Name a file that save_cases wrote."
        ) from error
    if not intact:
        raise InputError(
            "the test cases were changed after they were written (checksum differs)",
            where=str(path),
            remedy="Restore the file, or make the cases anew.",
        )
    if known != _FORMAT:
        raise InputError(
            f"test cases of format {known}, this version reads format {_FORMAT}",
            where=str(path),
            remedy="Make the cases anew.",
        )
    return SavedCases(cases, source, digest)


def harmbench_json(cases: Iterable[TestCase | AttackResult]) -> dict[str, list[str]]:
    """HarmBench's `test_cases.json`: by behaviour id a list of the texts that are sent.

    Raises:
        InputError: a case is no text.
    """
    found: dict[str, list[str]] = {}
    for case in cases:
        found.setdefault(case.behavior_id, []).append(plain_text(case.sent, case.behavior_id))
    return found


def read_sent_texts(path: Path) -> dict[str, tuple[Sent, ...]]:
    """What to send, by behaviour id, of any file of test cases; texts, or turns where they are more than that.

    Three kinds are read: what `save_cases` wrote; the object `{"cases": …}` of `caryatid attack … --json` and of its
    `results.json`; and HarmBench's `test_cases.json`, `{"behaviour id": ["text", …], …}`, or its files of completions,
    in which an object with `test_case` stands for each text.

    Raises:
        DataMissingError: no such file. InputError: none of these, changed since `save_cases` wrote it, or a case whose
            text is empty or missing.
    """
    value = parse_json(decode(read_user_bytes(path), path), str(path))
    pairs: list[tuple[Any, Any]] = []
    if isinstance(value, dict) and "sha256" in value:
        pairs = [(case.behavior_id, case.sent) for case in load_cases(path).cases]
    elif isinstance(value, dict) and _are_rows(value.get("cases")):
        pairs = [(row.get("behavior_id"), _row_sent(row, path)) for row in value["cases"]]
    elif isinstance(value, dict):
        listed = [(name, texts if isinstance(texts, list) else [texts]) for name, texts in value.items()]
        given = [(name, one) for name, texts in listed for one in texts]
        pairs = [(name, one.get("test_case") if isinstance(one, dict) else one) for name, one in given]
    found: dict[str, tuple[Sent, ...]] = {}
    for name, sent in pairs:
        text = sent.text if isinstance(sent, Turn) else sent
        if not isinstance(name, str) or not isinstance(text, str) or not text.strip():
            raise InputError(
                f"a test case of {name!r} has no text",
                where=str(path),
                remedy="Give each behaviour a text to send.",
            )
        encodable(text, f"{path}, {name}")
        found[name] = (*found.get(name, ()), sent)
    if not found:
        raise InputError(
            "holds no test cases",
            where=str(path),
            remedy='Name saved cases, the output of `attack … --json`, or HarmBench\'s {"id": ["text", …]}.',
        )
    return found


def _row_sent(row: Mapping[str, Any], path: Path) -> Any:
    """What a row of `attack … --json` sends; checked by the caller, but for what is more than a text."""
    text, begun, soft = row.get("sent_text"), row.get("begun_text", ""), row.get("soft")
    if not isinstance(text, str) or not (begun or soft):
        return text
    try:
        found = Turn(text, encodable(begun, str(path)), soft_from_json(soft))
        if found.soft is not None:
            _ = found.soft.vectors
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"the case of {row.get('behavior_id')!r} has a damaged beginning or embeddings",
            where=str(path),
            remedy="Make the cases anew.",
        ) from error
    return found


def _are_rows(value: object) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(isinstance(row, dict) for row in value)
