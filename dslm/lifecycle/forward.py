"""Which variables the ranks on other hosts get: an allow-list, and what the recipe names.

Variables in, variables out. They travel in the attempt file, never on a command line; what sounds
like a secret does not travel at all: a token belongs into each host's own settings (for the Hub,
`hf auth login` there).
"""

from __future__ import annotations

from collections.abc import Mapping

from dslm import environment
from dslm.secrets import sounds_secret, why_secret


def forwarded(inherited: Mapping[str, str], named: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of every rank.

    Args:
        inherited: where dslm was started.
        named: by the recipe; they go before the others.
    """
    allowed = {
        name: value
        for name, value in inherited.items()
        if name.startswith(environment.FORWARDED)
        and not sounds_secret(name)
        and not why_secret(name, value)
        and name != environment.VISIBLE_DEVICES  # counts the devices of this host
    }
    return {**allowed, **named}
