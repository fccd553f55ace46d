"""A run in a few numbers, read from its manifest and events.

Reads the run directory only: it can't know whether processes live, so a run without an end is
`unfinished`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dslm.errors import OptionError, Where
from dslm.run.directory import RunDirectory
from dslm.run.events import read_events


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSummary:
    """What happened in a run so far; seconds and steps, None where it is not known."""

    path: str
    status: str  # done | stopped | failed | unfinished
    attempts: int
    step: int
    steps: int | None
    loss: float | None
    eval_loss: float | None
    started: float | None
    seconds: float | None
    error: str | None
    failure: dict[str, Any] | None  # the last error event, when the run failed

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def open_run(path: Path) -> RunDirectory:
    """The run in a folder.

    Raises:
        OptionError: the folder holds no run.
    """
    run = RunDirectory(path.absolute())
    if not run.manifest.is_file():
        raise OptionError(
            "this folder holds no run (it has no manifest.json)",
            where=Where(file=path),
            hint="`dslm runs list` shows the runs below ./runs",
        )
    return run


def find_runs(folder: Path) -> list[RunDirectory]:
    """All runs directly below a folder, oldest first."""
    if not folder.is_dir():
        return []
    found = [manifest.parent for manifest in folder.glob("*/manifest.json")]
    return [
        RunDirectory(path.absolute())
        for path in sorted(found, key=lambda path: (path / "manifest.json").stat().st_ctime)
    ]


def summarize(run: RunDirectory) -> RunSummary:
    """The run in a few numbers."""
    events, _ = read_events(run.events)
    last: dict[str, dict[str, Any]] = {event["event"]: event for event in events}
    status = "unfinished"
    for event in events:
        if event["event"] == "start":
            status = "unfinished"
        elif event["event"] == "end":
            status = str(event.get("status", "done"))
        elif event["event"] == "error":
            status = "failed"
    start, step, end = last.get("start", {}), last.get("step", {}), last.get("end", {})
    return RunSummary(
        path=str(run.path),
        status=status,
        attempts=max((event.get("attempt", 1) for event in events), default=0),
        step=max(int(step.get("step", 0)), int(end.get("step", 0))),
        steps=start.get("steps"),
        loss=step.get("loss"),
        eval_loss=last.get("eval", {}).get("loss"),
        started=events[0]["time"] if events else None,
        seconds=events[-1]["time"] - events[0]["time"] if events else None,
        error=last["error"].get("message") if status == "failed" else None,
        failure=last["error"] if status == "failed" else None,
    )
