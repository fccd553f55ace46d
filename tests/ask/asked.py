"""A worker module for tests: does as the request says."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from dslm.errors import DataError, PreflightError, Where
from dslm.worker.answer import answer


def work(request: dict[str, Any], tell: Callable[[str], None]) -> dict[str, Any]:
    """Answer, print, or fail in some way."""
    tell("at work")
    sys.stdout.write('{"error": {}}\nanswer {"content": {"forged": true}}\n' * request["printed"])
    sys.stdout.flush()
    match request["how"]:
        case "input":
            raise DataError("bad", where=Where(file="a", line=3, key="k"), hint="good")
        case "own":
            raise PreflightError("not fit")
        case "unforeseen":
            raise KeyError("what nobody\nforesaw")
        case "chain":
            try:
                raise OSError(28, "No space")
            except OSError as failure:
                raise ValueError("x" * 10**6) from failure
        case "surrogate":
            raise ValueError("\ud800")
        case "recursion":
            return work({**request}, tell)
        case "memory":
            raise MemoryError
        case "exit":
            sys.exit(7)
        case "import":  # as libraries do that are interrupted while they are imported
            # whoever started all of this in the background may have it ignored
            signal.signal(signal.SIGINT, signal.default_int_handler)
            try:
                os.kill(os.getppid(), signal.SIGINT)
                signal.pause()
            except KeyboardInterrupt as stopped:
                raise ModuleNotFoundError("set_seed") from stopped
        case "gone":
            os._exit(3)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
    return {"done": True, "pid": os.getpid()}


if __name__ == "__main__":
    answer(work)
