"""Every event comes back from disk as it was written; what is no event is named, not fatal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dslm.codec import Malformed
from dslm.run import events
from dslm.run.events import KINDS, as_record, parse_event, tail_events, write_event

FROZEN = Path(__file__).parents[1] / "data" / "run-0.1"


def test_every_event_of_version_0_1_is_read_and_comes_back_as_it_was(tmp_path: Path) -> None:
    seen = set()
    for name in ("done", "stopped"):
        old = tail_events(FROZEN / name / "events.jsonl")
        assert not old.unreadable
        for event in old.events:
            write_event(tmp_path / name, event)
            seen.add(type(event).name)
        assert tail_events(tmp_path / name).events == old.events
    assert len(seen) >= 11


def test_metrics_of_version_0_1_stood_beside_the_loss() -> None:
    line = (
        '{"time": 1.0, "event": "eval", "attempt": 1, "step": 4, "loss": 2.5, "hit_rate@10": 0.5}'
    )
    assert parse_event(line) == events.Eval(
        time=1.0, attempt=1, step=4, loss=2.5, metrics={"hit_rate@10": 0.5}
    )


def test_an_unknown_event_is_kept_as_it_is() -> None:
    line = {"time": 1.5, "event": "eclipse", "attempt": 2, "moons": [1, {"name": "io"}]}
    event = parse_event(json.dumps(line))
    assert isinstance(event, events.Other)
    assert event.event == "eclipse"
    assert as_record(event) == line


def test_every_kind_of_event_has_a_name_of_its_own() -> None:
    kinds = {
        kind
        for kind in vars(events).values()
        if isinstance(kind, type) and issubclass(kind, events.Event)
    } - {events.Event, events.Other}
    assert set(KINDS.values()) == kinds
    assert len(KINDS) == len(kinds) >= 14


NO_EVENTS = {
    "an empty object": b"{}",
    "a number": b"5",
    "null": b"null",
    "text": b'"step"',
    "a list": b"[1, 2]",
    "NUL bytes": b"\0" * 40,
    "half a line": b'{"time": 1.0, "event": "st',
    "two lines in one": b'{"time": 1.0, "event": "st{"time": 1.0, "event": "stop", "attempt": 1}',
    "no time": b'{"event": "step", "attempt": 1, "step": 3}',
    "a time that is text": b'{"time": "now", "event": "stop", "attempt": 1}',
    "a time beyond any calendar": b'{"time": 1e300, "event": "stop", "attempt": 1}',
    "not a number": b'{"time": NaN, "event": "stop", "attempt": 1}',
    "no name": b'{"time": 1.0, "attempt": 1}',
    "a name that is none": b'{"time": 1.0, "attempt": 1, "event": 7}',
    "no attempt": b'{"time": 1.0, "event": "stop"}',
    "a step that is true": b'{"time": 1.0, "event": "resume", "attempt": 1, "step": true}',
    "a step of 5,000 digits": b'{"time": 1.0, "event": "resume", "attempt": 1, "step": '
    + b"9" * 5000
    + b"}",
    "20,000 lists": b"[" * 20_000,
    "no UTF-8": b'{"time": 1.0, "event": "\xff", "attempt": 1}',
    "half a surrogate": b'{"time": 1.0, "event": "\\ud800", "attempt": 1}',
}


@pytest.mark.parametrize("line", NO_EVENTS.values(), ids=NO_EVENTS.keys())
def test_what_is_no_event_is_malformed_and_the_lines_around_it_are_read(
    line: bytes, tmp_path: Path
) -> None:
    with pytest.raises(Malformed):
        parse_event(line)
    file = tmp_path / "events.jsonl"
    write_event(file, events.Resume(time=1.0, attempt=1, step=2))
    with file.open("ab") as stream:
        stream.write(line + b"\n")
    write_event(file, events.Stop(time=2.0, attempt=1))
    found = tail_events(file)
    assert [type(event).__name__ for event in found.events] == ["Resume", "Stop"]
    assert [entry.line for entry in found.unreadable] == [2]
    assert found.unreadable[0].why
