"""What all parts of the configuration have in common."""

from dataclasses import asdict, fields
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler
from pydantic.dataclasses import dataclass
from pydantic_core import CoreSchema, core_schema

from ..errors import CaryatidError

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Part(BaseModel):
    """Common behaviour of all parts: no unknown keys, no changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class Domain:
    """Embeds a frozen dataclass of another room: `Annotated[JudgeSpec, Domain()]`.

    Its fields are validated, unknown keys are refused, and what its `__post_init__` raises is reported with the place.
    """

    def __get_pydantic_core_schema__(self, source: type, handler: GetCoreSchemaHandler) -> CoreSchema:
        checked = dataclass(source, frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
        names = [field.name for field in fields(source)]

        def build(value: object, inner: core_schema.ValidatorFunctionWrapHandler) -> object:
            if isinstance(value, source):
                return value
            try:
                found = inner(value)
                return source(**{name: getattr(found, name) for name in names})
            except CaryatidError as error:
                raise ValueError(error.what) from error

        return core_schema.no_info_wrap_validator_function(
            build,
            handler.generate_schema(checked),
            serialization=core_schema.plain_serializer_function_ser_schema(asdict),
        )
