"""The endings of a rank, as values: an exception with its chain, or the loss of the rank.

Made where the fact is known (in the rank, in the supervisor), carried as they are, and put into
words by whoever shows them. Knows no process.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from annotated_types import MaxLen

from dslm.codec import Strict
from dslm.errors import DslmError

_MESSAGE = 16 * 1024  # characters; the longest that a library is known to say has a few thousand
_FRAMES = 16 * 1024
_CHAIN = 12  # exceptions


class Kind(StrEnum):
    """The kind of the first failure, as the supervisor saw it."""

    RANK = "rank"  # it said so itself
    PROCESS = "process"  # a rank was lost: its process
    HOST = "host"  # a rank was lost: its host
    WORD = "word"  # a rank was lost: it said what is no word
    CONNECTION = "connection"  # ssh to a host ended
    LAUNCHER = "launcher"
    JOIN = "join"  # a rank never came
    STALL = "stall"


class Loss(StrEnum):
    """The reason for the loss of a rank that has not reported its end."""

    PROCESS = "process"  # its connection ended
    HOST = "host"  # the kernel of its host no longer answers
    WORD = "word"  # what it said is no word of the control channel

    @property
    def kind(self) -> Kind:
        """What kind of failure that is."""
        return Kind(self.value)


@dataclass(frozen=True, kw_only=True, slots=True)
class Raised(Strict):
    """One exception: its type as Python prints it, what it says, and where it was raised."""

    type: Annotated[str, MaxLen(1000)]
    message: Annotated[str, MaxLen(_MESSAGE)] = ""
    frames: Annotated[str, MaxLen(_FRAMES)] = ""

    @property
    def line(self) -> str:
        """Type and message, as the last line of a traceback has them."""
        return f"{self.type}: {self.message}" if self.message else self.type


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnError(Strict):
    """The text of one of dslm's own errors, for people, with its remedy."""

    message: Annotated[str, MaxLen(_MESSAGE)]
    where: Annotated[str, MaxLen(_MESSAGE)] = ""
    hint: Annotated[str, MaxLen(_MESSAGE)] = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class ErrorReport(Strict):
    """The exception that ended a rank.

    Attributes:
        chain: what was raised first stands first, what ended the rank last.
        own: where that is one of dslm's own errors.
    """

    chain: Annotated[tuple[Raised, ...], MaxLen(_CHAIN)]
    own: OwnError | None = None

    @property
    def line(self) -> str:
        """The reason for the rank's end, in a line."""
        if self.own is not None:
            return ": ".join(part for part in (self.own.where, self.own.message) if part)
        last = self.chain[-1] if self.chain else Raised(type="")
        first = last.message.strip().splitlines()[:1]
        return Raised(type=last.type, message=first[0] if first else "").line

    @property
    def messages(self) -> str:
        """The messages of all exceptions of the chain, without their frames."""
        return "\n".join(raised.line for raised in self.chain)


def report_of(failure: BaseException) -> ErrorReport:
    """Return the report of an exception, with those that it was raised from or during."""
    chain: list[Raised] = []
    found: traceback.TracebackException | None = traceback.TracebackException.from_exception(
        failure
    )
    while found is not None and len(chain) < _CHAIN:
        chain.insert(0, _raised(found))
        hidden = None if found.__suppress_context__ else found.__context__
        found = found.__cause__ or hidden
    own = None
    if isinstance(failure, DslmError):
        own = OwnError(
            message=shortened(failure.message, _MESSAGE),
            where=shortened(str(failure.where), _MESSAGE),
            hint=shortened(failure.hint, _MESSAGE),
        )
    return ErrorReport(chain=tuple(chain), own=own)


def shortened(text: str, most: int) -> str:
    """Return a text that a file can hold, its middle left out where it is too long."""
    text = text.encode("utf-8", errors="replace").decode()
    if len(text) <= most:
        return text
    half = (most - 3) // 2
    return f"{text[:half]} … {text[-half:]}"


def _raised(found: traceback.TracebackException) -> Raised:
    # the last lines, as Python prints them: `TYPE: MESSAGE`, the place of a SyntaxError, the notes
    whole = "".join(found.format_exception_only()).strip()
    name, colon, message = whole.partition(": ")
    if not colon or any(c.isspace() for c in name):
        name, message = whole.splitlines()[0] if whole else "", whole
    return Raised(
        type=shortened(name, 1000),
        message=shortened(message, _MESSAGE),
        frames=shortened("".join(found.stack.format()), _FRAMES),
    )
