"""The words of the control channel, and the one codec that both of its ends use.

A word is a frozen value; on the wire it is one line of JSON, `{"NAME": {FIELD: VALUE, …}}`. Every
field says what it may hold: reading refuses anything else, writing cuts a text that is too long,
so that neither end ever sends what the other refuses. Whatever the bytes are, reading them gives
words or raises `MalformedWord`, nothing else. Knows no sockets.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Generic, TypeVar, get_args, get_type_hints

_LINE_BYTES = 4 * 2**20
_DEPTH = 32  # of lists and objects in each other
_TEXT = 256 * 1024  # characters: as JSON at most 1.5 MiB
_GREATEST = 2**63 - 1
_SHOWN = 120


class MalformedWord(ValueError):
    """What arrived is no word of the control channel."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """What a field may hold: how it is read, and how it is cut before it is sent."""

    read: Callable[[Any], Any]
    fit: Callable[[Any], Any] = lambda value: value


def _whole(least: int = 0, most: int = _GREATEST, *, optional: bool = False) -> _Kind:
    def read(value: Any) -> int | None:
        if optional and value is None:
            return None
        if type(value) is not int or not least <= value <= most:
            raise MalformedWord(f"not a whole number from {least} to {most}: {_shown(value)}")
        return value

    return _Kind(read)


def _number(*, optional: bool = False) -> _Kind:
    def read(value: Any) -> float | None:
        if optional and value is None:
            return None
        if not _is_time(value):
            raise MalformedWord(f"not a finite number from 0 on: {_shown(value)}")
        return float(value)

    return _Kind(read)


def _text(most: int = _TEXT, *, optional: bool = False) -> _Kind:
    def read(value: Any) -> str | None:
        if optional and value is None:
            return None
        if not isinstance(value, str) or len(value) > most:
            raise MalformedWord(f"not a text of up to {most} characters: {_shown(value)}")
        return writable(value)

    def fit(value: str | None) -> str | None:
        if value is None or len(value) <= most:
            return value
        half = (most - 3) // 2
        return f"{value[:half]} … {value[-half:]}"

    return _Kind(read, fit)


def _record() -> _Kind:
    def read(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise MalformedWord(f"not an object: {_shown(value)}")
        name, when, attempt = (value.get(key) for key in ("event", "time", "attempt"))
        if not isinstance(name, str) or type(attempt) is not int or not _is_time(when):
            raise MalformedWord("not an event: its name, time or attempt is missing")
        whole: dict[str, Any] = _writable(value)
        return whole

    return _Kind(read)


@dataclass(frozen=True, kw_only=True, slots=True)
class Hello:
    """A rank has come; what is counted after `kills_before` happened to this attempt."""

    NAME: ClassVar[str] = "hello"
    rank: Annotated[int, _whole(most=2**24)]
    pid: Annotated[int, _whole(2, 2**31 - 1)]
    start_time: Annotated[int, _whole()]
    parent_pid: Annotated[int, _whole(0, 2**31 - 1)]
    parent_start_time: Annotated[int, _whole()]
    kills_before: Annotated[int | None, _whole(optional=True)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Beat:
    """A rank lives, and how far it is."""

    NAME: ClassVar[str] = "beat"
    progress: Annotated[int, _whole()]
    phase: Annotated[str, _text(200)]
    step: Annotated[int, _whole()]
    work_seconds: Annotated[float | None, _number(optional=True)]


@dataclass(frozen=True, kw_only=True, slots=True)
class End:
    """A rank's last word; `ended` is Unix time."""

    NAME: ClassVar[str] = "end"
    exit_code: Annotated[int, _whole(0, 255)]
    error: Annotated[str | None, _text(32 * 1024, optional=True)]
    ended: Annotated[float, _number()]


@dataclass(frozen=True, kw_only=True, slots=True)
class Stacks:
    """What every thread of a rank is doing."""

    NAME: ClassVar[str] = "stacks"
    text: Annotated[str, _text()]


@dataclass(frozen=True, kw_only=True, slots=True)
class Orphaned:
    """The launcher that started a rank is gone."""

    NAME: ClassVar[str] = "orphaned"


@dataclass(frozen=True, kw_only=True, slots=True)
class StopWanted:
    """The batch system of a rank's host takes it back."""

    NAME: ClassVar[str] = "stop wanted"


@dataclass(frozen=True, kw_only=True, slots=True)
class Recorded:
    """An event of a rank that can't write into the run directory."""

    NAME: ClassVar[str] = "event"
    record: Annotated[dict[str, Any], _record()]


@dataclass(frozen=True, kw_only=True, slots=True)
class Stop:
    """Save and stop after the current step."""

    NAME: ClassVar[str] = "stop"


@dataclass(frozen=True, kw_only=True, slots=True)
class ShowStacks:
    """Send the stacks of all threads."""

    NAME: ClassVar[str] = "show stacks"


@dataclass(frozen=True, kw_only=True, slots=True)
class EndNow:
    """End at once, with all child processes."""

    NAME: ClassVar[str] = "end now"


Report = Hello | Beat | End | Stacks | Orphaned | StopWanted | Recorded
"""What a rank sends."""
Order = Stop | ShowStacks | EndNow
"""What the supervisor sends."""
W = TypeVar("W", bound=Report | Order)
REPORTS: Mapping[str, type[Report]] = {
    word.NAME: word for word in (Hello, Beat, End, Stacks, Orphaned, StopWanted, Recorded)
}
ORDERS: Mapping[str, type[Order]] = {word.NAME: word for word in (Stop, ShowStacks, EndNow)}


def encode(word: Report | Order) -> bytes:
    """Return a word as its line.

    Raises:
        ValueError: an event holds a number that JSON doesn't have.
    """
    content = {name: kind.fit(getattr(word, name)) for name, kind in _KINDS[word.NAME].items()}
    text = json.dumps({word.NAME: content}, ensure_ascii=False, allow_nan=False, default=str)
    return writable(text).encode() + b"\n"


def decode(line: bytes, words: Mapping[str, type[W]]) -> W:
    """Return the word of a line.

    Args:
        line: without its line break.
        words: those that are expected, by name.

    Raises:
        MalformedWord: it is none of them, whatever it is.
    """
    if len(line) > _LINE_BYTES:
        raise MalformedWord(f"a line of {len(line)} bytes")
    try:
        parsed = json.loads(line, parse_constant=_no_number, parse_float=_finite)
    except (ValueError, RecursionError) as failure:
        raise MalformedWord(f"not JSON: {_shown(line)}") from failure
    _check_depth(parsed)
    match parsed:
        case {**whole} if len(whole) == 1:
            name, content = whole.popitem()
        case _:
            raise MalformedWord(f"not an object with one word: {_shown(line)}")
    word = words.get(str(name))
    if word is None:
        raise MalformedWord(f"an unknown word: {_shown(name)}")
    kinds = _KINDS[word.NAME]
    if not isinstance(content, dict) or content.keys() != kinds.keys():
        raise MalformedWord(f"`{name}` without its fields, or with others: {_shown(content)}")
    return word(**{key: kinds[key].read(value) for key, value in content.items()})


class WordReader(Generic[W]):
    """Makes words of bytes as they arrive; holds no more than one line of them."""

    def __init__(self, words: Mapping[str, type[W]]) -> None:
        self._words = words
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[W]:
        """Yield the words that are whole now.

        Raises:
            MalformedWord: after the words before it, where something else came.
        """
        *lines, rest = data.split(b"\n")
        for line in lines:
            whole, self._rest = bytes(self._rest) + line, bytearray()
            yield decode(whole, self._words)
        self._rest += rest
        if len(self._rest) > _LINE_BYTES:
            raise MalformedWord("a line without an end")


def _kinds(word: type[object]) -> dict[str, _Kind]:
    """Return what each field of a word may hold."""
    hints = get_type_hints(word, include_extras=True)
    return {name: get_args(hint)[1] for name, hint in hints.items() if name != "NAME"}


_KINDS = {word.NAME: _kinds(word) for word in (*REPORTS.values(), *ORDERS.values())}


def writable(text: str) -> str:
    """Return a text without what no file can hold: half of a surrogate pair, a NUL."""
    return text.encode("utf-8", errors="replace").decode().replace("\0", "�")


def _writable(value: Any) -> Any:
    """Return a JSON value whose texts can all be written; its depth was checked."""
    if isinstance(value, str):
        return writable(value)
    if isinstance(value, list):
        return [_writable(one) for one in value]
    if isinstance(value, dict):
        return {writable(key): _writable(one) for key, one in value.items()}
    return value


def _is_time(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < _GREATEST


def _no_number(name: str) -> float:
    raise MalformedWord(f"{name} is no number")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise MalformedWord(f"too large: {_shown(digits)}")
    return number


def _check_depth(value: Any) -> None:
    """Refuse what is so deep that writing it down again could fail; goes level by level."""
    level = [value]
    for _ in range(_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, (list, dict))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return
    raise MalformedWord(f"more than {_DEPTH} levels deep")


def _shown(value: Any) -> str:
    """Return the beginning of a value, for a message."""
    text = repr(value[:_SHOWN]) if isinstance(value, (str, bytes)) else type(value).__name__
    return text[:_SHOWN]
