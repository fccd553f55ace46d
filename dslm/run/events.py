"""Events: what happened in a run, appended to events.jsonl one JSON object a line.

Every event has `time` (Unix seconds), `event` and `attempt`; the rest depends on the event. Readers
ignore a last line that is not finished yet.
"""

from __future__ import annotations

import json
import time
from enum import StrEnum
from pathlib import Path
from typing import Any

from dslm.files import append_line


class EventName(StrEnum):
    """The names of events; the first six are what every run has."""

    START = "start"
    STEP = "step"
    EVAL = "eval"
    CHECKPOINT = "checkpoint"
    END = "end"
    ERROR = "error"
    PHASE = "phase"  # what is going on while no steps are made: data, model, save …
    RESUME = "resume"  # training goes on from a checkpoint
    CONVERT = "convert"  # a checkpoint was converted for another number of ranks
    STOP = "stop"  # somebody asked the run to stop
    ACCURACY = "accuracy"  # predicted beside measured
    STALL = "stall"  # no rank makes progress; which one differs
    SLOW = "slow"  # a rank computes longer than the others
    RESTART = "restart"  # another attempt follows a failed one


def append_event(path: Path, event: EventName, attempt: int, /, **fields: Any) -> None:
    """Append one event; a single write, so that several processes can append to one file."""
    append_record(path, event_record(event, attempt, **fields))


def event_record(event: EventName, attempt: int, /, **fields: Any) -> dict[str, Any]:
    """An event that happens now."""
    return {"time": round(time.time(), 3), "event": event.value, "attempt": attempt, **fields}


def append_record(path: Path, record: dict[str, Any]) -> None:
    """Append an event that was made elsewhere."""
    append_line(path, json.dumps(record, ensure_ascii=False, allow_nan=False, default=str))


def read_events(path: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Events from a byte offset on, and the offset after the last whole line."""
    if not path.exists():
        return [], offset
    with path.open("rb") as stream:
        stream.seek(offset)
        data = stream.read()
    whole = data[: data.rfind(b"\n") + 1]
    events = [json.loads(line) for line in whole.splitlines() if line.strip()]
    return events, offset + len(whole)
