"""When two prompts count as the same: normalised text, and an index that finds near-duplicates quickly.

Two texts are near-duplicates when their normalised forms are equal, when the Jaccard similarity of their sets of
words is at least `JACCARD`, or when one set of words contains the other (a prompt with a few words put in) and the
similarity is at least `CONTAINED`, for a contained set of `LONG` words or more at least `LONG_CONTAINED` ("build a pipe
bomb", "… from household objects"). The rule errs towards "same": word order, case and punctuation do not count.
"""

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Self

JACCARD = 0.9
CONTAINED = 0.75
LONG = 6
LONG_CONTAINED = 0.6
_WORD = re.compile(r"\w+")
_APOSTROPHES = re.compile(r"['’‘ʼ`]")


def normalise(text: str) -> str:
    """Case-folded words of `text` (NFKC) joined by single spaces; the stripped text when it has no words."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    words = _WORD.findall(_APOSTROPHES.sub("", folded))
    return " ".join(words) if words else " ".join(folded.split())


@dataclass(frozen=True)
class Fingerprint:
    """What of a prompt is compared: its normalised text and its normalised context string."""

    text: str
    context: str
    words: frozenset[str]

    @classmethod
    def of(cls, text: str, context: str | None) -> Self:
        """The fingerprint of a prompt."""
        normal = normalise(text)
        return cls(normal, normalise(context) if context else "", frozenset(normal.split()))


class Match(NamedTuple):
    """An indexed item that is a near-duplicate of a query."""

    item: int
    similarity: float


def similarity(a: frozenset[str], b: frozenset[str]) -> float:
    """Jaccard similarity |a ∩ b| / |a ∪ b| of two sets of words; 1 for two empty sets."""
    common = len(a & b)
    union = len(a) + len(b) - common
    return common / union if union else 1.0


def are_near(a: frozenset[str], b: frozenset[str]) -> bool:
    """Whether two sets of words are near-duplicates by this module's rule."""
    least = JACCARD
    if a <= b or b <= a:
        least = LONG_CONTAINED if min(len(a), len(b)) >= LONG else CONTAINED
    return similarity(a, b) >= least


@lru_cache(maxsize=4096)
def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _contexts_agree(a: str, b: str) -> bool:
    return a == b or (bool(a) and bool(b) and are_near(_words(a), _words(b)))


class NearIndex:
    """An inverted index over fingerprints, exact for the rule above.

    Two sets with Jaccard similarity ≥ t share one of their |x| − ⌈t·|x|⌉ + 1 rarest words (prefix filtering,
    Bayardo et al. 2007), so only those words are indexed and looked up.

    Args:
        frequency: in how many fingerprints each word occurs; every word that will be added or looked up.
    """

    def __init__(self, frequency: Mapping[str, int]) -> None:
        self._frequency = frequency
        self._prints: list[Fingerprint] = []
        self._by_text: defaultdict[str, list[int]] = defaultdict(list)
        self._by_word: defaultdict[str, list[int]] = defaultdict(list)

    @classmethod
    def over(cls, prints: Iterable[Fingerprint]) -> Self:
        """An empty index for `prints`."""
        return cls(Counter(word for one in prints for word in one.words))

    def _rarest(self, words: frozenset[str]) -> list[str]:
        count = len(words) - math.ceil(LONG_CONTAINED * len(words)) + 1
        return sorted(words, key=lambda word: (self._frequency[word], word))[:count] if words else []

    def add(self, fingerprint: Fingerprint) -> int:
        """Index one more fingerprint; returns its item number, counted from 0."""
        item = len(self._prints)
        self._prints.append(fingerprint)
        self._by_text[fingerprint.text].append(item)
        for word in self._rarest(fingerprint.words):
            self._by_word[word].append(item)
        return item

    def matches(self, fingerprint: Fingerprint) -> list[Match]:
        """All near-duplicates of `fingerprint`, most similar first, then in the order of addition."""
        found = dict.fromkeys(self._by_text.get(fingerprint.text, ()), 1.0)
        words = fingerprint.words
        candidates = {item for word in self._rarest(words) for item in self._by_word.get(word, ())}
        for item in candidates - found.keys():
            other = self._prints[item].words
            if min(len(words), len(other)) >= LONG_CONTAINED * max(len(words), len(other)) and are_near(
                words, other
            ):
                found[item] = similarity(words, other)
        agreeing = [
            Match(item, value)
            for item, value in found.items()
            if _contexts_agree(self._prints[item].context, fingerprint.context)
        ]
        return sorted(agreeing, key=lambda match: (-match.similarity, match.item))
