"""The guard: a thread that ends this rank when its supervisor is gone.

A supervisor that was killed can't end anything, so each rank sees for itself. Started before torch
is imported; runs as long as the process.
"""

from __future__ import annotations

import os
import threading
import time

from dslm import environment
from dslm.worker.ranks import start_time

_SECONDS = 1.0
_EXIT_CODE = 1


def start_guard() -> None:
    """Start watching the supervisor that the environment names; without one there is no guard."""
    named = os.environ.get(environment.SUPERVISOR, "")
    pid, _, started = named.partition(":")
    if not (pid.isdigit() and started.isdigit()):
        return
    threading.Thread(
        target=_watch, args=(int(pid), int(started)), name="dslm-guard", daemon=True
    ).start()


def _watch(pid: int, started: int) -> None:
    while start_time(pid) == started:
        time.sleep(_SECONDS)
    os.write(2, b"dslm: the supervisor is gone; this rank ends\n")
    os._exit(_EXIT_CODE)
