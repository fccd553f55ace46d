"""The worker's side of `dslm.ask.call`: a request from stdin, an answer through a pipe of its own.

What libraries print on stdout and stderr is none of it. Whatever the work raises is sent as it is:
type, message and chain.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

from dslm import environment
from dslm.errors import DslmError, unforeseen
from dslm.run.answers import Answer, Doing, Word, encode_word, failed

Tell = Callable[[str], None]


def answer(work: Callable[[dict[str, Any], Tell], dict[str, Any]]) -> None:
    """Do the work that stdin asks for and say how it went."""
    pipe = int(os.environ.pop(environment.ANSWER_PIPE))
    os.set_inheritable(pipe, False)
    try:
        request = json.loads(sys.stdin.read())
        content = work(request, lambda detail: _send(pipe, Doing(detail=detail)))
        word: Word = Answer(content=content)
        line = encode_word(word)
    except KeyboardInterrupt:
        raise  # the terminal sends it to both ends; the other one says so
    except BaseException as failure:  # noqa: BLE001 - whatever it is, the other end tells it
        line = encode_word(failed(_told(failure)))
        _write(pipe, line)
        sys.exit(1)
    _write(pipe, line)


def _told(failure: BaseException) -> DslmError:
    """Return the failure as one of dslm's own errors, with what it came from."""
    if isinstance(failure, DslmError):
        return failure
    told = unforeseen(failure)
    told.__cause__ = failure
    return told


def _send(pipe: int, word: Word) -> None:
    _write(pipe, encode_word(word))


def _write(pipe: int, line: bytes) -> None:
    with os.fdopen(os.dup(pipe), "wb") as stream:
        stream.write(line)
