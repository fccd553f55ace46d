"""The config of a model on the Hub, asked of the worker."""

from __future__ import annotations

import functools
from dataclasses import asdict
from typing import Any

from dslm.ask.call import Tell, ask
from dslm.errors import DslmError, RecipeError
from dslm.recipe.hub_names import hub_names
from dslm.recipe.schema import Recipe


@functools.lru_cache
def hub_config(name: str, revision: str = "main") -> dict[str, Any]:
    """Return the config.json of a model on the Hub; nothing else of it is fetched.

    Raises:
        RecipeError: the Hub can't be reached, or has no such model.
    """
    try:
        found = ask("dslm.worker.hub_config", {"name": name, "revision": revision})
    except DslmError as failure:
        raise RecipeError(failure.message, where=failure.where, hint=failure.hint) from failure
    return dict(found["config"])


def hub_remarks(recipe: Recipe, tell: Tell) -> list[str]:
    """Return what a recipe names on the Hub that this machine can't get now; nothing is fetched.

    Args:
        recipe: the resolved recipe.
        tell: told what takes long.
    """
    names = hub_names(recipe)
    if not names:
        return []
    found = ask("dslm.worker.hub_reach", {"names": [asdict(name) for name in names]}, tell)
    return list(found["remarks"])
