"""Ask the worker: work that needs torch or transformers, done in a process of its own.

The request goes in as JSON on stdin, phases come back as JSON lines while the work goes on, and the
last line is the answer or the error. Nothing of it is an argument, so `ps` shows none of it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

from dslm import environment
from dslm.errors import DslmError, InputError, RunFailed, Where

_LINES_SHOWN = 12


def ask(
    module: str,
    request: Mapping[str, Any],
    on_phase: Callable[[str], None] = lambda detail: None,
) -> dict[str, Any]:
    """Run a worker module and return its answer.

    Args:
        module: such as `dslm.worker.export`.
        request: what it is to do; JSON.
        on_phase: told what is going on, for people.

    Raises:
        InputError: the worker found the request wrong.
        RunFailed: it ended without an answer.
    """
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", module],  # modules of the current folder are no libraries
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, environment.ACCELERATOR: "cpu"},  # DeepSpeed itself computes nothing
    )
    rest: list[str] = []
    with process:
        if process.stdin is None or process.stdout is None:  # for the type checker: both are pipes
            raise RunFailed("no pipe to the worker")
        try:
            process.stdin.write(json.dumps(request))
            process.stdin.close()
            for line in process.stdout:
                word = _word(line)
                if word is None:
                    rest.append(line)
                elif "phase" in word:
                    on_phase(str(word["phase"]))
                elif "error" in word:
                    raise _error(word["error"])
                else:
                    answer: dict[str, Any] = word["answer"]
                    return answer
        except BaseException:
            process.kill()
            raise
    raise RunFailed(
        f"{module} {_end(process.returncode)}:\n" + "".join(rest[-_LINES_SHOWN:]).rstrip(),
        hint="SIGKILL is mostly the kernel's, for lack of memory: `dmesg -T | tail` says so"
        if process.returncode == -signal.SIGKILL
        else "",
    )


def _end(code: int) -> str:
    """How a process ended that gave no answer."""
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with {code} and gave no answer"


def _word(line: str) -> dict[str, Any] | None:
    """A line of the protocol; None: something that a library printed."""
    if not line.startswith("{"):
        return None
    try:
        word = json.loads(line)
    except ValueError:
        return None
    return word if isinstance(word, dict) and {"phase", "error", "answer"} & word.keys() else None


def _error(found: Mapping[str, Any]) -> DslmError:
    kind = InputError if found["exit_code"] == InputError.exit_code else RunFailed
    return kind(found["message"], where=Where(**found["where"]), hint=found["hint"])
