"""JSON text to frozen dataclasses and back: one reader for all that crosses a process or a disk.

Bytes in, a value of a known type out, or `Malformed`: nothing else is raised, whatever the bytes
are (torn, binary, nested a thousand times, numbers beyond any range). Types are checked strictly:
text is no number, and true is no 1. Unknown keys are ignored, so that a later version may add some.
Knows nothing of what the values mean.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeAlias, TypeVar

from annotated_types import Ge, Lt, MaxLen

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"
T = TypeVar("T")
_ADAPTERS: dict[type, TypeAdapter[Any]] = {}

Time = Annotated[float, Ge(0), Lt(2**37)]  # Unix seconds, up to the year 6325
Seconds = Annotated[float, Ge(0), Lt(2**37)]
Count = Annotated[int, Ge(0), Lt(2**63)]
Name = Annotated[str, MaxLen(4096)]


class Malformed(ValueError):
    """A text that is not JSON of the type that was expected; the message says what is wrong."""


class Strict:
    """Base of the dataclasses that are read: no conversions, no infinities."""

    __slots__ = ()
    __pydantic_config__: ClassVar[Mapping[str, bool]] = {"strict": True, "allow_inf_nan": False}


def decode(kind: type[T], text: str | bytes) -> T:
    """Return a value of a type from its JSON text.

    Raises:
        Malformed: it isn't one.
    """
    from pydantic import ValidationError

    try:
        found = _adapter(kind).validate_json(text)
    except ValidationError as failure:
        raise Malformed(_why(failure)) from None
    if not isinstance(found, kind):
        raise Malformed(f"no {kind.__name__}")
    return found


def read_object(text: str | bytes) -> dict[str, Json]:
    """Return a JSON object of any fields.

    Raises:
        Malformed: it isn't one.
    """
    from pydantic_core import from_json

    try:
        found = from_json(text, allow_inf_nan=False)
    except ValueError as failure:
        raise Malformed(f"no JSON: {failure}") from None
    if not isinstance(found, dict):
        raise Malformed("no JSON object")
    return found


def encode(value: object) -> dict[str, Json]:
    """Return a dataclass as a JSON object; what is None is left out."""
    if not is_dataclass(value):
        raise TypeError(f"no dataclass: {type(value).__name__}")
    pairs = ((field.name, getattr(value, field.name)) for field in fields(value))
    return {name: to_json(content) for name, content in pairs if content is not None}


def to_json(value: object) -> Json:
    """Dataclasses, enumerations, mappings and sequences as plain JSON values.

    A number that JSON doesn't know (infinite, or none) becomes null.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return encode(value)
    if isinstance(value, Enum):
        return to_json(value.value)
    if isinstance(value, Mapping):
        return {str(key): to_json(content) for key, content in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [to_json(content) for content in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def line_of(value: Mapping[str, Json]) -> str:
    """Return an object as one line of JSON.

    Raises:
        ValueError: it holds a number that JSON doesn't know.
    """
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _adapter(kind: type[T]) -> TypeAdapter[T]:
    from pydantic import TypeAdapter

    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


def _why(failure: ValidationError) -> str:
    first = failure.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    message = first["msg"][:1].lower() + first["msg"][1:]
    return f"`{place}`: {message}" if place else message
