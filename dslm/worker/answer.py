"""The worker's side of `dslm.ask.call`: a request from stdin, phases and one answer to stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

from dslm.errors import DslmError, unforeseen

Tell = Callable[[str], None]


def answer(work: Callable[[dict[str, Any], Tell], dict[str, Any]]) -> None:
    """Do the work that stdin asks for and say how it went."""
    request = json.loads(sys.stdin.read())

    def line(word: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(word, default=str) + "\n")
        sys.stdout.flush()

    try:
        line({"answer": work(request, lambda detail: line({"phase": detail}))})
    except DslmError as failure:
        line({"error": _document(failure)})
    except Exception as failure:  # noqa: BLE001 - nobody foresaw it: one message all the same
        line({"error": _document(unforeseen(failure))})


def _document(failure: DslmError) -> dict[str, Any]:
    where = failure.where
    return {
        "message": failure.message,
        "hint": failure.hint,
        "where": {
            "file": str(where.file) if where.file is not None else None,
            "line": where.line,
            "key": where.key,
        },
        "exit_code": failure.exit_code,
    }
