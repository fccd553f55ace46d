"""The kinds of values that a recipe has: numbers, flags, names, variables, a model's architecture.

Numbers are numbers here: no text, no true or false, no infinity, and a count may be written `5e8`.
The bounds are far beyond any run; what is past them would overflow a clock, a counter or a tensor
long after the launch. Knows pydantic and no section of a recipe.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from dslm.errors import shortened

_MOST = 10**15


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
        raise ValueError("true and false are no numbers")  # though Python takes them for 1 and 0
    return _whole(value)


_Integer = Annotated[int, BeforeValidator(_whole), Field(strict=True)]
PositiveInt = Annotated[_Integer, Field(gt=0, le=_MOST)]
Whole = Annotated[_Integer, Field(ge=0, le=_MOST)]
VocabularySize = Annotated[_Integer, Field(ge=257, lt=2**31)]
Seed = Annotated[_Integer, Field(ge=0, lt=2**32)]
Stage = Annotated[Literal[0, 1, 2, 3], BeforeValidator(_no_flag)]
Positive = Annotated[float, Field(gt=0, le=_MOST, strict=True, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, le=_MOST, strict=True, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1, strict=True, allow_inf_nan=False)]
PositiveShare = Annotated[float, Field(gt=0, lt=1, strict=True, allow_inf_nan=False)]
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
# Sizes in any model's config, as transformers names them, and its other numbers. No config of
# transformers 5.23 has another kind of value under such a name.
_SIZE = re.compile(
    r"(hidden|vocab|intermediate|embedding|image|patch|state)_size|num_(hidden_)?layers|"
    r"num_(attention_|decoder_|encoder_)?(heads|layers)|num_(attention|key_value)_heads|"
    r"n_(layer|head|embd)|d_(model|ff|kv)|max_position_embeddings|n_positions|num_channels"
)
_NUMBER = re.compile(
    r"(?!(use|is|has|do|add|tie|apply|norm|with|token|per|block)_).*"
    r"(_size|_dim|_eps|_epsilon|_theta|_std|initializer_range|_dropout(_prob)?|_factor)|"
    r"(num|n|max)_\w+"
)


def _architecture(config: dict[str, Any]) -> dict[str, Any]:
    """Check the numbers of a model's config; its other values are for transformers to judge."""
    for name, value in config.items():
        if value is None or isinstance(value, list | dict):
            continue
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if _SIZE.fullmatch(name) and not (is_number and value > 0 and value == int(value)):
            raise ValueError(f"`{name}` must be a positive whole number, not {value!r}")
        if _NUMBER.fullmatch(name) and not is_number:
            raise ValueError(f"`{name}` must be a number, not {shortened(repr(value))}")
    return {key: _whole(v) if _SIZE.fullmatch(key) else v for key, v in config.items()}


Architecture = Annotated[dict[str, Any], AfterValidator(_architecture)]
