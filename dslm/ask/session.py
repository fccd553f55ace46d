"""Ask one worker process several times: the model that it has loaded stays between two questions.

A question and its answer are as in `dslm.ask.call`; pieces of an answer come while it is made.
Ctrl-C ends an answer, not the process.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from types import TracebackType

from dslm.ask.call import Answered, Asked
from dslm.errors import DslmError
from dslm.run.answers import Piece

OnPiece = Callable[[Piece], None]


class Session:
    """A worker module that answers until the block ends."""

    def __init__(self, module: str) -> None:
        self._asked = Asked(module, own_signals=True)
        self.interrupted = False  # Ctrl-C ended the last answer

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        failure: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._asked.end(kill=failure is not None)

    def ask(
        self,
        request: Mapping[str, object],
        on_phase: Callable[[str], None] = lambda detail: None,
        on_piece: OnPiece = lambda piece: None,
    ) -> Answered:
        """Ask, and return the answer; where Ctrl-C ended it, what there was of it.

        Raises:
            InputError: the worker found the request wrong.
            RunFailed: it failed, or ended without an answer.
            KeyboardInterrupt: Ctrl-C came when there was nothing to end but the process, or again
                while the answer was ending.
        """
        self.interrupted = False

        def pass_on(*_: object) -> None:
            if self.interrupted:
                raise KeyboardInterrupt
            self.interrupted = True
            os.kill(self._asked.pid, signal.SIGINT)

        before = signal.signal(signal.SIGINT, pass_on)
        try:
            self._asked.send(request)
            return self._asked.answer(on_phase, on_piece)
        except DslmError:
            if self.interrupted:  # libraries make other exceptions of it, in imports and threads
                raise KeyboardInterrupt from None
            raise
        finally:
            signal.signal(signal.SIGINT, before)
