"""Logs of ranks: their end, and the traceback in them that matters. Text in, text out."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

from dslm.secrets import text_without_secrets

_READ_BYTES = 2_000_000
_SHOWN_LINES = 40
_HEADER = re.compile(r"^.*Traceback \(most recent call last\):.*$", re.MULTILINE)
_LINKS = (
    "The above exception was the direct cause of the following exception:",
    "During handling of the above exception, another exception occurred:",
)
# c10's error log ([E1124 21:25:42 …]), abort(3) after an exception of C++, faulthandler, assert(3)
_NATIVE = re.compile(r"\[E\d+ |terminate called|what\(\):|^Fatal Python error|Assertion .* failed")
_WARNING = re.compile(r"\[WARNING\]|\[W\d+ |Warning:|^\s*warn(ings\.warn)?\(")


def read_end(log: Path) -> str:
    """Return the last two megabytes of a log; empty where there is none."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - _READ_BYTES))
            return stream.read().decode("utf-8", errors="replace")
    except OSError:
        return ""


def last_lines(text: str, count: int = _SHOWN_LINES) -> str:
    """Return the last lines that are not empty."""
    return "\n".join([line for line in text.splitlines() if line.strip()][-count:])


def native_words(text: str) -> str:
    """Extract the last output of C++ code, the fault handler or a kernel's assertion."""
    return "\n".join(line for line in last_lines(text, 400).splitlines() if _NATIVE.search(line))


def without_warnings(text: str) -> str:
    """The lines that are no warnings: what a library could do without has not ended the run."""
    return "\n".join(line for line in text.splitlines() if not _WARNING.search(line))


def chain(text: str) -> str:
    """Return the first chain of tracebacks.

    Exceptions that were raised from each other belong together: what they say first is what
    happened first. Empty where there is no traceback.
    """
    starts = [match.start() for match in _HEADER.finditer(text)]
    chains: list[str] = []
    linked = False
    for start, end in pairwise([*starts, len(text)]):
        piece = text[start:end]
        # a data worker's own traceback comes inside the message of its reader's
        if linked or piece.startswith("Original Traceback"):
            chains[-1:] = ["".join(chains[-1:]) + piece]
        else:
            chains.append(piece)
        linked = any(link in piece for link in _LINKS)
    return chains[0] if chains else ""


def messages(traceback: str) -> str:
    """Extract the messages of a traceback, without its frames and their lines of code."""
    kept, in_frames = [], False
    for line in traceback.splitlines():
        if _HEADER.match(line):
            in_frames = True
        elif in_frames and line[:1].strip():
            in_frames = False
        if not in_frames:
            kept.append(line)
    return "\n".join(kept)


def first_traceback(traceback: str) -> str:
    """Return the first traceback of a chain, its middle left out when it is long."""
    second = [match.start() for match in _HEADER.finditer(traceback)][1:]
    first = traceback[: second[0]] if second else traceback
    lines = [line for line in first.splitlines() if line.strip() and line.strip() not in _LINKS]
    # what the launcher or another library printed after it is no part of it
    ends = [n for n, line in enumerate(lines) if n and line[:1].strip()]
    if ends:
        lines = lines[: ends[0] + _SHOWN_LINES // 4]
    if len(lines) > _SHOWN_LINES:
        half = _SHOWN_LINES // 2
        lines = [*lines[:half], f"  … {len(lines) - 2 * half} lines …", *lines[-half:]]
    return text_without_secrets("\n".join(lines))


def last_message(traceback: str) -> str:
    """Return the first line of what the last exception says."""
    pieces = _HEADER.split(traceback)
    lines = [line for line in pieces[-1].splitlines() if line[:1].strip()]
    return lines[0] if len(pieces) > 1 and lines else ""
