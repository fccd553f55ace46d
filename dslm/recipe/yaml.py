"""YAML text to a tree that remembers the file and line of every key.

Text in, plain mappings and the place of each dotted key out. Knows YAML, not recipes. Scalars are
those of YAML 1.2's core schema, so `1e-6` is a number, a date is text and `012` is twelve; the
booleans of YAML 1.1 (`yes`, `off`) are understood too. The tree is built from the parser's events,
since composing nodes recurses without a limit.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from dslm.codec import Json
from dslm.errors import RecipeError, Where, shortened
from dslm.reading import (
    LONGEST_KEY,
    MOST_BYTES,
    MOST_LEVELS,
    MOST_VALUES,
    wrong_number,
    wrong_text,
)

OPTION = "--set"  # where an override stands
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_CORE = "tag:yaml.org,2002:"
_WORDS = {
    **dict.fromkeys(("", "~", "null"), None),
    **dict.fromkeys(("true", "yes", "on"), True),
    **dict.fromkeys(("false", "no", "off"), False),
    **dict.fromkeys((".inf", "+.inf"), float("inf")),
    "-.inf": float("-inf"),
    ".nan": float("nan"),
}
# YAML 1.2, 10.3.2; underscores between digits as YAML 1.1 and Python have them
_NUMBERS: tuple[tuple[re.Pattern[str], Callable[[str], int | float]], ...] = (
    (re.compile(r"[-+]?[0-9]+(_[0-9]+)*"), lambda text: _whole(text, 10)),
    (re.compile(r"0x[0-9a-fA-F]+"), lambda text: _whole(text[2:], 16)),
    (re.compile(r"0o[0-7]+"), lambda text: _whole(text[2:], 8)),
    (re.compile(r"[-+]?(\.[0-9]+|[0-9]+(_[0-9]+)*(\.[0-9]*)?)([eE][-+]?[0-9]+)?"), float),
)
_NUMERIC = frozenset({"int", "float", "bool", "null"})
_TAGS = _NUMERIC | {"", "!", "str", "map", "seq"}
_MOST_DIGITS = 40  # Python itself refuses to read some thousands


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed YAML mapping, and where each dotted key stands."""

    tree: dict[str, Any]
    places: dict[str, Where]


def parse_yaml(text: str, file: str | Path, *, verbatim: str = "") -> Document:
    """Parse a YAML mapping.

    Args:
        text: of the file.
        file: as people know it.
        verbatim: the top-level key below which plain scalars stay text, as they are written.

    Raises:
        RecipeError: it doesn't parse, is no mapping, has a key twice, or goes beyond a limit of
            `dslm.reading`; with file and line.
    """
    builder = _Builder(file=file, verbatim=verbatim)
    tree = builder.parse(text, "")
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise RecipeError(
            f"a recipe is a mapping of keys to values, not a {type(tree).__name__}",
            where=Where(file=file, line=1),
        )
    return Document(tree, builder.places)


def parse_value(text: str, key: str, *, verbatim: str = "") -> tuple[Json, dict[str, Where]]:
    """Return the value that `--set` gives to a key, and the place of each key in it.

    The text is `8`, `2e-5`, `[a, b]`, `{steps: 10}` or plain words.

    Raises:
        RecipeError: it is not YAML, or goes beyond a limit.
    """
    builder = _Builder(file=OPTION, verbatim=verbatim)
    value = builder.parse(text, key)
    return value, {key: Where(file=OPTION, key=key)} | builder.places


@dataclass(kw_only=True, slots=True)
class _Builder:
    """One document on its way from events to values."""

    file: str | Path
    verbatim: str
    places: dict[str, Where] = field(default_factory=dict)
    anchors: dict[str, tuple[Json, int]] = field(default_factory=dict)
    open: set[str] = field(default_factory=set)  # anchors of what is being built
    values: int = 0
    loader: Any = None  # its methods have no types

    def parse(self, text: str, key: str) -> Json:
        """Return the value of a text, which is that of a dotted key."""
        if len(text) > MOST_BYTES:
            raise self.wrong(f"it is larger than {MOST_BYTES >> 20} MiB", key)
        if wrong := wrong_text(text):
            lines = enumerate(text.split("\n"), 1)
            line = next(number for number, line in lines if wrong_text(line))
            raise RecipeError(
                f"this is not YAML: it {wrong}",
                where=Where(
                    file=self.file, line=None if self.file == OPTION else line, key=key or None
                ),
            )
        self.loader = _Loader(text)
        try:
            self.loader.get_event()  # the stream's start
            if not isinstance(self.loader.get_event(), yaml.DocumentStartEvent):
                return None
            value = self.value(self.loader.get_event(), key, 0)
            self.loader.get_event()  # the document's end
            if isinstance(event := self.loader.get_event(), yaml.DocumentStartEvent):
                raise self.wrong("there is a second document after `---`", key, event)
        except yaml.MarkedYAMLError as failure:
            raise self._not_yaml(failure, key) from failure
        except yaml.YAMLError as failure:
            raise self.wrong(f"this is not YAML: {shortened(str(failure), 200)}", key) from failure
        finally:
            self.loader.dispose()
        return value

    def value(self, event: yaml.Event, key: str, level: int) -> Json:
        """Return the value that an event begins, all events of it read."""
        before = self.values
        self._count(1, key, event)
        if level > MOST_LEVELS:
            raise self.wrong(f"it is nested deeper than {MOST_LEVELS} levels", "", event)
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, key)
        if not isinstance(event, yaml.CollectionStartEvent | yaml.ScalarEvent):
            raise self.wrong("here is no value", key, event)
        anchor, tag = event.anchor, str(event.tag or "").removeprefix(_CORE)
        if tag not in _TAGS:
            raise self.wrong(f"the tag `{shortened(tag)}` is not supported here", key, event)
        if anchor:
            self.open.add(anchor)
        value: Json
        if isinstance(event, yaml.MappingStartEvent):
            value = self._mapping(key, level)
        elif isinstance(event, yaml.ScalarEvent):
            value = self._scalar(event, key)
        else:
            value = []
            while not isinstance(item := self.loader.get_event(), yaml.SequenceEndEvent):
                value.append(self.value(item, f"{key}.{len(value)}", level + 1))
        if anchor:
            self.open.discard(anchor)
            self.anchors[anchor] = (value, self.values - before)
        return value

    def _mapping(self, key: str, level: int) -> dict[str, Json]:
        result: dict[str, Json] = {}
        while not isinstance(event := self.loader.get_event(), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                raise self.wrong("a key must be a word", key, event)
            name = str(event.value)
            path = f"{key}.{name}" if key else name
            if not name or len(name) > LONGEST_KEY:
                how = "without a name" if not name else f"of more than {LONGEST_KEY} characters"
                raise self.wrong(f"here is a key {how}", key, event)
            if wrong := wrong_text(name):
                raise self.wrong(f"a key {wrong}", key, event)
            place = Where(file=self.file, line=self._line(event), key=path)
            if name in result:
                line = self.places[path].line
                first = "" if line is None else f"; first on line {line}"
                raise RecipeError(f"`{path}` is given twice{first}", where=place)
            self.places[path] = place
            result[name] = self.value(self.loader.get_event(), path, level + 1)
        return result

    def _scalar(self, event: yaml.ScalarEvent, key: str) -> Json:
        text = str(event.value)
        if wrong := wrong_text(text):
            raise self.wrong(f"its text {wrong}", key, event)
        is_plain = event.implicit[0] or str(event.tag).removeprefix(_CORE) in _NUMERIC
        is_below = self.verbatim and key.startswith(f"{self.verbatim}.")
        if not is_plain or (is_below and text.lower() not in ("", "~", "null")):
            return text
        value = _plain(text)
        if isinstance(value, int | float) and (wrong := wrong_number(value)):
            raise self.wrong(f"`{shortened(text)}` {wrong}", key, event)
        return value

    def _alias(self, event: yaml.AliasEvent, key: str) -> Json:
        if event.anchor in self.open:
            raise self.wrong(f"`*{event.anchor}` refers to itself", key, event)
        if event.anchor not in self.anchors:
            raise self.wrong(f"there is no `&{event.anchor}` before `*{event.anchor}`", key, event)
        value, size = self.anchors[event.anchor]
        self._count(size, key, event)
        return value

    def _count(self, values: int, key: str, event: yaml.Event) -> None:
        self.values += values
        if self.values > MOST_VALUES:
            raise self.wrong(f"it holds more than {MOST_VALUES:,} values", key, event)

    def _line(self, event: yaml.Event) -> int | None:
        mark = event.start_mark
        return None if self.file == OPTION or mark is None else mark.line + 1

    def wrong(self, message: str, key: str, event: yaml.Event | None = None) -> RecipeError:
        line = self._line(event) if event is not None else None
        return RecipeError(message, where=Where(file=self.file, line=line, key=key or None))

    def _not_yaml(self, failure: yaml.MarkedYAMLError, key: str) -> RecipeError:
        mark = failure.problem_mark or failure.context_mark
        if failure.context_mark and failure.context and "flow" in failure.context:
            mark = failure.context_mark
        line = mark.line + 1 if mark and self.file != OPTION else None
        return RecipeError(
            f"this is not YAML: {failure.problem or failure.context}",
            where=Where(file=self.file, line=line, key=key or None),
            hint=f"{failure.context}" if failure.context else "",
        )


def _plain(text: str) -> Json:
    """The value of a scalar without quotes."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for pattern, number in _NUMBERS:
        if pattern.fullmatch(text):
            return number(text)
    return text


def _whole(digits: str, base: int) -> int | float:
    return int(digits, base) if len(digits) <= _MOST_DIGITS else float("inf")


class _Dumper(yaml.SafeDumper):
    """Quotes text that this module's reader would take for something else."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = None if isinstance(_plain(text), str) else "'"
    return dumper.represent_scalar(f"{_CORE}str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def dump_yaml(tree: dict[str, Json]) -> str:
    """Return a tree as text that `parse_yaml` gives back unchanged."""
    return yaml.dump(
        tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100,
        default_flow_style=False,
    )  # fmt: skip
