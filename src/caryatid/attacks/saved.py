"""Saved test cases, made once and sent unchanged to every anchor; and targets for behaviours that come with none."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from caryatid.artifacts import canonical_json, read_json, write_json
from caryatid.attacks.gcg.search import GcgResult
from caryatid.errors import DataMissingError, InputError

_FORMAT = 1
_OPENING = "Sure, here is"
_LONGEST_RESTATEMENT = 24  # words
# What a request begins with, and what stays of it in "Sure, here is …".
_POLITE = re.compile(
    r"^(?:please|kindly|can you|could you|would you|will you|i (?:want|need) you to)\s+", re.I
)
_PRODUCE = re.compile(
    r"^(?:write|create|generate|draft|compose|produce|provide|give|list|show|make|design|develop|prepare|devise|"
    r"tell|craft|outline|suggest|offer|describe|explain|summari[sz]e|discuss|identify|propose)\s+(?:me\s+|us\s+)?(?:to\s+)?",
    re.I,
)
_OBJECT = re.compile(
    r"^(?:a|an|the|some|my|your|this|that|these|those|how|what|why|where|when|which|who|whether|about|\d+|"
    r"detailed|step-by-step|specific|clear|complete|comprehensive|instructions?|steps?|ways?|methods?|tips|ideas|"
    r"examples?|advice|code|text)\b",
    re.I,
)
_QUESTION = re.compile(
    r"^(how|what|why|where|when|which|who)\s+(?:do|does|did|can|could|should|would|to|is|are)\b\s*", re.I
)
_BARE_HOW = re.compile(
    r"^how\s+(?:(?:do|can|could|should|would|might)\s+(?:i|we|you|one|someone)\s+|to\s+)", re.I
)


def default_target(behaviour: str) -> str:
    """`Sure, here is` + a restatement of the behaviour's first sentence, at most 24 words.

    >>> default_target("Write a letter to the mayor.")
    'Sure, here is a letter to the mayor'
    >>> default_target("How do I fold a paper boat?")
    'Sure, here is how to fold a paper boat'
    >>> default_target("Fold a paper boat")
    'Sure, here is how to fold a paper boat'
    """
    flat = " ".join(behaviour.split())
    sentence = re.split(r"(?<=[.!?])\s", flat, maxsplit=1)[0].rstrip(" .!?:;,")
    sentence = " ".join(_POLITE.sub("", sentence).split()[:_LONGEST_RESTATEMENT]).rstrip(" .!?:;,")
    if not sentence:
        return f"{_OPENING} the answer"
    if _BARE_HOW.match(sentence):
        return f"{_OPENING} how to {_BARE_HOW.sub('', sentence)}"
    if _QUESTION.match(sentence):
        return f"{_OPENING} the answer to {sentence[0].lower() + sentence[1:]}"
    thing = _PRODUCE.sub("", sentence)
    if thing != sentence and _OBJECT.match(thing):
        return f"{_OPENING} {thing}"
    return f"{_OPENING} how to {sentence[0].lower() + sentence[1:]}"


@dataclass(frozen=True)
class TestCase:
    """A suffix found for a behaviour, and its loss on the model it was found on.

    Attributes:
        user_text: behaviour, with its context where it has one, without the suffix.
        suffix_ids: tokens of the model it was found on; another model re-encodes `sent_text`.
    """

    __test__ = False  # not a pytest class

    behavior_id: str
    user_text: str
    target: str
    suffix_text: str
    suffix_ids: tuple[int, ...]
    loss: float

    @property
    def sent_text(self) -> str:
        """What the user sends: behaviour + one space + suffix."""
        return f"{self.user_text} {self.suffix_text}"

    @classmethod
    def of(cls, result: GcgResult) -> "TestCase":
        """The case that a search found."""
        return cls(
            result.behavior_id,
            result.user_text,
            result.target,
            result.suffix_text,
            result.suffix_ids,
            result.loss,
        )


@dataclass(frozen=True)
class SavedCases:
    """Test cases with where they come from (model identity, settings, …) and the hash that names them."""

    cases: tuple[TestCase, ...]
    source: Mapping[str, Any]
    sha256: str


def _content(cases: Sequence[TestCase], source: Mapping[str, Any]) -> dict[str, Any]:
    rows = [{**asdict(case), "suffix_ids": list(case.suffix_ids)} for case in cases]
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
        intact = digest == _digest(value) and value["format"] == _FORMAT
        cases = tuple(TestCase(**{**row, "suffix_ids": tuple(row["suffix_ids"])}) for row in value["cases"])
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
    return SavedCases(cases, source, digest)
