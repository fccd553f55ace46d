"""Ask the worker: work that needs torch or transformers, done in a process of its own.

The request goes in as JSON on stdin; what is going on and the answer, or the failure, come back
through a pipe that nothing else writes to. Nothing of it is an argument, so `ps` shows none of it.
However the process ends, what is raised is one error with one message.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import IO, Any

from dslm import environment
from dslm.codec import Malformed
from dslm.errors import DslmError, InputError, RunFailed, Where
from dslm.run.answers import Answer as AnswerWord
from dslm.run.answers import Doing, Failed, decode_word
from dslm.run.endings import OwnError, shortened
from dslm.secrets import text_without_secrets

_LINES_KEPT = 400
_SHOWN = 600  # characters of a message
_LAST_SECONDS = 5.0  # for a process that has answered to leave


class WorkerError(Exception):
    """What the process printed, or where its exception was raised: `--debug` shows it."""


def ask(
    module: str,
    request: Mapping[str, object],
    on_phase: Callable[[str], None] = lambda detail: None,
) -> dict[str, Any]:
    """Run a worker module and return its answer.

    Args:
        module: such as `dslm.worker.export`.
        request: what it is to do; JSON.
        on_phase: called with the current phase, for people.

    Raises:
        InputError: the worker found the request wrong.
        RunFailed: it failed, or ended without an answer.
    """
    reading, writing = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", module],  # modules of the current folder are no libraries
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(writing,),
            env={
                **os.environ,
                environment.ACCELERATOR: "cpu",  # DeepSpeed itself computes nothing
                environment.ANSWER_PIPE: str(writing),
            },
        )
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    printed: deque[str] = deque(maxlen=_LINES_KEPT)
    with process, os.fdopen(reading, "rb") as answers:
        if process.stdin is None or process.stdout is None:  # for the type checker: both are pipes
            raise RunFailed("no pipe to the worker")
        keeper = threading.Thread(target=_keep, args=(process.stdout, printed), daemon=True)
        keeper.start()
        try:
            _send(process.stdin, request)
            answer = _answer(answers, on_phase)
        except BaseException:
            process.kill()
            keeper.join(_LAST_SECONDS)
            raise
        try:
            process.wait(_LAST_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
        keeper.join(_LAST_SECONDS)
    if answer is None:
        raise _silent(module, process.returncode, list(printed))
    return answer


def _send(stdin: IO[bytes], request: Mapping[str, object]) -> None:
    try:
        stdin.write(json.dumps(request).encode())
        stdin.close()
    except BrokenPipeError:
        return  # it has already exited: its output explains why


def _answer(answers: IO[bytes], on_phase: Callable[[str], None]) -> dict[str, Any] | None:
    """Read words until the answer; None when there is none."""
    for line in answers:
        try:
            word = decode_word(line)
        except Malformed:
            return None  # it was cut off in the middle of it
        match word:
            case Doing():
                on_phase(word.detail)
            case Failed():
                raise _error(word)
            case AnswerWord():
                return dict(word.content)
    return None


def _keep(stream: IO[bytes], printed: deque[str]) -> None:
    """Keep the last lines that the process and its libraries print, so that it never waits."""
    for line in stream:
        printed.append(line.decode("utf-8", errors="replace").rstrip("\n"))


def _error(word: Failed) -> DslmError:
    """Return the failure of the work as one of dslm's own errors."""
    where = Where(file=word.file, line=word.line, key=word.key)
    own = word.report.own or OwnError(message=word.report.line)
    kind = InputError if word.exit_code == InputError.exit_code else RunFailed
    failure = kind(shortened(text_without_secrets(own.message), _SHOWN), where=where, hint=own.hint)
    frames = "\n".join(f"{raised.frames}{raised.line}" for raised in word.report.chain)
    failure.__cause__ = WorkerError(f"in the process that was asked:\n{frames}")
    return failure


def _silent(module: str, code: int, printed: list[str]) -> RunFailed:
    """Return the error of a process that ended without an answer."""
    how, hint = f"ended with {code} and gave no answer", "`--debug` shows what it printed"
    if code < 0:
        how = f"was ended by {signal.Signals(-code).name}"
    if code == -signal.SIGKILL:
        hint = "`dmesg -T | grep -i killed` says whether the host's memory was full"
    last = next((line for line in reversed(printed) if line[:1].strip()), "")
    message = f"{module} {how}"
    if last and code > 0:  # it did not get so far as to say why itself
        message = f"{message}: {shortened(text_without_secrets(last), _SHOWN)}"
    failure = RunFailed(message, hint=hint)
    failure.__cause__ = WorkerError("it printed:\n" + "\n".join(printed))
    return failure
