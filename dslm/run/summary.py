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

_RESTART = ("cause", "step", "lost_steps", "lost_seconds", "world_size", "hosts", "left_out")


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
    restarts: list[dict[str, Any]]  # attempt, cause, lost steps and seconds of each
    goodput: float | None  # share of the time that went into steps that were kept

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
        if event["event"] in ("start", "restart") or event.get("again"):
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
        restarts=[
            {name: event.get(name) for name in ("attempt", *_RESTART)}
            for event in events
            if event["event"] == "restart"
        ],
        goodput=_goodput(events),
    )


def _goodput(events: list[dict[str, Any]]) -> float | None:
    """Useful time over wall time: of each step only the attempt counts that made it last."""
    useful: dict[int, float] = {}
    before: dict[int, int] = {}  # the last step event of an attempt
    for event in events:
        if event["event"] == "resume":
            before[event["attempt"]] = event["step"]
        if event["event"] != "step":
            continue
        first = before.get(event["attempt"], 0) + 1
        useful |= dict.fromkeys(range(first, event["step"] + 1), event["step_seconds"])
        before[event["attempt"]] = event["step"]
    wall = events[-1]["time"] - events[0]["time"] if events else 0.0
    return round(min(1.0, sum(useful.values()) / wall), 4) if useful and wall > 0 else None
