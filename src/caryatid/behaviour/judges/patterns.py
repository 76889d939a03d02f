"""Speech acts of refusing, as patterns over one lower-case sentence each (`patterns.json`).

They describe the grammar of the act (who speaks, the negation, what is withheld), not remembered phrases, so that they
hold for models whose wording was never seen. `behaviour.judges.acts` and `behaviour.judges.rules` weigh them.

In the file a regular expression is a string, or a list of strings to be joined. In it `<name>` stands for one of the
file's `parts` or for any entry of a list of `words.json`, and `<words 0-3>` for so many words, as few as possible.
"""

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from ...paths import package_json
from .words import any_of

_PLACEHOLDER = re.compile(r"<(?:words (\d+)-(\d+)|(\w+))>")


@cache
def _stored() -> Mapping[str, Any]:
    content: Mapping[str, Any] = package_json("behaviour/judges/patterns.json")
    return content


def _regex(stored: str | list[str]) -> str:
    """A regular expression of the file with its placeholders filled in."""

    def fill(match: re.Match[str]) -> str:
        low, high, name = match.groups()
        if name is None:
            return rf"(?: [\w'\"-]+,?){{{low},{high}}}?"
        part = _stored()["parts"].get(name)
        return any_of(name) if part is None else _regex(part)

    return _PLACEHOLDER.sub(fill, "".join(stored))


@cache
def pattern(name: str) -> re.Pattern[str]:
    """A pattern by its name in the file."""
    return re.compile(_regex(_stored()["patterns"][name]["regex"]))


def says(text: str, *names: str) -> bool:
    """Whether any of the named patterns is found in a lower-case text."""
    return any(pattern(name).search(text) for name in names)
