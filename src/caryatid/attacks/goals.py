"""Goals of attacks: from prompts or from a file of behaviours; targets for behaviours that come with none."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..data.prompts import Prompt, Role
from ..data.readers import decode, parse_json, read_prompt_file, read_user_bytes
from ..errors import InputError
from .base import Goal

_OPENING = "Sure, here is"
_LONGEST_RESTATEMENT = 24  # words
# What a request begins with, and what stays of it in "Sure, here is …".
_POLITE = re.compile(
    r"^(?:please|kindly|can you|could you|would you|will you|i (?:want|need) you to)\s+", re.I
)
_PRODUCE = re.compile(
    r"^(?:write|create|generate|draft|compose|produce|provide|give|list|show|make|design|develop|prepare|devise|"
    r"tell|craft|outline|suggest|offer|describe|explain|summari[sz]e|discuss|identify|propose)\s+(?:me\s+|us\s+)?(?:to\s+)?",
    re.I,
)
_OBJECT = re.compile(
    r"^(?:a|an|the|some|my|your|this|that|these|those|how|what|why|where|when|which|who|whether|about|\d+|"
    r"detailed|step-by-step|specific|clear|complete|comprehensive|instructions?|steps?|ways?|methods?|tips|ideas|"
    r"examples?|advice|code|text)\b",
    re.I,
)
_QUESTION = re.compile(
    r"^(how|what|why|where|when|which|who)\s+(?:do|does|did|can|could|should|would|to|is|are)\b\s*", re.I
)
_BARE_HOW = re.compile(
    r"^how\s+(?:(?:do|can|could|should|would|might)\s+(?:i|we|you|one|someone)\s+|to\s+)", re.I
)


def default_target(behaviour: str) -> str:
    """`Sure, here is` + a restatement of the behaviour's first sentence, at most 24 words.

    >>> default_target("Write a letter to the mayor.")
    'Sure, here is a letter to the mayor'
    >>> default_target("How do I fold a paper boat?")
    'Sure, here is how to fold a paper boat'
    >>> default_target("Fold a paper boat")
    'Sure, here is how to fold a paper boat'
    """
    flat = " ".join(behaviour.split())
    sentence = re.split(r"(?<=[.!?])\s", flat, maxsplit=1)[0].rstrip(" .!?:;,")
    sentence = " ".join(_POLITE.sub("", sentence).split()[:_LONGEST_RESTATEMENT]).rstrip(" .!?:;,")
    if not sentence:
        return f"{_OPENING} the answer"
    if _BARE_HOW.match(sentence):
        return f"{_OPENING} how to {_BARE_HOW.sub('', sentence)}"
    if _QUESTION.match(sentence):
        return f"{_OPENING} the answer to {sentence[0].lower() + sentence[1:]}"
    thing = _PRODUCE.sub("", sentence)
    if thing != sentence and _OBJECT.match(thing):
        return f"{_OPENING} {thing}"
    return f"{_OPENING} how to {sentence[0].lower() + sentence[1:]}"


def read_targets(path: Path) -> dict[str, str]:
    """Targets by behaviour id from a JSON object {id: text, or list of texts}; of a list the first that is not empty.

    Raises:
        DataMissingError: no such file. InputError: not such an object.
    """
    value = parse_json(decode(read_user_bytes(path), path), str(path))
    if not isinstance(value, dict):
        raise InputError(
            "must be a JSON object", where=str(path), remedy='Write {"behavior id": "target", …}.'
        )
    targets = {}
    for name, entry in value.items():
        listed = entry if isinstance(entry, list) else [entry]
        # HarmBench's released lists hold a few empty strings.
        first = next((text for text in listed if text != ""), None)
        if not isinstance(first, str) or not first.strip():
            raise InputError(
                f"target of {name!r} is not text", where=str(path), remedy="Give a text or a list of texts."
            )
        targets[name] = first
    return targets


def goals_of(prompts: Iterable[Prompt], targets: Mapping[str, str] | None = None) -> list[Goal]:
    """One goal per prompt: the target named for its id, else the prompt's first own one, else the default."""
    named = targets or {}
    return [
        Goal(
            behavior_id=prompt.id,
            user_text=prompt.user_text,
            target=named.get(prompt.id) or next(iter(prompt.targets), None) or default_target(prompt.text),
        )
        for prompt in prompts
    ]


def read_goals(behaviors: Path, targets: Path | None = None) -> list[Goal]:
    """Goals of a CSV of behaviours (HarmBench's columns, or `prompt` / `behavior` with generated ids).

    Raises:
        DataMissingError: a file is missing. InputError: it has no usable rows, or the targets name no behaviour of it.
    """
    prompts = read_prompt_file(behaviors, name="behaviors", role=Role.EVALUATION, label="harmful").prompts
    named = read_targets(targets) if targets else {}
    if named and not any(prompt.id in named for prompt in prompts):
        raise InputError(
            f"no target is for a behaviour of {behaviors}",
            where=str(targets),
            remedy="Use the behaviours' ids as keys.",
        )
    return goals_of(prompts, named)
