"""Answers made fit for reading: control markers inert, markup gone, sentences apart.

Answers come from models under attack and may hold anything: chat markers, terminal sequences, HTML, control characters,
a hundred thousand characters. Nothing here depends on their being well formed, and every pattern is linear.
"""

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Collection
from typing import NamedTuple

from .words import words

READ_LIMIT = 20_000
"""Characters of an answer that the offline judges read; whether a request is refused shows long before."""

_MARKERS = re.compile(
    r"<\|[^|<>\n]{0,40}\|>"  # <|im_end|>, <|eot_id|>
    r"|</?s>|<<?/?SYS>>?|\[/?INST\]|<(?:start|end)_of_turn>|<(?:bos|eos|pad|unk)>"
    r"|<｜[^｜<>\n]{0,40}｜>"
    r"|\[/?(?:ANSWER|BEGIN DATA|END DATA)\]",
    re.IGNORECASE,
)
_COMMON_WORDS = frozenset(words("common"))
_STEM = 5
_INERT = str.maketrans({"<": "⟨", ">": "⟩", "[": "⟦", "]": "⟧"})
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[@-Z\\-_])")
_TAG = re.compile(r"</?[A-Za-z!][^<>\n]{0,200}>")
_CODE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_QUOTED = re.compile(r'"[^"\n]{1,600}"')
_SPLIT = re.compile(r"(?<=[.!?:])[\"')\]*]*\s+|\n+")
_LIST_ITEM = re.compile(  # also in bold; a line that is merely bold is none
    r"\s*(?:\*\*|__)?(?:\(?\d{1,2}[.):]|[-*–](?=\s)|[•·]|\(?[a-h][.)]|step \d{1,2}\b)\s*\S", re.IGNORECASE
)
_TYPOGRAPHY = str.maketrans({"’": "'", "‘": "'", "´": "'", "“": '"', "”": '"', "–": "-", "—": "-"})


def escape_markers(text: str, also: Collection[str] = ()) -> str:
    """Make chat and judge control markers inert and control characters visible, losing nothing.

    `<|im_end|>` becomes `⟨|im_end|⟩`, `[INST]` becomes `⟦INST⟧`, a marker without brackets gets a dot after its first
    character; control characters other than newline and tab become `\\x1b`-like escapes. To be applied before an answer
    is put into any prompt.

    Args:
        also: further markers, such as the special tokens of a judge's tokenizer.
    """
    marked = _MARKERS.sub(lambda match: match[0].translate(_INERT), text)
    for marker in sorted(also, key=len, reverse=True):
        inert = marker.translate(_INERT)
        marked = marked.replace(marker, inert if inert != marker else f"{marker[:1]}·{marker[1:]}")
    return "".join(
        ch if ch in "\n\t" or unicodedata.category(ch) not in {"Cc", "Cf", "Cs"} else f"\\x{ord(ch):02x}"
        for ch in marked
    )


def readable(answer: str) -> str:
    """The words of an answer: no markers, markup, terminal or control characters; plain quotes; at most READ_LIMIT."""
    text = _MARKERS.sub(" ", _ANSI.sub("", answer[: 2 * READ_LIMIT]))
    text = html.unescape(_TAG.sub(" ", text))
    text = unicodedata.normalize("NFKC", text).translate(_TYPOGRAPHY)
    hidden = {ch for ch in {*text} - {"\n", "\t"} if unicodedata.category(ch)[0] == "C"}
    text = text.translate(dict.fromkeys(map(ord, hidden)))
    return text.replace("\t", " ").strip()[:READ_LIMIT]


def latin(text: str) -> bool:
    """Whether at least half of the letters of a text are Latin ones: what the offline judges can read."""
    letters = {ch: count for ch, count in Counter(text).items() if ch.isalpha()}
    latin_ones = sum(count for ch, count in letters.items() if "LATIN" in unicodedata.name(ch, ""))
    return 2 * latin_ones >= sum(letters.values())


class Sentences(NamedTuple):
    """An answer in sentences, lower case.

    Attributes:
        prose: sentences that are no list items, in order, with quoted speech blanked.
        items: list items.
        code: whether there is a code block.
        words: number of words of the answer, items and code included.
    """

    prose: tuple[str, ...]
    items: tuple[str, ...]
    code: bool
    words: int


def sentences(text: str) -> Sentences:
    """Split a `readable` text. Quoted speech does not count as the model's own words unless it is the whole text."""
    code = "```" in text
    plain = _CODE.sub("\n", text)
    unquoted = _QUOTED.sub(' "" ', plain)
    if len(unquoted.strip(' "\n')) < 2:
        unquoted = plain
    lines = unquoted.splitlines()
    listed = sum(bool(_LIST_ITEM.match(line)) for line in lines) > 1
    prose: list[str] = []
    items: list[str] = []
    for line in lines:
        if listed and _LIST_ITEM.match(line):
            items.append(line.strip().lower())
            continue
        pieces = (piece.strip(" *_#>\"'").lower() for piece in _SPLIT.split(line) if piece)
        prose.extend(piece for piece in pieces if piece)
    return Sentences(tuple(prose), tuple(items), code, len(text.split()))


def word_list(text: str) -> list[str]:
    """Lower-case words of letters, digits and apostrophes."""
    return re.findall(r"[a-z0-9']+", text.lower())


def stem(word: str) -> str:
    """The beginning of a word, by which its forms are taken for one."""
    return word[:_STEM]


def content_stems(text: str) -> set[str]:
    """Stems of the words of a request that say what it is about."""
    return {stem(word) for word in word_list(text) if word not in _COMMON_WORDS and len(word) > 2}
