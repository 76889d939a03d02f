"""Where the modules of a model go, as a user says it and transformers knows it. Free of torch, for configurations."""

import json
from collections.abc import Mapping
from typing import Any

from ..errors import UsageError

DeviceMap = str | Mapping[str, int | str]
"""One of `WORDS`, or from names of modules to devices: a number (of the accelerator), `cuda:1`, `cpu` or `disk`."""

WORDS = ("auto", "balanced", "balanced_low_0", "sequential")
_REMEDY = f'Use {", ".join(WORDS)}, or a mapping such as {{"model.embed_tokens": 0, "model.layers.0": 0, …}}.'


def check_device_map(value: object) -> None:
    """Whether a value says where modules go, so far as that can be told without the model and its devices.

    Raises:
        UsageError: it does not.
    """
    words = isinstance(value, str) and value in WORDS
    places = isinstance(value, Mapping) and bool(value)
    if not words and not places:
        raise UsageError(f"{value!r} places nothing", where="device_map", remedy=_REMEDY)
    for name, place in value.items() if isinstance(value, Mapping) else ():
        if not isinstance(name, str) or isinstance(place, bool) or not isinstance(place, int | str):
            raise UsageError(f"{name!r}: {place!r} is no place", where="device_map", remedy=_REMEDY)


def read_device_map(text: str | None) -> DeviceMap | None:
    """A device map as the command line gives it: one of `WORDS`, or a JSON object; None stays None.

    Raises:
        UsageError: it is something else.
    """
    if text is None or text in WORDS:
        return text
    try:
        value: Any = json.loads(text)
    except json.JSONDecodeError:
        value = text
    check_device_map(value)
    return value if isinstance(value, str) else dict(value)
