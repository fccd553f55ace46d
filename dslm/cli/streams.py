"""Prepare stdout and stderr, so that text gets through whatever they are.

A stream may be closed, full, a pipe that nobody reads, or of an encoding with few letters. People's
text is worth no failure: what stderr can't take is dropped. Data is: `dslm.cli.terminal` says so.
"""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from io import TextIOWrapper
from typing import Any, TextIO

from dslm import environment

_PLAIN = {
    "…": "...", "·": "-", "•": "*", "×": "x", "–": "-", "—": "-", "→": "->", "←": "<-", "↔": "<->",
    "≤": "<=", "≥": ">=", "±": "+-", "≈": "~", "✓": "+", "✔": "+", "✗": "x", "✘": "x", "⚠": "!",
    "“": '"', "”": '"', "‘": "'", "’": "'", "║": "|", "│": "|", "┃": "|", "─": "-", "━": "-",
    "═": "-", "╸": "-", "╺": "-",
}  # fmt: skip
# blocks of Unicode that stand for nothing but themselves: frames, bars, dots
_FIGURES = ((0x2500, 0x257F, "+"), (0x2580, 0x259F, "#"), (0x2800, 0x28FF, "."))
_HANDLER = "dslm-plain"
_NARROWEST = 20  # columns


def prepare() -> None:
    """Make the streams of this process such that text for people never fails."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # closed: else the next file that is opened would be printed into
            os.open(os.devnull, os.O_RDWR)
    codecs.register_error(_HANDLER, _plain)
    encoding = "ascii" if _wants_ascii() else None
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # else there is none
            stream.reconfigure(encoding=encoding, errors=_HANDLER)
    if sys.stderr is not None:
        sys.stderr = _Heedless(sys.stderr)
    for name in (environment.COLUMNS, environment.LINES):
        value = os.environ.get(name, "")
        if value and not (value.isdecimal() and int(value[:9]) >= _NARROWEST):
            del os.environ[name]


def settle() -> None:
    """Leave nothing in the streams that could fail while Python ends."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError, AttributeError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _wants_ascii() -> bool:
    """Return whether the user's locale knows ASCII only; Python would write UTF-8 all the same."""
    if any(os.environ.get(name) for name in (environment.IO_ENCODING, environment.UTF8)):
        return False
    chosen = next((os.environ[n] for n in environment.LOCALE if os.environ.get(n)), "")
    return chosen in ("C", "POSIX")


def _plain(failure: UnicodeError) -> tuple[str, int]:
    """The ASCII for what an encoding has no letter for."""
    if not isinstance(failure, UnicodeEncodeError):
        raise failure
    letters = failure.object[failure.start : failure.end]
    return "".join(map(_letter, letters)), failure.end


def _letter(letter: str) -> str:
    figure = next((f for low, high, f in _FIGURES if low <= ord(letter) <= high), None)
    escaped = letter.encode("ascii", "backslashreplace").decode()
    return _PLAIN.get(letter) or figure or escaped


class _Heedless:
    """A stream for people: what it can't take is dropped, since nobody would read it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
