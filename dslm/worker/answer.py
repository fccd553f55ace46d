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
from dslm.errors import DslmError, InputError, unforeseen
from dslm.run.answers import Answer, Doing, Piece, Word, encode_word, failed

Tell = Callable[[str], None]
Say = Callable[[Piece], None]


def answer(work: Callable[[dict[str, Any], Tell], dict[str, Any]]) -> None:
    """Do the work that stdin asks for and say how it went."""
    serve(lambda request, tell, say: work(request, tell), once=True)


def serve(work: Callable[[dict[str, Any], Tell, Say], dict[str, Any]], *, once: bool) -> None:
    """Do the work of each line of stdin, and say how it went.

    The first failure is the end; a wrong request among several is not.

    Args:
        work: does it; is given the request, and what tells of progress and of pieces.
        once: there is one line only.
    """
    pipe = int(os.environ.pop(environment.ANSWER_PIPE))
    os.set_inheritable(pipe, False)
    for text in sys.stdin:
        try:
            content = work(
                json.loads(text),
                lambda detail: _write(pipe, encode_word(Doing(detail=detail))),
                lambda piece: _write(pipe, encode_word(piece)),
            )
            word: Word = Answer(content=content)
            line = encode_word(word)
        except KeyboardInterrupt:
            raise  # the terminal sends it to both ends; the other one says so
        except BaseException as failure:  # noqa: BLE001 - whatever it is, the other end tells it
            told = _told(failure)
            line = encode_word(failed(told))
            if once or not isinstance(told, InputError):
                _write(pipe, line)
                sys.exit(1)
        _write(pipe, line)
        if once:
            return


def _told(failure: BaseException) -> DslmError:
    """Return the failure as one of dslm's own errors, with what it came from."""
    if isinstance(failure, DslmError):
        return failure
    told = unforeseen(failure)
    told.__cause__ = failure
    return told


def _write(pipe: int, line: bytes) -> None:
    with os.fdopen(os.dup(pipe), "wb") as stream:
        stream.write(line)
