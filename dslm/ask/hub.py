"""The config of a model on the Hub, asked of the worker."""

from __future__ import annotations

import functools
from typing import Any

from dslm.ask.call import ask
from dslm.errors import DslmError, RecipeError


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
