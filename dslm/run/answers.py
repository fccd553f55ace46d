"""Messages of a process that was asked: its progress, then one answer or one failure.

One word a line, read by `dslm.codec`; both ends (`dslm.ask.call`, `dslm.worker.answer`) use these
types. Knows no process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from dslm.codec import Json, Malformed, Strict, decode, encode, line_of
from dslm.errors import DslmError
from dslm.run.endings import ErrorReport, report_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Doing(Strict):
    """A line of progress, for people."""

    name: ClassVar[str] = "doing"
    detail: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece(Strict):
    """A piece of a text while it is made; `of` says which text, where there are several."""

    name: ClassVar[str] = "piece"
    text: str
    of: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer(Strict):
    """The answer."""

    name: ClassVar[str] = "answer"
    content: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Failed(Strict):
    """The work failed; `exit_code` is that of one of dslm's own errors, and so are its parts."""

    name: ClassVar[str] = "failed"
    report: ErrorReport
    exit_code: int = 1
    file: str | None = None
    line: int | None = None
    key: str | None = None


Word = Doing | Piece | Answer | Failed
_WORDS: Mapping[str, type[Word]] = {word.name: word for word in (Doing, Piece, Answer, Failed)}


def failed(failure: DslmError) -> Failed:
    """Return the word for one of dslm's own errors."""
    where = failure.where
    return Failed(
        report=report_of(failure),
        exit_code=failure.exit_code,
        file=None if where.file is None else str(where.file),
        line=where.line,
        key=where.key,
    )


def encode_word(word: Word) -> bytes:
    """Return a word as its line.

    Raises:
        ValueError: it holds a number that JSON doesn't have.
    """
    fields: Mapping[str, Json] = encode(word)
    return f"{word.name} {line_of(fields)}\n".encode("utf-8", errors="replace")


def decode_word(line: bytes) -> Word:
    """Return the word of a line.

    Raises:
        Malformed: it is not one.
    """
    name, _, fields = line.strip().partition(b" ")
    kind = _WORDS.get(name.decode("ascii", errors="replace"))
    if kind is None:
        raise Malformed("no word of an answer")
    return decode(kind, fields)
