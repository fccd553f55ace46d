"""The outcome of an attempt, as values and as a sentence for people.

The supervisor fills it in; the diagnosis and the restart loop decide on its fields, never on the
sentence.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from dslm.run.documents import RankStatus
from dslm.run.endings import Kind


class Status(StrEnum):
    """The status in which an attempt ended."""

    DONE = "done"
    STOPPED = "stopped"  # asked to stop, and did so in order
    KILLED = "killed"  # asked to stop, and had to be ended
    FAILED = "failed"


class Difference(StrEnum):
    """The difference of a rank from the others while none makes progress."""

    SILENT = "silent"  # it says nothing
    PLACE = "place"  # it is somewhere else in the program
    BEHIND = "behind"  # it stopped first


@dataclass(frozen=True, kw_only=True, slots=True)
class Odd:
    """The rank that differs from the others, and how."""

    rank: int
    host: str
    difference: Difference
    seconds: float = 0.0  # that it has been silent
    place: str = ""  # the innermost call of its main thread
    step: int = 0
    phase: str = ""
    state: str = ""  # of its process, where it does not answer


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """The outcome of an attempt, with the supervisor's observations if it failed.

    Attributes:
        status: how.
        attempt: which.
        kind: what failed first.
        failed_rank: which rank, where it was one.
        host: where.
        noticed: when, in Unix seconds.
        statuses: of the ranks, also where no file can be written.
        detail: further facts: a rank's last line, the malformed message.
        code: what the launcher, or ssh to a host, ended with.
        seconds: that a rank was waited for, or that no rank made progress.
        phase: what the ranks were doing then.
        odd: which of them differs then.
        stacks: where their stacks are then.
    """

    status: Status
    attempt: int
    kind: Kind | None = None
    failed_rank: int | None = None
    host: str | None = None
    noticed: float | None = None
    statuses: tuple[RankStatus, ...] = ()
    detail: str = ""
    code: int | None = None
    seconds: float = 0.0
    phase: str = ""
    odd: Odd | None = None
    stacks: str = ""

    @property
    def reason(self) -> str:
        """The supervisor's observation, in words."""
        return "" if self.kind is None else _SENTENCES[self.kind](self)


def odd_words(odd: Odd) -> str:
    """Say which rank differs, and in what."""
    how = {
        Difference.SILENT: f"it has reported nothing for {odd.seconds:.0f} s",
        Difference.PLACE: f"it is in {odd.place}",
        Difference.BEHIND: f"it stopped first, at step {odd.step} ({odd.phase})",
    }[odd.difference]
    state = f", its process is {odd.state}" if odd.state else ""
    return f"rank {odd.rank} on {odd.host} differs: {how}{state}"


def _stall(seen: Outcome) -> str:
    words = f"no rank made progress for {seen.seconds:.0f} s"
    if len(seen.statuses) == 1:
        words = f"the rank made no progress for {seen.seconds:.0f} s"
    words += f" while {seen.phase}" if seen.phase else ""
    words += f"; {odd_words(seen.odd)}" if seen.odd is not None else ""
    return f"{words}; stacks of all ranks: {seen.stacks}" if seen.stacks else words


def _launcher(seen: Outcome) -> str:
    if seen.code is None:
        return f"the launcher that started the ranks on {seen.host} was killed"
    if seen.code < 0:
        return f"DeepSpeed's launcher was killed by {signal_name(-seen.code)}"
    return f"DeepSpeed's launcher exited with code {seen.code} before the ranks were done"


_SENTENCES: Mapping[Kind, Callable[[Outcome], str]] = {
    Kind.RANK: lambda seen: seen.detail or f"it exited with code {seen.code}",
    Kind.PROCESS: lambda seen: "its process was killed from outside",
    Kind.HOST: lambda seen: f"its host {seen.host} no longer answers",
    Kind.WORD: lambda seen: f"it sent a malformed message: {seen.detail}",
    Kind.CONNECTION: lambda seen: (
        f"the connection to {seen.host} ended: ssh exited with {seen.code}"
    ),
    Kind.LAUNCHER: _launcher,
    Kind.JOIN: lambda seen: (
        f"rank {seen.failed_rank} on {seen.host} did not start within {seen.seconds:.0f} s"
    ),
    Kind.STALL: _stall,
}


def signal_name(number: int) -> str:
    """Return the name of a signal, or its number where it has none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
