"""Text and JSON that somebody else wrote: bounded, strict, and refused in words, never a traceback.

Files and text in, plain values out. The limits are far above what anybody writes by hand and far
below what makes a parser slow or its stack overflow; each is said when it is met. The reader of
YAML, `dslm.recipe.yaml`, holds to the same ones.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

from dslm.errors import InputError, Where, shortened

MOST_BYTES = 1 << 20  # of a recipe, a hostfile, a DeepSpeed JSON
MOST_LEVELS = 50  # of mappings and lists in each other
MOST_VALUES = 100_000  # of a document, what aliases repeat included
LONGEST_KEY = 200
LARGEST_NUMBER = 2**63 - 1  # what torch, NumPy and Slurm can hold
_DIGITS = len(str(LARGEST_NUMBER))
# What no name, path or sentence holds, and no terminal, command line or file system takes:
# control characters but tab and line break, and halves of surrogate pairs.
_UNFIT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)


def read_text(file: Path, *, error: type[InputError], most_bytes: int = MOST_BYTES) -> str:
    """Return the text of a small UTF-8 file; a byte order mark is left out.

    Raises:
        InputError: of the type `error`: missing, unreadable, too large, or no text.
    """
    try:
        with file.open("rb") as stream:
            content = stream.read(most_bytes + 1)
    except (OSError, ValueError) as failure:
        said = failure.strerror if isinstance(failure, OSError) else str(failure)
        raise error(f"can't read it: {said}", where=Where(file=file)) from failure
    if len(content) > most_bytes:
        raise error(f"it is larger than {most_bytes >> 20} MiB", where=Where(file=file))
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as failure:
        line = content.count(b"\n", 0, failure.start) + 1
        raise error("it is not UTF-8 text", where=Where(file=file, line=line)) from failure


def read_json(
    file: Path,
    *,
    error: type[InputError],
    most_bytes: int = MOST_BYTES,
    constant: Callable[[str], object] | None = None,
) -> object:
    """The value of a small JSON file, strictly: no key twice; no NaN or Infinity, but `constant`'s.

    Raises:
        InputError: of the type `error`, with the line as far as it is known.
    """
    text = read_text(file, error=error, most_bytes=most_bytes)
    return parse_json(text, file=file, error=error, constant=constant)


def parse_json(
    text: str,
    *,
    error: type[InputError],
    file: Path | None = None,
    constant: Callable[[str], object] | None = None,
) -> object:
    """The value of a JSON text, strictly: no key twice; no NaN or Infinity, but `constant`'s.

    Raises:
        InputError: of the type `error`, with the line as far as it is known.
    """

    def refuse(message: str, position: int) -> InputError:
        return error(message, where=Where(file=file, line=text.count("\n", 0, position) + 1))

    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found: dict[str, object] = {}
        for key, value in pairs:
            if key in found:
                twice = f"the key `{shortened(key)}` is given twice"
                raise error(twice, where=Where(file=file))
            if wrong := wrong_text(key):
                raise error(f"a key {wrong}", where=Where(file=file))
            if isinstance(value, str) and (wrong := wrong_text(value)):
                raise error(f"its text {wrong}", where=Where(file=file, key=shortened(key)))
            found[key] = value
        return found

    def number(said: str) -> int | float:
        is_whole = said.lstrip("-").isdigit()
        value = int(said) if is_whole and len(said) <= _DIGITS + 1 else float(said)
        if wrong := wrong_number(math.inf if is_whole and isinstance(value, float) else value):
            raise refuse(f"the number {shortened(said)} {wrong}", text.find(said))
        return value

    if (deep := _too_deep(text)) is not None:
        raise refuse(f"it is nested deeper than {MOST_LEVELS} levels", deep)
    try:
        return json.loads(
            text, object_pairs_hook=once, parse_int=number, parse_float=number,
            parse_constant=constant or number,
        )  # fmt: skip
    except json.JSONDecodeError as failure:
        raise refuse(f"it is not JSON: {failure.msg}", failure.pos) from failure


def wrong_number(value: int | float) -> str:
    """Say what is wrong with a setting's number, to follow its name; empty if nothing is."""
    if isinstance(value, float) and not math.isfinite(value):
        return "is not a finite number" if math.isnan(value) else "is too large, or infinite"
    if isinstance(value, int) and abs(value) > LARGEST_NUMBER:
        return f"is larger than {LARGEST_NUMBER:,}"
    return ""


def wrong_text(value: str) -> str:
    """Say what is wrong with a setting's text, to follow its name; empty if nothing is."""
    found = _UNFIT.search(value)
    return f"holds the character U+{ord(found[0]):04X}" if found else ""


def _too_deep(text: str) -> int | None:
    """Find the place where a JSON text is nested too deep; None if there is none."""
    level = 0
    for match in _BRACKETS.finditer(text):
        level += {"[": 1, "{": 1, "]": -1, "}": -1}.get(match[0], 0)
        if level > MOST_LEVELS:
            return match.start()
    return None
