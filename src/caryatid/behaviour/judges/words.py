"""Word lists of the offline judges (`words.json`); an entry may be a regular expression."""

import json
from collections.abc import Mapping
from functools import cache
from importlib import resources


@cache
def _lists() -> Mapping[str, list[str]]:
    found: Mapping[str, list[str]] = json.loads(
        (resources.files(__package__) / "words.json").read_text(encoding="utf-8")
    )
    return found


def words(name: str) -> tuple[str, ...]:
    """The entries of a list, in order."""
    return tuple(_lists()[name])


def any_of(name: str) -> str:
    """A regular expression for one of the entries of a list, in order."""
    return "(?:" + "|".join(words(name)) + ")"
