"""The benign-utility audit: does an everyday answer satisfy its check?

A check is a mapping with some of `any`, `all`, `not` (strings, or lists of them) and `regex` (a pattern, or a list of
which one must be found). Strings are matched as whole words, case-insensitively, with white space, quotes and dashes
made alike; a number is not found inside a longer number.
"""

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from ..errors import InputError

READ_LIMIT = 20_000
_KEYS = frozenset({"any", "all", "not", "regex"})
_ALIKE = str.maketrans(
    {"’": "'", "‘": "'", "“": '"', "”": '"', "–": "-", "—": "-", "−": "-", "‑": "-", "\u00a0": " "}
)


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).translate(_ALIKE).casefold().split())


def contains_words(text: str, words: str) -> bool:
    """Whether `words` stand in `text` as whole words."""
    needle = _plain(words)
    if not needle:
        return False
    before = r"(?<!\w)(?<!\d[.,])" if needle[0].isdigit() else r"(?<!\w)" if needle[0].isalnum() else ""
    after = r"(?!\w)(?![.,]\d)" if needle[-1].isdigit() else r"(?!\w)" if needle[-1].isalnum() else ""
    return re.search(before + re.escape(needle) + after, _plain(text)) is not None


def _listed(check: Mapping[str, Any], key: str) -> list[str]:
    value = check.get(key) or []
    items = [value] if isinstance(value, str) else list(value)
    if not all(isinstance(item, str) for item in items):
        raise InputError(f"{key!r} holds {value!r}", where="utility check", remedy="Give strings.")
    return items


def check_satisfied(check: Mapping[str, Any], text: str) -> bool:
    """Whether an answer satisfies a check.

    Raises:
        InputError: an unknown key, something that is not a string, or a pattern that does not compile.
    """
    unknown = sorted(set(check) - _KEYS)
    if unknown:
        raise InputError(
            f"unknown key {unknown[0]!r}", where="utility check", remedy=f"Use {', '.join(sorted(_KEYS))}."
        )
    head = text[:READ_LIMIT]
    wanted, needed, barred = (_listed(check, key) for key in ("any", "all", "not"))
    patterns = _listed(check, "regex")
    try:
        found = not patterns or any(re.search(pattern, head, re.IGNORECASE) for pattern in patterns)
    except re.error as error:
        raise InputError(f"pattern does not compile: {error}", where="utility check") from error
    return (
        found
        and (not wanted or any(contains_words(head, one) for one in wanted))
        and all(contains_words(head, one) for one in needed)
        and not any(contains_words(head, one) for one in barred)
    )
