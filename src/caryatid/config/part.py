"""What all parts of the configuration have in common."""

import functools
from dataclasses import MISSING, asdict, fields, is_dataclass
from typing import Annotated, Any, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, create_model
from pydantic_core import CoreSchema, core_schema

from ..errors import CaryatidError

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Part(BaseModel):
    """Common behaviour of all parts: no unknown keys, no changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class Domain:
    """Embeds a frozen dataclass of another room: `Annotated[TrainingSettings, Domain()]`.

    Every field is validated with its limits and description (`settings.setting`), unknown keys are refused, and what
    its `__post_init__` raises is reported with the place. The value is an instance of that class.
    """

    def __get_pydantic_core_schema__(self, source: type, handler: GetCoreSchemaHandler) -> CoreSchema:
        names = [one.name for one in fields(source)]

        def build(value: object, inner: core_schema.ValidatorFunctionWrapHandler) -> object:
            if isinstance(value, source):
                return value
            try:
                checked = inner(value)
                return source(**{name: getattr(checked, name) for name in names})
            except CaryatidError as error:
                raise ValueError(error.what) from error

        return core_schema.no_info_wrap_validator_function(
            build,
            handler.generate_schema(model_of(source)),
            serialization=core_schema.plain_serializer_function_ser_schema(asdict),
        )


@functools.cache
def model_of(source: Any) -> type[Part]:
    """A pydantic model with the fields of a dataclass, their defaults, limits and descriptions."""
    hints = get_type_hints(source)
    found: dict[str, Any] = {}
    for one in fields(source):
        hint = hints[one.name]
        if is_dataclass(hint):
            hint = Annotated[hint, Domain()]
        given: dict[str, Any] = dict(one.metadata)
        if one.default is not MISSING:
            given["default"] = one.default
        elif one.default_factory is not MISSING:
            given["default_factory"] = one.default_factory
        found[one.name] = (hint, Field(**given))
    model: type[Part] = create_model(source.__name__, __base__=Part, **found)
    return model
