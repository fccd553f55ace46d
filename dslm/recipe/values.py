"""The kinds of values that a recipe has: numbers, flags, names, variables.

Numbers are numbers here: no text, no true or false, no infinity, and a count may be written `5e8`.
The bounds are far beyond any run; what is past them would overflow a clock, a counter or a tensor
long after the launch. Knows pydantic and no section of a recipe.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field

from dslm.errors import shortened

_MOST = 10**15
# of every section of a recipe: frozen, and a key that it doesn't know is an error
STRICT = ConfigDict(
    frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=()
)


class Misfit(ValueError):
    """Values that don't go together; names the keys, from where it is raised, that could change."""

    def __init__(self, message: str, *keys: str) -> None:
        super().__init__(message)
        self.keys = keys


def _whole(value: object) -> object:
    """A number without a fraction as a whole one: `5e8` counts tokens as well as 500000000."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _no_flag(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("true and false are not numbers")  # though Python takes them for 1 and 0
    return _whole(value)


_Integer = Annotated[int, BeforeValidator(_whole), Field(strict=True)]
PositiveInt = Annotated[_Integer, Field(gt=0, le=_MOST)]
Few = Annotated[_Integer, Field(gt=0, le=10**6)]
"""Ranks, files, rows of a matrix: what is counted one by one somewhere."""
Whole = Annotated[_Integer, Field(ge=0, le=_MOST)]
VocabularySize = Annotated[_Integer, Field(ge=257, lt=2**31)]
Seed = Annotated[_Integer, Field(ge=0, lt=2**32)]
Stage = Annotated[Literal[0, 1, 2, 3], BeforeValidator(_no_flag)]
Positive = Annotated[float, Field(gt=0, le=_MOST, strict=True, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, le=_MOST, strict=True, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1, strict=True, allow_inf_nan=False)]
PositiveShare = Annotated[float, Field(gt=0, lt=1, strict=True, allow_inf_nan=False)]
Portion = Annotated[float, Field(gt=0, le=1, strict=True, allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0, le=10**8, strict=True, allow_inf_nan=False)]
Flag = Annotated[bool, Field(strict=True)]
Name = Annotated[str, Field(pattern=r"\S", max_length=4096)]
"""Something that is named: a path, a model, a field of a record."""


def _variable(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError(f"`{shortened(name)}` is not the name of a variable")
    return name


def _value_of_variable(value: str) -> str:
    if not value or "\n" in value:
        raise ValueError(f"a variable's value can't be {'several lines' if value else 'empty'}")
    return value


Environment = dict[
    Annotated[str, AfterValidator(_variable)], Annotated[str, AfterValidator(_value_of_variable)]
]
