"""A DeepSpeed JSON to a mapping that remembers the line of every key.

Text in, values and lines out. Bounded as `dslm.reading` is, so that no file takes the memory or the
stack; numbers that are none are kept, for the linter to name their keys. Knows JSON, not DeepSpeed.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from json import JSONDecoder
from pathlib import Path
from typing import NoReturn

from dslm.errors import ConfigError, Where, shortened
from dslm.reading import MOST_LEVELS, read_text

_MOST_DIGITS = 400  # a float has 308 before the point

_DECODER = JSONDecoder()
_SPACE = re.compile(r"[ \t\n\r]*")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
# NaN is no JSON, but Python and DeepSpeed read it: the linter names the key
_WORDS = {
    "true": True,
    "false": False,
    "null": None,
    "NaN": math.nan,
    "Infinity": math.inf,
    "-Infinity": -math.inf,
}


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """A parsed file and the line (from 1) of each dotted key."""

    values: dict[str, object]
    lines: dict[str, int]


def read_config(file: Path) -> ConfigFile:
    """Read a DeepSpeed JSON.

    Raises:
        ConfigError: it is missing, too large, no JSON, no object, or has a key twice: where it is.
    """
    return parse_config(read_text(file, error=ConfigError), file)


def parse_config(text: str, file: Path | None = None) -> ConfigFile:
    """Parse the text of a DeepSpeed JSON.

    Raises:
        ConfigError: see `read_config`.
    """
    reader = _Reader(text, file)
    values = reader.whole()
    if not isinstance(values, dict):
        raise ConfigError("it is not a JSON object", where=Where(file=file))
    return ConfigFile(values, reader.lines)


@dataclass(slots=True)
class _Reader:
    text: str
    file: Path | None
    lines: dict[str, int] = field(default_factory=dict)
    counted: tuple[int, int] = (0, 1)  # a place and its line, so that counting goes on from there

    def whole(self) -> object:
        value, end = self.value(self.skip(0), "", 0)
        if self.skip(end) != len(self.text):
            self.fail("there is something after its end", self.skip(end))
        return value

    def value(self, at: int, path: str, level: int) -> tuple[object, int]:
        """Return the value at a place, and where it ends."""
        if level > MOST_LEVELS:
            self.fail(f"it is nested deeper than {MOST_LEVELS} levels", at)
        first = self.text[at : at + 1]
        if first == "{":
            return self.mapping(at + 1, path, level)
        if first == "[":
            return self.sequence(at + 1, path, level)
        if first == '"':
            return self.string(at)
        for word, value in _WORDS.items():
            if self.text.startswith(word, at):
                return value, at + len(word)
        number = _NUMBER.match(self.text, at)
        if number is None:
            self.fail(*_why_not(self.text, at))
        return self.number(number), number.end()

    def mapping(self, at: int, path: str, level: int) -> tuple[dict[str, object], int]:
        found: dict[str, object] = {}
        at = self.skip(at)
        if self.text.startswith("}", at):
            return found, at + 1
        while True:
            if not self.text.startswith('"', at):
                self.fail(*_why_not(self.text, at, "a key in double quotes is expected"))
            start = at
            key, at = self.string(at)
            if key in found:
                self.fail(f"the key `{shortened(key)}` is given twice", start)
            below = f"{path}.{key}" if path else key
            self.lines[below] = self.line(start)
            at = self.skip(at)
            if not self.text.startswith(":", at):
                self.fail("`:` is expected after a key", at)
            found[key], at = self.value(self.skip(at + 1), below, level + 1)
            at, is_last = self.after(at, "}")
            if is_last:
                return found, at

    def sequence(self, at: int, path: str, level: int) -> tuple[list[object], int]:
        found: list[object] = []
        at = self.skip(at)
        if self.text.startswith("]", at):
            return found, at + 1
        while True:
            value, at = self.value(at, path, level + 1)
            found.append(value)
            at, is_last = self.after(at, "]")
            if is_last:
                return found, at

    def after(self, at: int, close: str) -> tuple[int, bool]:
        """Behind a comma or the closing bracket, and whether it was that."""
        at = self.skip(at)
        if self.text.startswith(close, at):
            return at + 1, True
        if not self.text.startswith(",", at):
            self.fail(*_why_not(self.text, at, f"`,` or `{close}` is expected"))
        return self.skip(at + 1), False

    def string(self, at: int) -> tuple[str, int]:
        try:
            text, end = _DECODER.raw_decode(self.text, at)
        except ValueError:
            self.fail("a text has no end, or a wrong character in it", at)
        return str(text), end

    def number(self, found: re.Match[str]) -> int | float:
        if found.end() - found.start() > _MOST_DIGITS:
            self.fail(f"a number has more than {_MOST_DIGITS} digits", found.start())
        if found.group(1) or found.group(2):
            return float(found.group())
        return int(found.group())

    def skip(self, at: int) -> int:
        found = _SPACE.match(self.text, at)
        return found.end() if found else at

    def line(self, at: int) -> int:
        before, line = self.counted
        if at >= before:
            line += self.text.count("\n", before, at)
            self.counted = (at, line)
            return line
        return self.text.count("\n", 0, at) + 1

    def fail(self, why: str, at: int, hint: str = "") -> NoReturn:
        raise ConfigError(
            why if why.startswith("the key") else f"it is not JSON: {why}",
            where=Where(file=self.file, line=self.line(at)),
            hint=hint,
        )


def _why_not(text: str, at: int, otherwise: str = "a value is expected") -> tuple[str, int, str]:
    """Find text that JSON doesn't allow, with its place and a hint."""
    rest = text[at : at + 2]
    if rest[:1] == "#" or rest in ("//", "/*"):
        hint = "DeepSpeed's own reader takes comments, the Trainer's doesn't: use a `_comment` key"
        return "there is a comment", at, hint
    if rest[:1] in ("}", "]") and text[:at].rstrip().endswith(","):
        return "there is a comma before the end", at, "remove the last comma"
    if rest[:1] == "'":
        return "there are single quotes", at, "JSON uses double quotes"
    if text.startswith(("True", "False", "None"), at):
        return "there is a Python word", at, "JSON has true, false and null"
    if at >= len(text):
        return "it ends too early", at, ""
    return otherwise, at, ""
