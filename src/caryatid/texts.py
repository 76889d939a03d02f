"""Text from outside that cannot act on whoever shows it: a terminal, a browser, a spreadsheet."""

import re

# Characters that move or hide others: terminal controls, and those that turn the direction of writing.
_ACTING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def visible(text: str) -> str:
    """A text whose control, direction and invisible characters are spelt out (`\\x1b`, `\\u202e`); newlines and tabs
    stay, and a carriage return before a newline goes."""
    return _ACTING.sub(_spelt, text.replace("\r\n", "\n"))


def _spelt(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"


def inert(text: str) -> str:
    """A cell of a CSV file that no spreadsheet takes for a formula: an apostrophe goes before =, +, -, @, tab and
    carriage return."""
    return f"'{text}" if text.startswith(_FORMULA) else text
