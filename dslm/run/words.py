"""The words of the control channel, and the one codec that both of its ends use.

A word is a frozen value; on the wire it is a line: its name, a space, its fields as JSON. Size,
depth, types and ranges are bounded, so whatever the bytes are, reading them gives words or raises
`Malformed`, nothing else. Knows no sockets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, ClassVar, Generic, TypeVar

from annotated_types import Ge, Lt, MaxLen

from dslm.codec import Count, Json, Malformed, Seconds, Strict, Time, encode, line_of
from dslm.codec import decode as decode_value
from dslm.run.endings import ErrorReport
from dslm.run.events import Event, as_record, parse_event

_LINE_BYTES = 4 * 2**20
_SHOWN_BYTES = 80
STACKS_LENGTH = 256 * 1024  # characters: as JSON less than half of a line
Pid = Annotated[int, Ge(0), Lt(2**31)]


class Phase(StrEnum):
    """What a rank is doing; a script of the user's own says nothing."""

    JOINING = "joining"
    DATA = "data"
    MODEL = "model"
    PARTITIONING = "partitioning"
    FIRST_STEP = "first step"
    TRAINING = "training"
    EVALUATING = "evaluating"
    SAVING = "saving"
    EXPORTING = "exporting"


@dataclass(frozen=True, kw_only=True, slots=True)
class Hello(Strict):
    """A rank has come; what is counted after `kills_before` happened to this attempt."""

    name: ClassVar[str] = "hello"
    rank: Annotated[int, Ge(0), Lt(2**24)]
    pid: Annotated[int, Ge(2), Lt(2**31)]
    start_time: Count
    parent_pid: Pid
    parent_start_time: Count
    kills_before: Count | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Beat(Strict):
    """A rank lives, how far it is, and how long it has computed: seconds of all its threads."""

    name: ClassVar[str] = "beat"
    progress: Count
    phase: Annotated[str, MaxLen(200)]
    step: Count
    work_seconds: Seconds | None = None
    cpu_seconds: Seconds = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class End(Strict):
    """A rank's last word; `report` None where it failed without an exception: `sys.exit(3)`."""

    name: ClassVar[str] = "end"
    exit_code: Annotated[int, Ge(0), Lt(256)]
    ended: Time
    report: ErrorReport | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Stacks(Strict):
    """The stacks of all threads of a rank."""

    name: ClassVar[str] = "stacks"
    text: Annotated[str, MaxLen(STACKS_LENGTH)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Orphaned(Strict):
    """The launcher that started a rank is gone."""

    name: ClassVar[str] = "orphaned"


@dataclass(frozen=True, kw_only=True, slots=True)
class StopWanted(Strict):
    """The batch system of a rank's host takes it back."""

    name: ClassVar[str] = "stop-wanted"


@dataclass(frozen=True, kw_only=True, slots=True)
class Recorded:
    """An event of a rank that can't write into the run directory."""

    name: ClassVar[str] = "event"
    event: Event


@dataclass(frozen=True, kw_only=True, slots=True)
class Stop(Strict):
    """Save and stop after the current step."""

    name: ClassVar[str] = "stop"


@dataclass(frozen=True, kw_only=True, slots=True)
class ShowStacks(Strict):
    """Send the stacks of all threads."""

    name: ClassVar[str] = "show-stacks"


@dataclass(frozen=True, kw_only=True, slots=True)
class EndNow(Strict):
    """End at once, with all child processes."""

    name: ClassVar[str] = "end-now"


Report = Hello | Beat | End | Stacks | Orphaned | StopWanted | Recorded
"""What a rank sends."""
Order = Stop | ShowStacks | EndNow
"""What the supervisor sends."""
W = TypeVar("W", bound=Report | Order)
REPORTS: Mapping[str, type[Report]] = {
    word.name: word for word in (Hello, Beat, End, Stacks, Orphaned, StopWanted, Recorded)
}
ORDERS: Mapping[str, type[Order]] = {word.name: word for word in (Stop, ShowStacks, EndNow)}


def encode_word(word: Report | Order) -> bytes:
    """Return a word as its line.

    Raises:
        ValueError: it holds a number that JSON doesn't have.
    """
    fields: dict[str, Json]
    fields = as_record(word.event) if isinstance(word, Recorded) else encode(word)
    # half of a surrogate pair can't be sent; Python's texts can hold one
    return f"{word.name} {line_of(fields)}\n".encode("utf-8", errors="replace")


def decode_word(line: bytes, words: Mapping[str, type[W]]) -> W:
    """Return the word of a line.

    Args:
        line: without its line break.
        words: those that are expected, by name.

    Raises:
        Malformed: it is none of them, whatever it is.
    """
    name, _, fields = line.partition(b" ")
    kind = words.get(name.decode("ascii", errors="replace"))
    if kind is None:
        raise Malformed(f"no word: {line[:_SHOWN_BYTES]!r}")
    if len(line) > _LINE_BYTES:
        raise Malformed(f"`{kind.name}` in {len(line)} bytes")
    if issubclass(kind, Recorded):
        return kind(event=_writable_event(fields))
    return decode_value(kind, fields)


class WordReader(Generic[W]):
    """Makes words of bytes as they arrive; holds no more than one line of them."""

    def __init__(self, words: Mapping[str, type[W]]) -> None:
        self._words = words
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[W]:
        """Yield the words that are whole now.

        Raises:
            Malformed: after the words before it, where something else came.
        """
        *lines, rest = data.split(b"\n")
        for line in lines:
            whole, self._rest = bytes(self._rest) + line, bytearray()
            yield decode_word(whole, self._words)
        self._rest += rest
        if len(self._rest) > _LINE_BYTES:
            raise Malformed("a line without an end")


def _writable_event(fields: bytes) -> Event:
    event = parse_event(fields)
    try:
        line_of(as_record(event))
    except ValueError as failure:  # 1e999, in an event that this version doesn't know
        raise Malformed(f"`{Recorded.name}`: {failure}") from None
    return event
