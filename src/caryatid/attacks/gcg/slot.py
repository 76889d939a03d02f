"""Where a suffix sits in a templated prompt, and which suffixes come back unchanged from decode → encode.

The user sends behaviour + one space + suffix. Only the ids that the tokenizer gives for that whole templated text
count: tokens may merge across the behaviour, the space and the template. The suffix's ids are those tokens of
the prompt that hold the suffix text; with most byte-level tokenizers the first of them also holds the space.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ...errors import InputError
from ...models.template import ChatFormat
from .candidates import Substitutions, decode_ids, encode_texts

_ANCHOR = 4  # tokens of the prompt decoded before a suffix, so that word-start markers show as spaces
_DECODED = 24  # endings of a prompt that are decoded in one call
_KEPT = 4096  # initial suffixes of a chat format, which R2D2 asks for at every update
_FILLERS = ("!", "x", "*", "a", "the", "1")
_PROBE = "x y"
_CHECKS_PER_CANDIDATE = 16
_SURVIVAL = 2 / 3  # supposed before the first check
_LEAST_SURVIVAL = 1 / 8


@dataclass
class Survival:
    """Share of a case's candidates that survived its last round trip; sizes the next batch to check."""

    rate: float = _SURVIVAL

    def checks(self, wanted: int) -> int:
        """How many candidates to check at once so that `wanted` of them probably survive."""
        return math.ceil(wanted / self.rate) + 8

    def saw(self, survivors: int, checked: int) -> None:
        self.rate = max(survivors / checked, _LEAST_SURVIVAL)


@dataclass(frozen=True)
class SuffixSlot:
    """The place of the suffix in one user's templated prompt.

    Attributes:
        head, tail: templated text before the space and after the suffix.
        lead: a space if the first suffix token holds it, else empty (the space is then part of the prefix).
        prefix_ids, post_ids: the prompt's tokens before and after the suffix.
    """

    head: str
    tail: str
    lead: str
    prefix_ids: tuple[int, ...]
    post_ids: tuple[int, ...]

    def text(self, suffix_text: str) -> str:
        """The whole templated prompt with this suffix."""
        return f"{self.head} {suffix_text}{self.tail}"

    def suffix_texts(
        self, tokenizer: PreTrainedTokenizerBase, suffixes: Sequence[Sequence[int]]
    ) -> list[str | None]:
        """The text a user would type for each suffix, or None if it does not start with the space it must.

        Suffixes that begin or end with white space give None too: a template may trim them.
        """
        anchor = self.prefix_ids[-_ANCHOR:]
        before = decode_ids(tokenizer, [anchor])[0]
        texts: list[str | None] = []
        for text in decode_ids(tokenizer, [(*anchor, *suffix) for suffix in suffixes]):
            start = before + self.lead
            suffix = text[len(start) :] if text.startswith(start) else ""
            texts.append(suffix if suffix and suffix == suffix.strip() else None)
        return texts

    def prompt_ids(self, suffix_ids: Sequence[int]) -> list[int]:
        """All tokens of the templated prompt."""
        return [*self.prefix_ids, *suffix_ids, *self.post_ids]


@dataclass(frozen=True)
class PlacedSuffix:
    """A slot with the suffix found in it; `text` is what the user types after behaviour and space."""

    slot: SuffixSlot
    ids: tuple[int, ...]
    text: str


_INITIAL: WeakKeyDictionary[ChatFormat, dict[tuple[str, int], PlacedSuffix]] = WeakKeyDictionary()


def place_suffix(chat: ChatFormat, user_text: str, suffix_text: str) -> PlacedSuffix | None:
    """Find the suffix in the tokens of the templated prompt; None if a token straddles its ends.

    Raises:
        InputError: the chat template alters the user's text beyond placing it.
    """
    needle = f" {suffix_text}"
    rendered = chat.text(user_text + needle)
    tail = chat.after
    head = rendered.removesuffix(needle + tail)
    if head == rendered or chat.text(f"{user_text} {_PROBE}") != f"{head} {_PROBE}{tail}":
        raise InputError(
            "the chat template changes the text of the user's message",
            where="GCG",
            remedy="Use a template that places the message unchanged.",
        )
    tokenizer = chat.tokenizer
    spans = chat.spans(user_text + needle)
    ids, end = list(spans.ids), spans.user_end
    for first, piece in _endings(tokenizer, ids[:end]):
        if piece in (needle, suffix_text):
            lead = " " if piece == needle else ""
            slot = SuffixSlot(head, tail, lead, tuple(ids[:first]), tuple(ids[end:]))
            return PlacedSuffix(slot, tuple(ids[first:end]), suffix_text)
        if piece is not None and len(piece) > len(needle):
            return None
    return None


def _endings(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> Iterator[tuple[int, str | None]]:
    """What the tokens from an index on add to the text before them, the last token first; None: more than they add
    changes."""
    for stop in range(len(ids), 0, -_DECODED):
        starts = range(stop - 1, max(stop - _DECODED, 0) - 1, -1)
        anchors = [max(0, first - _ANCHOR) for first in starts]
        befores = decode_ids(tokenizer, [ids[at:first] for at, first in zip(anchors, starts, strict=True)])
        texts = decode_ids(tokenizer, [ids[at:] for at in anchors])
        for first, before, text in zip(starts, befores, texts, strict=True):
            yield first, text[len(before) :] if text.startswith(before) else None


def initial_suffix(chat: ChatFormat, user_text: str, length: int) -> PlacedSuffix:
    """A suffix of exactly `length` tokens that survives in this prompt: "! ! ! …", else the same of another filler.

    Raises:
        InputError: `length` is below 1, or no filler gives that many tokens.
    """
    if length < 1:
        raise InputError(f"suffix length {length} is below 1", where="GCG")
    known = _INITIAL.setdefault(chat, {})
    if (user_text, length) not in known:
        if len(known) >= _KEPT:
            known.clear()
        known[user_text, length] = _initial_suffix(chat, user_text, length)
    return known[user_text, length]


def _initial_suffix(chat: ChatFormat, user_text: str, length: int) -> PlacedSuffix:
    for filler in _FILLERS:
        for words in sorted(range(1, 2 * length + 2), key=lambda n: abs(n - length)):
            placed = place_suffix(chat, user_text, " ".join([filler] * words))
            if placed is not None and len(placed.ids) == length:
                return placed
    raise InputError(
        f"no initial suffix of {length} tokens survives in the prompt {user_text[:60]!r}",
        where="GCG",
        remedy="Name another suffix length.",
    )


def given_suffix(chat: ChatFormat, user_text: str, suffix_ids: Sequence[int]) -> PlacedSuffix:
    """The suffix that a user's message holds for given ids, re-encoded in this prompt.

    Where the ids do not survive, the ids of their text take their place (their number may differ); where that
    text cannot be placed either, the initial suffix of the same length does.
    """
    fresh = initial_suffix(chat, user_text, len(suffix_ids))
    text = fresh.slot.suffix_texts(chat.tokenizer, [suffix_ids])[0]
    if text is None:
        text = decode_ids(chat.tokenizer, [suffix_ids])[0].strip()
    placed = place_suffix(chat, user_text, text) if text else None
    return placed or fresh


def round_trip(
    slot: SuffixSlot, tokenizer: PreTrainedTokenizerBase, candidates: Int[Tensor, "candidates length"]
) -> Bool[Tensor, "candidates"]:
    """Which candidates the tokenizer reproduces from the text of the whole templated prompt (one batched call)."""
    rows = candidates.tolist()
    texts = slot.suffix_texts(tokenizer, rows)
    typed = [(row, text) for row, text in enumerate(texts) if text is not None]
    again = encode_texts(tokenizer, [slot.text(text) for _, text in typed])
    survives = torch.zeros(len(rows), dtype=torch.bool)
    for (row, _), ids in zip(typed, again, strict=True):
        survives[row] = ids == slot.prompt_ids(rows[row])
    return survives


def surviving_candidates(
    slot: SuffixSlot,
    tokenizer: PreTrainedTokenizerBase,
    suffix_ids: Int[Tensor, "length"],
    order: Substitutions,
    width: int,
    survival: Survival | None = None,
) -> Int[Tensor, "candidates length"]:
    """The first `width` candidates of `order` that survive the round trip; fewer, or none, if the order runs out.

    At most 16 x width substitutions are tried; `survival`, learnt here, decides only how many in one call.
    """
    found: list[Tensor] = []
    survival = survival or Survival()
    missing, start = width, 0
    limit = min(len(order.positions), _CHECKS_PER_CANDIDATE * width)
    while missing > 0 and start < limit:
        stop = min(limit, start + survival.checks(missing))
        tried = Substitutions(order.positions[start:stop], order.tokens[start:stop]).apply(suffix_ids)
        passed = tried[round_trip(slot, tokenizer, tried)]
        survival.saw(len(passed), len(tried))
        survivors = passed[:missing]
        found.append(survivors)
        missing, start = missing - len(survivors), stop
    return torch.cat(found) if found else suffix_ids.new_empty((0, len(suffix_ids)))
