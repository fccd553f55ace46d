"""Packages that only some recipes need: which, why, and how to get them. Imports none of them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

from dslm.errors import RecipeError, Where
from dslm.recipe.data_paths import DIGITS, sources
from dslm.recipe.schema import Recipe


@dataclass(frozen=True, kw_only=True, slots=True)
class Extra:
    """A package, the extra of dslm that installs it, and which recipes need it for which key."""

    module: str
    name: str
    extra: str
    key: str
    needed: Callable[[Recipe], bool]


_OF_TRL = ("sft", "dpo", "orpo", "kto", "reward", "grpo")


def _has_digits(recipe: Recipe) -> bool:
    return any(
        source.path == DIGITS for key in ("train", "eval") for source in sources(recipe, key)
    )


EXTRAS = (
    Extra(
        module="trl", name="TRL", extra="trl", key="task",
        needed=lambda recipe: recipe.task in _OF_TRL,
    ),
    Extra(
        module="peft", name="peft", extra="lora", key="lora",
        needed=lambda recipe: recipe.lora is not None,
    ),
    Extra(
        module="bitsandbytes", name="bitsandbytes", extra="quantize", key="quantize",
        needed=lambda recipe: recipe.quantize is not None,
    ),
    Extra(
        module="vllm", name="vLLM", extra="vllm", key="rollout.engine",
        needed=lambda recipe: recipe.task == "grpo" and recipe.rollout.engine == "vllm",
    ),
    Extra(
        module="PIL", name="Pillow", extra="metrics", key="task",
        needed=lambda recipe: recipe.task == "vision",
    ),
    Extra(
        module="sklearn", name="scikit-learn", extra="metrics", key="data.train",
        needed=_has_digits,
    ),
)  # fmt: skip


def missing_extras(recipe: Recipe) -> list[Extra]:
    """Return the packages that a recipe needs and that are not installed."""
    return [
        extra
        for extra in EXTRAS
        if extra.needed(recipe) and importlib.util.find_spec(extra.module) is None
    ]


def check_extras(recipe: Recipe) -> None:
    """Check that the packages which a recipe needs are installed.

    Raises:
        RecipeError: one isn't; says how to get it.
    """
    for extra in missing_extras(recipe):
        raise RecipeError(
            f"this recipe needs {extra.name}, which is not installed",
            where=Where(key=extra.key),
            hint=f"pip install 'dslm[{extra.extra}]'",
        )
