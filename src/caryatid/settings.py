"""Settings as frozen dataclasses: each field has a default, a description and limits, which are checked when made.

A configuration in pydantic embeds them as they are: pydantic reads the same descriptions and limits from the fields.
"""

from dataclasses import field, fields
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

_LIMITS = {
    "gt": ("must be above", lambda value, limit: value > limit),
    "ge": ("must be at least", lambda value, limit: value >= limit),
    "lt": ("must be below", lambda value, limit: value < limit),
    "le": ("must be at most", lambda value, limit: value <= limit),
}


def setting(default: Any, description: str, **limits: float) -> Any:
    """A field of a `Settings` class; `limits` are pydantic's `gt`, `ge`, `lt` and `le`."""
    unknown = limits.keys() - _LIMITS.keys()
    if unknown:
        raise TypeError(f"unknown limits {sorted(unknown)}")
    return field(default=default, metadata={"description": description, **limits})


class Settings:
    """Base of frozen dataclasses whose fields are made by `setting`.

    Raises (when made):
        ValueError: a value outside its limits, not finite, or not among its choices; names field and value.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "allow_inf_nan": False}

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for one in fields(self):  # type: ignore[arg-type]  # every subclass is a dataclass
            value = getattr(self, one.name)
            if get_origin(hints[one.name]) is Literal and value not in get_args(hints[one.name]):
                raise ValueError(f"{one.name} {value!r} is not one of {', '.join(get_args(hints[one.name]))}")
            for limit, (words, holds) in _LIMITS.items():
                if value is not None and limit in one.metadata and not holds(value, one.metadata[limit]):
                    raise ValueError(f"{one.name} {value!r} {words} {one.metadata[limit]}")
            if isinstance(value, float) and value in (float("inf"), float("-inf")):
                raise ValueError(f"{one.name} {value!r} must be finite")
