"""Settings in the config of a model, and in those of its parts."""

from __future__ import annotations

from typing import Any


def set_cache(config: Any, *, on: bool) -> None:
    """Set whether a model keeps keys and values for the tokens to come.

    Of no use while training, and at odds with recomputation. A model of several parts (text and
    images) has a config for each, and its text part asks its own.
    """
    if hasattr(config, "use_cache"):
        config.use_cache = on
    for name in getattr(config, "sub_configs", ()):
        part = getattr(config, name, None)
        if part is not None and part is not config:
            set_cache(part, on=on)
