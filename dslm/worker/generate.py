"""The program behind `dslm generate` and `dslm chat`; what takes seconds is imported when asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dslm.worker.answer import Say, Tell, serve
from dslm.worker.hub import stay_offline_without

if TYPE_CHECKING:
    from dslm.worker.generation import Answers


class _Answers:
    """`dslm.worker.generation.Answers`, imported where the first request has come."""

    def __init__(self) -> None:
        self._made: Answers | None = None

    def __call__(self, request: dict[str, Any], tell: Tell, say: Say) -> dict[str, Any]:
        if self._made is None:
            stay_offline_without([request["model"], request["against"]], tell)
            tell("loading PyTorch")
            from dslm.worker.generation import Answers

            self._made = Answers()
        return self._made(request, tell, say)


if __name__ == "__main__":
    serve(_Answers(), once=False)
