"""The base class of the sections of a recipe, and the types of their keys."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)


def as_integer(value: Any) -> Any:
    """1000 for 1e3: YAML reads an exponent as a float, and the user means an integer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def as_list(value: Any) -> Any:
    """A list with one text for the text."""
    return [value] if isinstance(value, str) else value


Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1), BeforeValidator(as_integer)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, lt=1)]
Rate = Annotated[float, Field(ge=0)]
Amount = Annotated[float, Field(gt=0), AfterValidator(as_integer)]


class Section(BaseModel):
    """A frozen mapping that refuses unknown keys, values of another type, NaN and infinity."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    written_if_set: ClassVar[frozenset[str]] = frozenset()
    """Keys left out of a written recipe at their default: the hash of a recipe that is older than a key stays as is."""

    @model_serializer(mode="wrap")
    def _write(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = type(self).model_fields
        return {
            key: value
            for key, value in write(self).items()
            if key not in self.written_if_set or getattr(self, key) != fields[key].default
        }
