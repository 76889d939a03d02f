"""Thoughts of reasoning models: how they are written, and what of an answer follows them."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

OPEN, CLOSE = "<think>", "</think>"
"""How a thought is written in a stored answer, whatever the model's own markers."""


class ThoughtFormat(NamedTuple):
    """A family's way of writing thoughts.

    Attributes:
        open, close: what stands before and after a thought. empty: a thought without content, as a template writes it.
        end: the control token that ends a thought and must not end the answer, where it is not part of `close`.
    """

    open: str
    close: str
    empty: str
    end: str | None = None


_FORMATS = (
    ThoughtFormat(OPEN, CLOSE, "<think>\n\n</think>\n\n"),  # DeepSeek-R1, Qwen3, QwQ, SmolLM3, GLM 4.5, …
    ThoughtFormat(  # gpt-oss: a channel for the thought, another one for the answer
        "<|channel|>analysis<|message|>",
        "<|channel|>final<|message|>",
        "<|channel|>final<|message|>",
        "<|end|>",
    ),
    ThoughtFormat("<|channel>thought\n", "<channel|>", "<|channel>thought\n<channel|>"),  # Gemma 4
    ThoughtFormat("[THINK]", "[/THINK]", "[THINK][/THINK]"),  # Magistral
    ThoughtFormat(
        "<|START_THINKING|>", "<|END_THINKING|>", "<|START_THINKING|><|END_THINKING|>"
    ),  # Command A
    ThoughtFormat("<seed:think>", "</seed:think>", "<seed:think>\n</seed:think>"),
    ThoughtFormat("◁think▷", "◁/think▷", "◁think▷◁/think▷"),  # Kimi
    ThoughtFormat("<thinking>", "</thinking>", "<thinking>\n\n</thinking>\n\n"),
    ThoughtFormat("<reasoning>", "</reasoning>", "<reasoning>\n\n</reasoning>\n\n"),
)


class Parted(NamedTuple):
    """An answer's parts: its thought, what follows it, and whether the thought is there and not finished."""

    thought: str
    answer: str
    unfinished: bool


class PartedIds(NamedTuple):
    """A generated answer's parts, and how many of its tokens stand before what follows the thought."""

    parts: Parted
    begins: int


# Other families' tags: EXAONE Deep's <thought>, LongCat's <longcat_think>, OpenThinker's <|begin_of_thought|>, …
_TAG = re.compile(r"</([a-z_:|]*(?:think|thought|reason)(?:s|ing)?)>")
_OPENING = re.compile(_TAG.pattern.replace("/", "", 1))
_BEGIN_OF = re.compile(r"<\|end_of_(thought|thinking|reasoning)\|>")


def thought_format(template: str) -> ThoughtFormat | None:
    """The way of writing thoughts that a chat template knows; None: it knows none."""
    for one in _FORMATS:
        if one.close in template or one.open.strip() in template:
            return one
    for pattern, opens in ((_TAG, "<{}>"), (_BEGIN_OF, "<|begin_of_{}|>")):
        found = pattern.search(template)
        if found:
            opening = opens.format(found[1])
            return ThoughtFormat(opening, found[0], f"{opening}\n\n{found[0]}\n\n")
    return None


def closing(tail: str, written: ThoughtFormat) -> str:
    """What to add to a prompt that ends with `tail`, so that an empty thought stands before the answer."""
    if written.close in tail:
        return ""
    opening = written.open.strip()
    if opening not in tail:
        return written.empty
    after = tail.rpartition(opening)[2]
    missing = written.empty.partition(opening)[2]
    return missing.removeprefix(after) if missing.startswith(after) else missing


def part_text(text: str) -> Parted:
    """The parts of a stored answer: what follows its last `</think>`; unfinished where `<think>` is not closed.

    >>> part_text("<think>May I? I cannot.</think> Yes: tie the knot.").answer
    'Yes: tie the knot.'
    >>> part_text("<think>I'm sorry").unfinished
    True
    """
    before, found, after = text.rpartition(CLOSE)
    if found:
        return Parted(
            before.partition(OPEN)[2].strip() if OPEN in before else before.strip(), after.strip(), False
        )
    if text.lstrip().startswith(OPEN):
        return Parted(text.lstrip().removeprefix(OPEN).strip(), "", True)
    written = _begun(text)
    if written is None:
        return Parted("", text, False)
    thought, found, after = text.partition(written.open.strip())[2].rpartition(written.close)
    thought = thought if found else after
    return Parted(
        (thought.partition(written.end)[0] if written.end else thought).strip(),
        after.strip() if found else "",
        not found,
    )


def _begun(text: str) -> ThoughtFormat | None:
    """The way of writing thoughts with which a stored answer begins."""
    begins = text.lstrip()
    tag = _OPENING.match(begins)
    known = (one for one in _FORMATS if begins.startswith(one.open.strip()))
    return next(known, None) or (thought_format(f"</{tag[1]}>") if tag else None)


def part_ids(tokenizer: Any, ids: Sequence[int], written: ThoughtFormat | None, opened: bool) -> PartedIds:
    """The parts of a generated answer, decoded without control tokens.

    Args:
        written: how the model writes thoughts; None: as text, if at all.
        opened: the prompt ends inside a thought.
    """

    def raw(tokens: Sequence[int]) -> str:
        return str(tokenizer.decode(list(tokens), skip_special_tokens=False))

    def plain(tokens: Sequence[int]) -> str:
        return str(tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()

    def inside(text: str) -> str:
        thought = text.rpartition(written.open.strip())[2] if written else text
        return (thought.partition(written.end)[0] if written and written.end else thought).strip()

    whole = raw(ids)
    if written is None:
        if CLOSE not in whole and not whole.lstrip().startswith(OPEN):
            return PartedIds(Parted("", plain(ids), False), 0)
        written = _FORMATS[0]
    times = whole.count(written.close)
    if not times:
        opening = written.open.strip()
        if not opened and opening not in whole:
            return PartedIds(Parted("", plain(ids), False), 0)
        return PartedIds(Parted(inside(whole), "", True), len(ids))
    low, high = 1, len(ids)  # the fewest tokens that hold every closing marker
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if raw(ids[:middle]).count(written.close) == times else (middle + 1, high)
    thought = inside(raw(ids[:low]).rpartition(written.close)[0])
    # A token may hold the end of the marker and the beginning of the answer.
    rest = raw(ids[:low]).rpartition(written.close)[2].strip()
    begins = low
    while begins < len(ids) and not raw([ids[begins]]).strip():
        begins += 1
    return PartedIds(Parted(thought, (rest + plain(ids[low:])).strip(), False), begins)


def stored(parts: Parted, keep: bool) -> str:
    """An answer as it is stored: what follows the thought; the whole with `keep`, or where it is unfinished."""
    if parts.unfinished:
        return f"{OPEN}\n{parts.thought}"
    return f"{OPEN}\n{parts.thought}\n{CLOSE}\n\n{parts.answer}" if keep and parts.thought else parts.answer
