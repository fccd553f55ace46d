"""Is the Hugging Face Hub in reach? Asked once, before the libraries that would try for minutes.

huggingface_hub repeats every request of every file with growing pauses, so a model of a Hub name
without a network took nearly four minutes to fail. Imports nothing heavy.
"""

from __future__ import annotations

import os
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterable
from urllib.parse import urlsplit

from dslm import environment
from dslm.recipe.hub_names import elsewhere, hub_names
from dslm.recipe.schema import Recipe

OUT_OF_REACH = "the Hub can't be reached"

_TRIES = 2
_SECONDS = 4.0  # for each: finding the address and connecting
_HUB = "https://huggingface.co"


def stay_offline_without_hub(recipe: Recipe, tell: Callable[[str], None]) -> None:
    """Let the libraries look into the cache only where the Hub is needed and can't be reached.

    Args:
        recipe: the resolved recipe.
        tell: called with each failed try, for people.
    """
    if hub_names(recipe):
        _stay_offline(tell)


def stay_offline_without(names: Iterable[str | None], tell: Callable[[str], None]) -> None:
    """Do the same where one of some models or tokenizers is no local folder."""
    if any(elsewhere(name) for name in names):
        _stay_offline(tell)


def _stay_offline(tell: Callable[[str], None]) -> None:
    if os.environ.get(environment.HUB_OFFLINE):
        return
    why = why_out_of_reach(tell)
    if why is not None:
        tell(only_earlier(why))
        os.environ[environment.HUB_OFFLINE] = "1"


def why_out_of_reach(tell: Callable[[str], None]) -> str | None:
    """Return why nothing can be fetched; None: the Hub answers."""
    if os.environ.get(environment.HUB_OFFLINE):
        return f"{environment.HUB_OFFLINE} is set"
    return None if in_reach(tell) else OUT_OF_REACH


def only_earlier(why: str) -> str:
    """Say that what was fetched earlier is all there is."""
    return f"{why}: only earlier downloads can be used"


def not_in_cache(what: str, why: str) -> str:
    """Say that something of the Hub isn't here and can't be fetched."""
    return f"{what} is not in the cache, and {why}"


def in_reach(tell: Callable[[str], None]) -> bool:
    """Return whether the Hub, or the proxy before it, accepts a connection."""
    address = urlsplit(os.environ.get(environment.HUB_ENDPOINT) or _HUB)
    proxy = urllib.request.getproxies().get(address.scheme or "https")
    if proxy and not urllib.request.proxy_bypass(address.hostname or ""):
        address = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    host = address.hostname or ""
    port = address.port or (80 if address.scheme == "http" else 443)
    for number in range(1, _TRIES + 1):
        if _connects(host, port):
            return True
        tell(f"{host} refuses connections (try {number} of {_TRIES})")
    return False


def _connects(host: str, port: int) -> bool:
    """Return whether a connection is accepted in time; resolving a name has no limit."""
    connected = threading.Event()

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=_SECONDS).close()
        except (OSError, UnicodeError):
            return
        connected.set()

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(_SECONDS)
    return connected.is_set()
