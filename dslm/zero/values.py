"""Is a value what its key may hold? A key and a value in, what is wrong out. Knows no config."""

from __future__ import annotations

import math
from collections.abc import Mapping

from dslm.zero.keys import Key

_SHOWN = 40  # letters of a wrong value
_CLASSES: Mapping[str, type] = {"text": str, "list": list, "mapping": Mapping}
_LARGEST = 2**63  # pydantic turns no float above it into a whole number


def problem(key: Key, value: object) -> str:
    """Say what is wrong with a value, as "must be …, not …"; "" if nothing is."""
    if value is None:
        return "" if key.null or "any" in key.types else f"must be {expected(key)}, not null"
    if isinstance(value, str) and value in key.others:
        return ""
    if not any(_is(type_, value, key) for type_ in key.types):
        return f"must be {expected(key)}, not {shown(value)}"
    if key.words and not _is_word(key, value):
        return f"must be {expected(key)}, not {shown(value)}"
    if isinstance(value, list):
        return _of_list(key, value)
    if isinstance(value, int | float) and not _in_range(key, value):
        return f"must be {expected(key)}, not {shown(value)}"
    return ""


def shown(value: object) -> str:
    """Render a value as JSON writes it, cut to what a person reads."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "infinity"
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list):
        return "a list" if len(value) > 4 else f"[{', '.join(shown(item) for item in value)}]"
    if isinstance(value, int) and abs(value) >= 10**_SHOWN:
        return f"a number of {int(math.log10(abs(value))) + 1} digits"
    text = f'"{value}"' if isinstance(value, str) else str(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def expected(key: Key) -> str:
    """Describe the values that a key takes."""
    if key.words:
        words = [str(word) for word in key.words]
        text = f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]
    else:
        text = " or ".join(_name(type_, key) for type_ in key.types)
    for word in key.others:
        text += f' or "{word}"'
    return text


def _name(type_: str, key: Key) -> str:
    if type_ == "list" and key.length is not None:
        return f"a list of {key.length} numbers" + (_range(key.items) if key.items else "")
    if type_ in ("integer", "number"):
        noun = {"integer": "whole number", "number": "number"}[type_]
        if key.gt == 0 and key.le is None and key.lt is None:
            return f"a positive {noun}"
        return f"a {noun}{_range(key)}"
    return {
        "boolean": "true or false",
        "text": "text",
        "list": "a list",
        "mapping": "an object",
        "nothing": "left out: no JSON value can stand for it",
    }.get(type_, type_)


def _range(key: Key) -> str:
    low = f"from {key.ge:g}" if key.ge is not None else ""
    low = f"above {key.gt:g}" if key.gt is not None else low
    high = f"to {key.le:g}" if key.le is not None else ""
    high = f"below {key.lt:g}" if key.lt is not None else high
    if low.startswith("from") and not high:
        return f", {key.ge:g} or more"
    both = " and ".join((low, high)) if low.startswith("above") and high else f"{low} {high}"
    return f" {both}".rstrip()


def _is(type_: str, value: object, key: Key) -> bool:
    """Return whether a value has a type; true is not a number, text is neither."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if type_ == "boolean":
        return isinstance(value, bool) or (is_number and value in (0, 1))
    if type_ == "integer":
        is_whole = isinstance(value, float) and value.is_integer() and abs(value) < _LARGEST
        return is_number and (isinstance(value, int) or (is_whole and not key.exact))
    if type_ == "number":
        return is_number
    return type_ == "any" or isinstance(value, _CLASSES.get(type_, ()))


def _is_word(key: Key, value: object) -> bool:
    if isinstance(value, str) and key.fold:
        return value.lower() in key.words
    return value in key.words


def _in_range(key: Key, value: float) -> bool:
    if isinstance(value, bool):
        return True
    return not (
        (key.ge is not None and value < key.ge)
        or (key.gt is not None and value <= key.gt)
        or (key.le is not None and value > key.le)
        or (key.lt is not None and value >= key.lt)
    )


def _of_list(key: Key, values: list[object]) -> str:
    if key.length is not None and len(values) != key.length:
        return f"must be {expected(key)}, not {shown(values)}"
    if not values and "number" in key.types:
        return f"must be {expected(key)}, not []"
    if key.items is not None:
        for value in values:
            if problem(key.items, value):
                return f"must be a list in which each is {expected(key.items)}, not {shown(value)}"
    return ""
