"""Problems of a recipe's tree in words: pydantic's errors as findings with their places.

Knows the schema and the tree that was checked against it, no files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from dslm.errors import Finding, Where, shortened
from dslm.recipe.hints import hint_for, hint_for_value
from dslm.recipe.schema import Recipe
from dslm.recipe.values import Misfit
from dslm.recipe.yaml import OPTION

# What a key must be, by pydantic's type of the error; several of them are alternatives.
_EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "string_pattern_mismatch": "text that says something",
    "string_too_long": "at most {max_length:,} characters",
    "literal_error": "{expected}",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt:,}",
    "less_than_equal": "at most {le:,}",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "list_type": "a list",
    "tuple_type": "a list",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length:,}",
}
_MOST_HINTS = 20  # what is wrong after these is counted, not read


def findings(
    failure: ValidationError, tree: Mapping[str, object], where: Callable[[str], Where]
) -> list[Finding]:
    """Return one finding for each key that is wrong.

    Args:
        failure: of the schema's check.
        tree: what was checked.
        where: the place of a dotted key.
    """
    by_key: dict[str, list[ErrorDetails]] = {}
    for error in failure.errors(include_url=False):
        by_key.setdefault(_key_of(error["loc"], tree), []).append(error)
    # where something is wrong inside a list or mapping, what else it might have been is noise
    parents = {key[:dot] for key in by_key for dot, letter in enumerate(key) if letter == "."}
    found: list[Finding] = []
    for key, errors in by_key.items():
        told = [e for e in errors if key not in parents or e["type"] in _SAID]
        if not told:
            continue
        hint = _hint(key, told[0]) if len(found) < _MOST_HINTS else ""
        found.append(
            Finding(message=_message(key, told), where=_place(key, told, where), hint=hint)
        )
    return found


def _hint(key: str, error: ErrorDetails) -> str:
    if error["type"] == "extra_forbidden":
        return hint_for(key, known_keys())
    return hint_for_value(key, error["input"]) if error["type"] == "model_type" else ""


def _place(key: str, errors: Sequence[ErrorDetails], where: Callable[[str], Where]) -> Where:
    """The place of a key; where several don't go together, that of the one given by an option."""
    cause = errors[0].get("ctx", {}).get("error")
    if not isinstance(cause, Misfit):
        return where(key)
    places = [where(f"{key}.{name}" if key else name) for name in cause.keys]
    return min(places, key=lambda place: place.file != OPTION)


def _message(key: str, errors: Sequence[ErrorDetails]) -> str:
    name = f"`{shortened(key)}`"
    first = errors[0]
    if first["type"] in _SAID:
        return _SAID[first["type"]](name, first)
    expected = [
        _EXPECTED.get(error["type"], error["msg"]).format_map(error.get("ctx", {}))
        for error in errors
    ]
    alternatives = " or ".join(dict.fromkeys(expected))
    return f"{name} must be {alternatives}, not {shortened(repr(first['input']))}"


def _own_words(name: str, error: ErrorDetails) -> str:
    said = str(error.get("ctx", {}).get("error", error["msg"]))
    return said if "`" in said else f"{name}: {said}"


_SAID: dict[str, Callable[[str, ErrorDetails], str]] = {
    "extra_forbidden": lambda name, _: f"there is no key {name}",
    "missing": lambda name, _: f"{name} is missing",
    "value_error": _own_words,
}


def _key_of(loc: Sequence[int | str], tree: Mapping[str, object]) -> str:
    """The dotted key of a location, without the names that pydantic gives to alternatives."""
    parts: list[str] = []
    place: object = tree
    for part in loc:
        if isinstance(place, dict) and (part in place or _is_field(parts, part)):
            place = place.get(part)
        elif isinstance(place, list) and isinstance(part, int):
            place = place[part] if part < len(place) else None
        else:
            continue
        parts.append(str(part))
    return ".".join(parts)


def _is_field(parts: Sequence[str], part: int | str) -> bool:
    return ".".join([*parts, str(part)]) in known_keys()


@cache
def known_keys() -> tuple[str, ...]:
    """Return every dotted key that a recipe may have."""
    return tuple(_keys_below(Recipe, ""))


def _keys_below(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        for type_ in (field.annotation, *get_args(field.annotation)):
            if isinstance(type_, type) and issubclass(type_, BaseModel):
                yield from _keys_below(type_, f"{prefix}{name}.")
