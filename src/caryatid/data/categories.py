"""Topics for harmful prompts that come without one, so that directions per category can be taken.

The split that directions are extracted from has no categories. Word lists assign each prompt the topic with the most
hits; that is rough, but open to inspection and the same at every anchor. Assigned topics are marked; a prompt
without a hit stays without a category.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..paths import package_json
from .near import normalise
from .prompts import Prompt

MARK = "assigned: "

# Topic → beginnings of words (whole ones where a space follows). The first topic wins a tie.
STEMS: Mapping[str, Sequence[str]] = package_json("data/categories.json")


def _pattern(stems: Sequence[str]) -> re.Pattern[str]:
    return re.compile(r"\b(?:" + "|".join(sorted(map(re.escape, stems), key=len, reverse=True)) + ")")


_PATTERNS = {topic: _pattern(stems) for topic, stems in STEMS.items()}


def topic_of(text: str) -> str | None:
    """The topic with the most hits of its word list in `text`; None without a hit."""
    words = f"{normalise(text)} "
    hits = {topic: len(pattern.findall(words)) for topic, pattern in _PATTERNS.items()}
    best = max(hits, key=lambda topic: hits[topic])
    return best if hits[best] else None


def assign_categories(prompts: Sequence[Prompt]) -> tuple[Prompt, ...]:
    """`prompts` with a category where they had none and `topic_of` finds one, marked by `MARK`."""
    return tuple(
        prompt
        if prompt.category is not None or (topic := topic_of(prompt.text)) is None
        else replace(prompt, category=MARK + topic)
        for prompt in prompts
    )
