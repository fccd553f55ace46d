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
from contextlib import suppress
from typing import IO, Any

from dslm import environment
from dslm.codec import Malformed
from dslm.errors import DslmError, InputError, RunFailed, Where
from dslm.run.answers import Answer as AnswerWord
from dslm.run.answers import Doing, Failed, Piece, decode_word
from dslm.run.endings import OwnError, shortened
from dslm.secrets import text_without_secrets

_LINES_KEPT = 400
_SHOWN = 600  # characters of a message
_LAST_SECONDS = 5.0  # for a process that has answered to leave


Tell = Callable[[str], None]
Answered = dict[str, Any]


class WorkerError(Exception):
    """What the process printed, or where its exception was raised: `--debug` shows it."""


class Asked:
    """A worker process: questions go in as lines of JSON, words come back through a pipe."""

    def __init__(self, module: str, *, own_signals: bool = False) -> None:
        """Start it.

        Args:
            module: such as `dslm.worker.export`.
            own_signals: Ctrl-C in the terminal doesn't reach it.
        """
        self._module = module
        reading, writing = os.pipe()
        try:
            self._process = subprocess.Popen(
                # modules of the current folder are no libraries
                [sys.executable, "-P", "-m", module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(writing,),
                start_new_session=own_signals,
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
        self._answers = os.fdopen(reading, "rb")
        self._printed: deque[str] = deque(maxlen=_LINES_KEPT)
        self._keeper = threading.Thread(
            target=_keep, args=(self._process.stdout, self._printed), daemon=True
        )
        self._keeper.start()

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    def send(self, request: Mapping[str, object]) -> None:
        """Ask something."""
        if self._process.stdin is None:  # for the type checker: it is a pipe
            raise RunFailed("no pipe to the worker")
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return  # it has already exited: its output explains why

    def answer(self, on_phase: Tell, on_piece: Callable[[Piece], None] | None = None) -> Answered:
        """Read words until the answer.

        Raises:
            InputError: the worker found the request wrong.
            RunFailed: it failed, or ended without an answer.
            KeyboardInterrupt: Ctrl-C ended it.
        """
        for line in self._answers:
            try:
                word = decode_word(line)
            except Malformed:
                break  # it was cut off in the middle of it
            match word:
                case Doing():
                    on_phase(word.detail)
                case Piece() if on_piece is not None:
                    on_piece(word)
                case Failed():
                    raise _error(word)
                case AnswerWord():
                    return dict(word.content)
        self.end()
        if self._process.returncode == -signal.SIGINT:
            raise KeyboardInterrupt
        raise _silent(self._module, self._process.returncode, list(self._printed))

    def end(self, *, kill: bool = False) -> None:
        """Wait for the process to end, for a while; or kill it."""
        if kill:
            self._process.kill()
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(_LAST_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._keeper.join(_LAST_SECONDS)
        self._answers.close()
        if self._process.stdout is not None:
            self._process.stdout.close()


def ask(
    module: str,
    request: Mapping[str, object],
    on_phase: Tell = lambda detail: None,
) -> Answered:
    """Run a worker module and return its answer.

    Args:
        module: such as `dslm.worker.export`.
        request: what it is to do; JSON.
        on_phase: called with the current phase, for people.

    Raises:
        InputError: the worker found the request wrong.
        RunFailed: it failed, or ended without an answer.
    """
    asked = Asked(module)
    try:
        asked.send(request)
        answer = asked.answer(on_phase)
    except BaseException:
        asked.end(kill=True)
        raise
    asked.end()
    return answer


def _keep(stream: IO[bytes] | None, printed: deque[str]) -> None:
    """Keep the last lines that the process and its libraries print, so that it never waits."""
    for line in stream or ():
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
