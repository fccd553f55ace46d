"""Events: what happened in a run, appended to events.jsonl one JSON object a line.

Every event is a type; on disk each has `time` (Unix seconds), `event` (its name) and `attempt`. An
event of a name that is not known here is kept as `Other`. Readers pass over lines that can't be
read, and say which, and leave a last line alone that is not finished yet.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, TypedDict

from dslm.codec import (
    Count,
    Json,
    Malformed,
    Seconds,
    Strict,
    Time,
    decode,
    encode,
    line_of,
    read_object,
)
from dslm.files import append_line

_FLAT = frozenset({"time", "event", "attempt", "step", "loss", "seconds"})  # of an eval event


@dataclass(frozen=True, kw_only=True, slots=True)
class Event(Strict):
    """What happened, when, in which attempt."""

    name: ClassVar[str] = ""
    time: Time  # Unix seconds
    attempt: Count


@dataclass(frozen=True, kw_only=True, slots=True)
class DataPart(Strict):
    """How much there is of one part of the data."""

    documents: Count | None = None
    duplicates: Count | None = None
    samples: Count | None = None
    tokens: Count | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSummary(Strict):
    """What was prepared from the data."""

    train: DataPart | None = None
    eval: DataPart | None = None
    labels: tuple[str, ...] = ()
    bad_records: Count = 0
    examples: tuple[str, ...] = ()  # of bad records
    formats: Mapping[str, Count] = field(default_factory=dict)  # records of each recognised shape
    with_tools: Count = 0
    cut: Count = 0  # documents that lost their end


@dataclass(frozen=True, kw_only=True, slots=True)
class Start(Event):
    """Training starts: what is trained, on what."""

    name: ClassVar[str] = "start"
    steps: Count | None = None
    world_size: Count = 1
    precision: str = ""
    parameters: Count | None = None
    trained_parameters: Count | None = None
    device: str = ""
    tokens_per_sample: Count = 0
    samples: Count | None = None
    data: DataSummary | None = None
    flops_per_token: float | None = None
    peak_flops: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Step(Event):
    """Steps were made, up to this one; rates are means since the last step event."""

    name: ClassVar[str] = "step"
    step: Count
    loss: float | None = None  # None: not finite
    learning_rate: float | None = None
    grad_norm: float | None = None
    step_seconds: Seconds | None = None
    samples_per_second: float | None = None
    tokens_per_second: float | None = None
    tokens: Count | None = None
    memory_peak_bytes: Count | None = None
    epoch: float | None = None
    forward_seconds: Seconds | None = None
    backward_seconds: Seconds | None = None
    communication_seconds: Seconds | None = None
    update_seconds: Seconds | None = None
    metrics: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Eval(Event):
    """The model was evaluated; `metrics` holds what there is beside the loss."""

    name: ClassVar[str] = "eval"
    step: Count
    loss: float | None = None
    seconds: Seconds | None = None
    metrics: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Answered(Event):
    """Prompts were answered and rewarded; one of the answers, shortened."""

    name: ClassVar[str] = "answered"
    step: Count
    prompt: str = ""
    answer: str = ""
    reward: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointSaved(Event):
    """A checkpoint is complete; `path` is relative to the run directory."""

    name: ClassVar[str] = "checkpoint"
    step: Count
    path: str = ""
    seconds: Seconds | None = None  # that training stood still
    complete_seconds: Seconds | None = None  # until it was complete, mostly beside training


@dataclass(frozen=True, kw_only=True, slots=True)
class End(Event):
    """The attempt ended in order: done, stopped, or killed because somebody insisted."""

    name: ClassVar[str] = "end"
    status: str = "done"
    step: Count = 0
    loss: float | None = None
    seconds: Seconds | None = None
    model: str | None = None
    sample: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgedWitness(Strict):
    """What a rank, or the launcher, was taken for: by which rule, and with which known cause."""

    rank: Count | None = None  # None: the launcher
    host: str | None = None
    rule: str
    failure: str | None = None
    source: str = ""  # where that was found


@dataclass(frozen=True, kw_only=True, slots=True)
class Error(Event):
    """The attempt failed: who failed first, why, and what would help (`dslm.diagnose`)."""

    name: ClassVar[str] = "error"
    message: str = ""
    id: str | None = None
    stage: str | None = None
    cause: str = ""
    said: str = ""
    remedy: str = ""
    ways: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()
    rank: Count | None = None
    host: str | None = None
    step: Count = 0
    log: str = ""
    traceback: str = ""
    followers: tuple[int, ...] = ()
    retry: bool = False
    known: bool = False
    rule: str = ""  # of dslm.diagnose.blame
    source: str = ""  # where the cause was found
    judged: tuple[JudgedWitness, ...] = ()  # the one to blame first
    noticed: Time | None = None
    again: bool = False  # another attempt follows


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase(Event):
    """The current phase while no steps are made: data, model, save …"""

    name: ClassVar[str] = "phase"
    phase: str
    detail: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Resume(Event):
    """Training resumes from a checkpoint."""

    name: ClassVar[str] = "resume"
    step: Count


@dataclass(frozen=True, kw_only=True, slots=True)
class Convert(Event):
    """A checkpoint was converted for another number of ranks."""

    name: ClassVar[str] = "convert"
    step: Count
    seconds: Seconds | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Stop(Event):
    """Somebody asked the run to stop."""

    name: ClassVar[str] = "stop"
    grace: Seconds | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Peak(Strict):
    """Bytes at the peak of one phase of a step."""

    predicted: float
    measured: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Accuracy(Event):
    """Predicted beside measured; differences are relative to what was measured."""

    name: ClassVar[str] = "accuracy"
    predicted_bytes: int | None = None
    measured_bytes: Count | None = None
    process_bytes: int | None = None
    difference: float | None = None
    phases: Mapping[str, Peak] = field(default_factory=dict)
    predicted_step_seconds: Seconds | None = None
    measured_step_seconds: Seconds | None = None
    step_difference: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate(Event):
    """The time of the whole run, corrected by the steps that were made; once, early in it."""

    name: ClassVar[str] = "estimate"
    step: Count
    steps: Count
    seconds: Seconds  # of all steps, at the pace so far
    predicted_seconds: Seconds | None = None
    cost: float | None = None  # at that pace; None: no price was given


@dataclass(frozen=True, kw_only=True, slots=True)
class Stall(Event):
    """No rank makes progress; which one differs, if any does."""

    name: ClassVar[str] = "stall"
    rank: Count | None = None
    host: str | None = None
    seconds: Seconds = 0.0
    message: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Slow(Event):
    """A rank computes longer than the others."""

    name: ClassVar[str] = "slow"
    rank: Count
    host: str
    seconds: Seconds
    ratio: float
    work_seconds: Mapping[str, float | None] = field(default_factory=dict)  # by rank


@dataclass(frozen=True, kw_only=True, slots=True)
class Trouble(Event):
    """A guard found something in the numbers of the training (`dslm.worker.guards`)."""

    name: ClassVar[str] = "trouble"
    kind: str
    message: str = ""
    step: Count = 0  # at which it was found
    since: Count = 0  # the first step that it is true of
    action: str = "warn"  # stop, warn or rollback
    good: Count | None = None  # the step of the last good checkpoint
    skipped: tuple[int, ...] = ()  # batches that are left out from now on


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifiedDifference(Strict):
    """One thing that a layout computes otherwise than one process does."""

    kind: str
    name: str = ""  # of the parameter or sample
    step: Count = 0
    deviation: float = 0.0  # relative
    allowed: float = 0.0
    ratio: float | None = None  # what it is, times what it should be


@dataclass(frozen=True, kw_only=True, slots=True)
class Verified(Event):
    """A layout was compared with one process in fp32 (`dslm verify`)."""

    name: ClassVar[str] = "verified"
    same: bool
    parameters: Count = 0  # that were compared
    samples: Count = 0
    steps: Count = 0
    ranks: Count = 1
    stage: Count = 0
    tensor: Count = 1
    sequence: Count = 1
    expert: Count = 1
    precision: str = ""
    noise: float = 0.0  # the largest relative deviation of the number format itself
    losses: tuple[float, ...] = ()  # of the layout, step by step
    allowed_loss: float = 0.0  # the relative deviation of one that is no difference
    not_compared: tuple[str, ...] = ()  # what no reference is known of
    seconds: Seconds = 0.0
    versions: Mapping[str, str | None] = field(default_factory=dict)
    found: Count = 0  # differences, of which some are kept
    differences: tuple[VerifiedDifference, ...] = ()
    cause: str = ""  # what was switched when it no longer differed
    setting: str = ""  # which avoids it
    tried: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Restart(Event):
    """Another attempt follows a failed one: from where, with whom, and what was lost."""

    name: ClassVar[str] = "restart"
    cause: str = ""
    step: Count = 0
    lost_steps: Count = 0
    lost_seconds: Seconds = 0.0
    hosts: tuple[str, ...] = ()
    world_size: Count = 1
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class TakenOver(Event):
    """The run was taken over from an owner that had died."""

    name: ClassVar[str] = "taken-over"
    owner: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Other(Event):
    """An event that this version doesn't know; `event` is its name."""

    event: str
    content: Mapping[str, Json]


KINDS: Mapping[str, type[Event]] = {
    kind.name: kind
    for kind in (
        Start, Step, Eval, CheckpointSaved, End, Error, Phase, Resume, Convert, Stop, Accuracy,
        Estimate, Stall, Slow, Trouble, Verified, Restart, TakenOver, Answered,
    )
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Unreadable:
    """A line of events.jsonl that is no event, and why."""

    line: int  # from 1, in what was read
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Tail:
    """Events from a byte offset on, what could not be read there, and where the next begins."""

    events: tuple[Event, ...] = ()
    unreadable: tuple[Unreadable, ...] = ()
    offset: int = 0


class Stamp(TypedDict):
    """What every event begins with."""

    time: float
    attempt: int


def now() -> float:
    """Unix seconds, as events have them."""
    return round(time.time(), 3)


def stamp(attempt: int) -> Stamp:
    """Return the beginning of an event that happens now: `Step(**stamp(attempt), step=7)`."""
    return Stamp(time=now(), attempt=attempt)


def as_record(event: Event) -> dict[str, Json]:
    """Return an event as the object of its line."""
    if isinstance(event, Other):
        return dict(event.content)
    known = encode(event)
    return {"time": known.pop("time"), "event": event.name, **known}


def write_event(path: Path, event: Event) -> None:
    """Append one event; a single write, so that several processes can append to one file."""
    append_line(path, line_of(as_record(event)))


def end_torn_line(path: Path) -> None:
    """End a last line that was never finished, so that the next event has one of its own."""
    with path.open("r+b") as stream:
        size = stream.seek(0, os.SEEK_END)
        if size == 0:
            return
        stream.seek(size - 1)
        if stream.read(1) != b"\n":
            stream.write(b"\n")


def parse_event(line: str | bytes) -> Event:
    """Parse the event of a line.

    Raises:
        Malformed: it is not one.
    """
    found = read_object(line)
    name = found.get("event")
    if not isinstance(name, str):
        raise Malformed("`event`: no name")
    kind = KINDS.get(name)
    if kind is None:
        known = decode(Event, line)
        return Other(time=known.time, attempt=known.attempt, event=name, content=found)
    if kind is Eval and "metrics" not in found:  # before format 1 they stood beside the loss
        metrics = {key: found.pop(key) for key in [*found] if key not in _FLAT}
        line = line_of({**found, "metrics": metrics})
    return decode(kind, line)


def tail_events(path: Path, offset: int = 0) -> Tail:
    """Events from a byte offset on, up to the last whole line."""
    try:
        with path.open("rb") as stream:
            stream.seek(offset)
            data = stream.read()
    except FileNotFoundError:
        return Tail(offset=offset)
    except OSError as failure:  # a folder, somebody else's, a broken disk
        why = failure.strerror or type(failure).__name__
        return Tail(unreadable=(Unreadable(line=0, why=why),), offset=offset)
    whole = data[: data.rfind(b"\n") + 1]
    events, unreadable = [], []
    for number, line in enumerate(whole.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            events.append(parse_event(line))
        except Malformed as failure:
            unreadable.append(Unreadable(line=number, why=str(failure)))
    return Tail(events=tuple(events), unreadable=tuple(unreadable), offset=offset + len(whole))
