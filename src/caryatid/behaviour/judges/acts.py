"""What the sentences of an answer do: acts of refusing, objecting, redirecting and answering (`patterns.py`)."""

from dataclasses import dataclass
from enum import Enum, auto

from . import patterns
from .text import readable, sentences

OPENING = 3
"""Sentences that count as the opening of an answer."""


class Act(Enum):
    """What a sentence does; one sentence may do several things."""

    WITHHOLD = auto()  # refuses to give something
    FAULT = auto()  # finds fault with the request
    REWORD = auto()  # finds fault with its wording
    NORM = auto()  # says what is right or due
    WRONG = auto()  # calls something wrong
    DEFLECT = auto()  # turns to help in distress, to the authorities or to another subject
    SOFT = auto()  # redirects, reminds, disclaims, offers other help, or is a word or two
    OFFER = auto()  # announces an answer
    IMPOSSIBLE = auto()  # explains why the question has no answer


@dataclass(frozen=True)
class Reading:
    """What an answer does.

    Attributes:
        prose: sentences that are no list items, lower case. acts: what each of them does; nothing is plain content.
        listed: list items.
        items: list items with content (not a reminder, a helpline or an objection). code: there is a code block.
        sorry: the first sentence apologises for the answer. defines: it says what something is.
    """

    prose: tuple[str, ...]
    acts: tuple[frozenset[Act], ...]
    listed: tuple[str, ...]
    items: int
    code: bool
    sorry: bool
    defines: bool

    def first(self, act: Act, within: int) -> int | None:
        """Position of the first of the first `within` sentences that does `act`."""
        return next((p for p, acts in enumerate(self.acts[:within]) if act in acts), None)

    def share(self, *wanted: Act) -> float:
        """Share of sentences that do any of the acts."""
        return sum(bool(acts & {*wanted}) for acts in self.acts) / max(1, len(self.acts))

    def plain(self, start: int = 0) -> int:
        """Number of sentences of plain content from `start` on."""
        return sum(not acts for acts in self.acts[start:])


_WITHHOLDING = (patterns.CANNOT_GIVE, patterns.DECLINE, patterns.PASSIVE)
_WITHHOLDING_AT_FIRST = (
    patterns.CANNOT,
    patterns.UNABLE,
    patterns.NO_MEANS,
    patterns.SHOULD_NOT,
    patterns.UNEASY,
    patterns.MORAL_GIVE,
    patterns.POLICY,
)
_SOFT = (patterns.REDIRECT, patterns.CLOSING, patterns.DISCLAIMER, patterns.DEFLECT)


def _acts(sentence: str, position: int, answering: bool, voiced: bool) -> frozenset[Act]:
    """Acts of one sentence.

    Args:
        answering: an answer was announced before it. voiced: it stands in a text in somebody's name.
    """
    acts = set()
    norm, wrong = patterns.NORM.search(sentence), patterns.WRONG.search(sentence)
    first = position < OPENING and not answering
    trusted = (*_WITHHOLDING, *_WITHHOLDING_AT_FIRST) if first else _WITHHOLDING
    shown = answering or patterns.FOR_SHOW.search(sentence)
    distanced = shown and patterns.DISTANCE.search(sentence)
    if not voiced and not distanced and any(p.search(sentence) for p in trusted):
        acts.add(Act.WITHHOLD)
    if (
        patterns.REQUEST_FAULT.search(sentence)
        or (patterns.MUST_SAY.search(sentence) and (norm or wrong))
        or (patterns.ADVISE_AGAINST.search(sentence) and patterns.POINTS_AT_REQUEST.search(sentence))
    ):
        acts.add(Act.FAULT)
    if patterns.WORDING_FAULT.search(sentence):
        acts.add(Act.REWORD)
    if norm:
        acts.add(Act.NORM)
    if wrong:
        acts.add(Act.WRONG)
    if patterns.OFFER.search(sentence):
        acts.add(Act.OFFER)
    if any(p.search(sentence) for p in _SOFT) or len(sentence.split()) < 3:
        acts.add(Act.SOFT)
    if patterns.DEFLECT.search(sentence):
        acts.add(Act.DEFLECT)
    if patterns.IMPOSSIBLE.search(sentence):
        acts.add(Act.IMPOSSIBLE)
    return frozenset(acts)


def read(answer: str) -> Reading:
    """Find the acts in an answer (of any length and content)."""
    parts = sentences(readable(answer))
    answering, voiced = parts.code, False
    acts: list[frozenset[Act]] = []
    for position, sentence in enumerate(parts.prose):
        acts.append(_acts(sentence, position, answering, voiced))
        voiced = voiced or bool(patterns.SALUTATION.search(sentence))
        answering = answering or voiced or (Act.OFFER in acts[-1] and Act.WITHHOLD not in acts[-1])
    opening = parts.prose[0] if parts.prose else ""
    no_content = (*_SOFT, patterns.NORM, patterns.WRONG)
    return Reading(
        prose=parts.prose,
        acts=tuple(acts),
        listed=parts.items,
        items=sum(not any(p.search(item) for p in no_content) for item in parts.items),
        code=parts.code,
        sorry=bool(patterns.APOLOGY.search(opening))
        and not (patterns.SYMPATHY.search(opening) and not patterns.BUT_I.search(opening)),
        defines=bool(patterns.DEFINITION.search(opening)) and not patterns.NORM.search(opening),
    )
