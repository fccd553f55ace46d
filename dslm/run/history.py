"""The history of a run: its manifest and events as one value.

Reads a run directory whatever is in it: what can't be read is named in `problems`, the rest counts.
It can't know whether processes live, so a run without an end is `unfinished`. A step that was made
again after a restart counts once, as the last attempt that made it has it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from dslm.codec import Malformed, read_object
from dslm.errors import OptionError
from dslm.run.directory import RunDirectory
from dslm.run.documents import Manifest, check_format, read_document
from dslm.run.events import (
    End,
    Error,
    Eval,
    Event,
    Restart,
    Resume,
    Start,
    Step,
    TakenOver,
    Unreadable,
    tail_events,
)
from dslm.units import number_of

E = TypeVar("E", bound=Event)
S = TypeVar("S", Step, Eval)


class Status(StrEnum):
    """The status of a run."""

    DONE = "done"
    STOPPED = "stopped"
    KILLED = "killed"  # stopped, before it could save
    FAILED = "failed"
    UNFINISHED = "unfinished"


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """The history of a run so far; `problems` lists what could not be read."""

    run: RunDirectory
    manifest: Manifest | None
    events: tuple[Event, ...]
    problems: tuple[str, ...] = ()

    def all(self, kind: type[E]) -> tuple[E, ...]:
        """Return the events of a kind, in order."""
        return tuple(event for event in self.events if isinstance(event, kind))

    def last(self, kind: type[E]) -> E | None:
        """Return the last event of a kind."""
        return next((e for e in reversed(self.events) if isinstance(e, kind)), None)

    @property
    def status(self) -> Status:
        """The status, according to the last event that has one."""
        for event in reversed(self.events):
            if isinstance(event, Start | Restart) or (isinstance(event, Error) and event.again):
                return Status.UNFINISHED
            if isinstance(event, Error):
                return Status.FAILED
            if isinstance(event, End):
                known = {status.value: status for status in Status}
                return known.get(event.status, Status.UNFINISHED)
        return Status.UNFINISHED

    @property
    def steps(self) -> tuple[Step, ...]:
        """The step events that were kept, by step."""
        return _kept(self.events, Step)

    @property
    def evaluations(self) -> tuple[Eval, ...]:
        """The evaluations that were kept, by step; of two at one step the last."""
        return _kept(self.events, Eval)

    @property
    def step(self) -> int:
        """The last step that was made and kept."""
        steps, end = self.steps, self.last(End)
        return max(steps[-1].step if steps else 0, end.step if end else 0)

    @property
    def attempts(self) -> int:
        """The number of attempts."""
        recorded = len(self.manifest.attempts) if self.manifest else 0
        return max([recorded, *(event.attempt for event in self.events)])

    @property
    def restarts(self) -> tuple[Restart, ...]:
        """Attempts that followed a failed one by themselves."""
        return self.all(Restart)

    @property
    def failure(self) -> Error | None:
        """The failure of the run; None unless it failed."""
        return self.last(Error) if self.status is Status.FAILED else None

    @property
    def started(self) -> float | None:
        """Unix seconds of the first event, or of the manifest."""
        if self.events:
            return self.events[0].time
        return self.manifest.created if self.manifest else None

    @property
    def seconds(self) -> float | None:
        """Seconds of all attempts, and of the pauses before those that followed by themselves.

        The time between an attempt that had ended and the one that somebody resumed the run with
        is left out.
        """
        if not self.events:
            return None
        by_itself = {restart.attempt for restart in self.restarts}
        total, before = 0.0, self.events[0]
        for event in self.events[1:]:
            resumed = event.attempt > before.attempt and event.attempt not in by_itself
            idle = isinstance(event, TakenOver) or (resumed and not isinstance(before, TakenOver))
            if not idle:
                total += max(0.0, event.time - before.time)
            before = event
        return total

    @property
    def goodput(self) -> float | None:
        """Share of the time that went into steps that were kept."""
        useful: dict[int, float] = {}
        before: dict[int, int] = {}  # the last step event of an attempt
        for event in self.events:
            if isinstance(event, Resume):
                before[event.attempt] = event.step
            if isinstance(event, Start):
                begun = before.setdefault(event.attempt, 0)
                useful = {step: seconds for step, seconds in useful.items() if step <= begun}
            if not isinstance(event, Step) or event.step_seconds is None:
                continue
            first = max(before.get(event.attempt, 0), event.step - _MOST_STEPS) + 1
            useful |= dict.fromkeys(range(first, event.step + 1), event.step_seconds)
            before[event.attempt] = event.step
        wall = self.seconds
        return round(min(1.0, sum(useful.values()) / wall), 4) if useful and wall else None

    def until(self, step: int) -> History:
        """Return the same run as it was at a step."""
        events = tuple(e for e in self.events if getattr(e, "step", 0) <= step)
        return History(run=self.run, manifest=self.manifest, events=events, problems=self.problems)


_MOST_STEPS = 100_000  # between two step events; a line that says more is not believed


def read_history(run: RunDirectory) -> History:
    """Read the history of a run, as far as its files can be read."""
    problems = []
    manifest = None
    try:
        manifest = read_document(Manifest, run.manifest)
    except OptionError as failure:
        problems.append(f"{run.manifest.name}: {failure.message}")
    found = tail_events(run.events)
    if found.unreadable:
        problems.append(f"{run.events.name}: {_counted(found.unreadable)}")
    return History(run=run, manifest=manifest, events=found.events, problems=tuple(problems))


def check_readable(run: RunDirectory) -> None:
    """Check that a run is not of a later format than this version reads; damage is no reason.

    Raises:
        OptionError: it is.
    """
    try:
        check_format(read_object(run.manifest.read_bytes()), run.manifest, Manifest.what)
    except (OSError, Malformed):
        return


def _counted(unreadable: tuple[Unreadable, ...]) -> str:
    """Count the lines that can't be read, and say what is wrong with the first."""
    first = unreadable[0]
    lines = f"{number_of(len(unreadable), 'line')} can't be read"
    return f"{lines}; line {first.line}: {first.why}"


def _kept(events: Iterable[Event], kind: type[S]) -> tuple[S, ...]:
    """Of each step the last event of a kind, without those that a restart lost."""
    found: dict[int, S] = {}
    resumed: dict[int, int] = {}  # the step that an attempt began from
    for event in events:
        if isinstance(event, Resume):
            resumed[event.attempt] = event.step
        if isinstance(event, Start):
            begun = resumed.get(event.attempt, 0)
            found = {step: kept for step, kept in found.items() if step <= begun}
        if isinstance(event, kind):
            found[event.step] = event
    return tuple(event for _, event in sorted(found.items()))
