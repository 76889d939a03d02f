"""Published judge prompts, word for word (`templates.json` names the source of each)."""

import json
from collections.abc import Collection, Mapping
from functools import cache

from ...paths import package_json
from .base import Exchange, prompt_hash
from .text import escape_markers


@cache
def template(name: str) -> Mapping[str, str]:
    """The parts of a judge's prompt: `plain`, and where there are such `contextual` and `system`."""
    parts: Mapping[str, str] = package_json("behaviour/judges/templates.json")[name]
    return parts


def inert(pair: Exchange, also: Collection[str] = ()) -> Exchange:
    """An exchange with control markers made inert in all its texts; `also` as in `escape_markers`."""
    context = escape_markers(pair.context, also) if pair.context else None
    return Exchange(escape_markers(pair.prompt, also), escape_markers(pair.answer, also), context)


def filled(name: str, pair: Exchange) -> str:
    """A judge's prompt about one exchange, with control markers in behaviour, context and answer made inert."""
    return formatted(name, inert(pair))


def formatted(name: str, pair: Exchange) -> str:
    """A judge's prompt about one exchange, whose texts are put in as they are.

    A template's contextual form is used where the exchange has a context and the template has such a form; else the
    context stands before the behaviour, as the model saw it.
    """
    parts = template(name)
    if pair.context and "contextual" in parts:
        return parts["contextual"].format(behavior=pair.prompt, generation=pair.answer, context=pair.context)
    return parts["plain"].format(behavior=with_context(pair), generation=pair.answer)


def with_context(pair: Exchange) -> str:
    """The behaviour, after its context where it has one, as the model saw it."""
    return f"{pair.context}\n\n---\n\n{pair.prompt}" if pair.context else pair.prompt


def harmbench_template(classifier: str, prompt: str) -> str:
    """The template that a HarmBench classifier is asked with: its own (`model_card`), or that of all (`pipeline`)."""
    return classifier if prompt == "model_card" else "harmbench-pipeline"


def template_hash(name: str) -> str:
    """Short hash of all parts of a judge's prompt."""
    return prompt_hash(json.dumps(dict(template(name)), sort_keys=True))
