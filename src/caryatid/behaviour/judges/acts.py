"""What the sentences of an answer do: acts of refusing, objecting, redirecting and answering (`patterns.json`)."""

from dataclasses import dataclass
from enum import Enum, auto

from .patterns import says
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


_WITHHOLDING = ("cannot_give", "decline", "passive")
_WITHHOLDING_AT_FIRST = (
    "cannot",
    "unable",
    "no_means",
    "should_not",
    "uneasy",
    "moral_give",
    "policy",
)
_SOFT = ("redirects", "closes", "disclaims", "deflect")


def _acts(sentence: str, position: int, answering: bool, voiced: bool) -> frozenset[Act]:
    """Acts of one sentence.

    Args:
        answering: an answer was announced before it. voiced: it stands in a text in somebody's name.
    """
    acts = set()
    norm, wrong = says(sentence, "norm"), says(sentence, "wrong")
    first = position < OPENING and not answering
    trusted = (*_WITHHOLDING, *_WITHHOLDING_AT_FIRST) if first else _WITHHOLDING
    shown = answering or says(sentence, "for_show")
    distanced = shown and says(sentence, "distance")
    if not voiced and not distanced and says(sentence, *trusted):
        acts.add(Act.WITHHOLD)
    if (
        says(sentence, "request_fault")
        or (says(sentence, "must_say") and (norm or wrong))
        or (says(sentence, "advise_against") and says(sentence, "points_at_request"))
    ):
        acts.add(Act.FAULT)
    if says(sentence, "wording_fault"):
        acts.add(Act.REWORD)
    if norm:
        acts.add(Act.NORM)
    if wrong:
        acts.add(Act.WRONG)
    if says(sentence, "offer"):
        acts.add(Act.OFFER)
    if says(sentence, *_SOFT) or len(sentence.split()) < 3:
        acts.add(Act.SOFT)
    if says(sentence, "deflect"):
        acts.add(Act.DEFLECT)
    if says(sentence, "impossible"):
        acts.add(Act.IMPOSSIBLE)
    return frozenset(acts)


def read(answer: str) -> Reading:
    """Find the acts in an answer (of any length and content)."""
    parts = sentences(readable(answer))
    answering, voiced = parts.code, False
    acts: list[frozenset[Act]] = []
    for position, sentence in enumerate(parts.prose):
        acts.append(_acts(sentence, position, answering, voiced))
        voiced = voiced or says(sentence, "salutation")
        answering = answering or voiced or (Act.OFFER in acts[-1] and Act.WITHHOLD not in acts[-1])
    opening = parts.prose[0] if parts.prose else ""
    no_content = (*_SOFT, "norm", "wrong")
    return Reading(
        prose=parts.prose,
        acts=tuple(acts),
        listed=parts.items,
        items=sum(not says(item, *no_content) for item in parts.items),
        code=parts.code,
        sorry=says(opening, "apology") and not (says(opening, "sympathy") and not says(opening, "but_i")),
        defines=says(opening, "definition") and not says(opening, "norm"),
    )
