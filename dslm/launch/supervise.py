"""The supervisor: starts one attempt, follows every rank, ends everything that belongs to it.

What comes in is a request and a run directory; what goes out is an outcome that tells the truth:
it is read from the ranks' own status files and processes, never from the launcher's exit code
(DeepSpeed's launcher exits 0 when it was killed). Torch-free. Source of the process handling:
prctl(2), PR_SET_CHILD_SUBREAPER: whatever the launcher leaves behind becomes a child of ours.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from types import FrameType
from typing import Any

import psutil

from dslm import environment
from dslm.launch.spec import LaunchRequest
from dslm.run.directory import RunDirectory
from dslm.run.events import EventName, append_event, read_events

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_POLL_SECONDS = 0.2
_TERM_SECONDS = 3.0  # between SIGTERM and SIGKILL
_SETTLE_SECONDS = 3.0  # after a rank has failed, the others may still write why


class Status(StrEnum):
    """How an attempt ended."""

    DONE = "done"
    STOPPED = "stopped"  # asked to stop, and did so in order
    KILLED = "killed"  # asked to stop, and had to be ended
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How an attempt ended; `reason` says in words what the supervisor saw, when it failed."""

    status: Status
    attempt: int
    reason: str = ""
    failed_rank: int | None = None
    host: str | None = None


@dataclass(slots=True)
class _Stop:
    """Signals that this process got; the first asks, the second insists."""

    asked: float | None = None
    insisted: bool = False

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        if self.asked is None:
            self.asked = time.monotonic()
        else:
            self.insisted = True


def supervise(
    request: LaunchRequest,
    run: RunDirectory,
    *,
    attempt: int,
    world_size: int,
    grace: float,
    on_event: Callable[[dict[str, Any]], None] = lambda event: None,
) -> Outcome:
    """Run one attempt to its end; when this returns, no process of it is alive.

    Args:
        request: what to start.
        run: where its logs, status files and events are.
        attempt: its number.
        world_size: how many ranks must report.
        grace: seconds between the wish to stop and the end of all processes.
        on_event: told every event of the run as it appears.
    """
    logs = run.logs(attempt)
    logs.mkdir(parents=True, exist_ok=True)
    run.stop_request.unlink(missing_ok=True)
    _become_subreaper()
    with _signals() as stop, (logs / "launcher.log").open("wb") as log:
        launcher = subprocess.Popen(
            list(request.argv),
            env=_environment(request),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        watch = _Watch(run, attempt, world_size, launcher, stop, grace, on_event)
        try:
            return watch.until_the_end()
        finally:
            end_processes(_descendants())
            run.stop_request.unlink(missing_ok=True)
            watch.tell()


def end_processes(processes: list[psutil.Process]) -> None:
    """End processes: SIGTERM, three seconds, SIGKILL; a stopped one is woken so that it can end."""
    for process in processes:
        for number in (signal.SIGTERM, signal.SIGCONT):
            _send(process, number)
    _, alive = psutil.wait_procs(processes, timeout=_TERM_SECONDS)
    for process in alive:
        _send(process, signal.SIGKILL)
    psutil.wait_procs(alive, timeout=_TERM_SECONDS)
    # what was started while the others ended
    for process in _descendants():
        _send(process, signal.SIGKILL)
    _reap()


class _Watch:
    """The loop of one attempt."""

    def __init__(
        self,
        run: RunDirectory,
        attempt: int,
        world_size: int,
        launcher: subprocess.Popen[bytes],
        stop: _Stop,
        grace: float,
        on_event: Callable[[dict[str, Any]], None],
    ) -> None:
        self._run = run
        self._attempt = attempt
        self._world_size = world_size
        self._launcher = launcher
        self._stop = stop
        self._grace = grace
        self._on_event = on_event
        self._offset = run.events.stat().st_size if run.events.exists() else 0
        self._told_stop = False
        self._started = False

    def until_the_end(self) -> Outcome:
        while True:
            self.tell()
            # the launcher first: what it left in the status files is then final
            ended = self._launcher.poll() is not None
            ranks = read_rank_statuses(self._run, self._attempt)
            failure = _failed(ranks)
            if failure is not None:
                self._settle()
                return self._failed(*failure)
            if len(ranks) == self._world_size and all(r.get("exit_code") == 0 for r in ranks):
                self._settle()
                stopped = self._run.stop_request.exists() or self._stop.asked is not None
                return self._outcome(Status.STOPPED if stopped else Status.DONE)
            if ended:
                if self._stop.asked is not None:
                    return self._outcome(Status.KILLED)
                return self._failed(None, _launcher_words(self._launcher.returncode))
            if self._must_kill():
                return self._outcome(Status.KILLED)
            time.sleep(_POLL_SECONDS)

    def tell(self) -> None:
        """Pass on the events that were added to the run."""
        events, self._offset = read_events(self._run.events, self._offset)
        for event in events:
            self._started = self._started or event["event"] == "start"
            self._on_event(event)

    def _must_kill(self) -> bool:
        """Pass the wish to stop on to the ranks; True when they were given enough time."""
        if self._stop.asked is None:
            return False
        if not self._told_stop:
            self._told_stop = True
            self._run.stop_request.touch()
            append_event(self._run.events, EventName.STOP, self._attempt, grace=self._grace)
        late = time.monotonic() - self._stop.asked > self._grace
        # before training has started there is nothing to save
        return late or self._stop.insisted or not self._started

    def _settle(self) -> None:
        """Give the other processes a moment to end by themselves."""
        deadline = time.monotonic() + _SETTLE_SECONDS
        while self._launcher.poll() is None and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)

    def _outcome(self, status: Status) -> Outcome:
        return Outcome(status=status, attempt=self._attempt)

    def _failed(self, rank: int | None, reason: str) -> Outcome:
        if self._stop.asked is not None:
            return self._outcome(Status.KILLED)
        return Outcome(status=Status.FAILED, attempt=self._attempt, reason=reason, failed_rank=rank)


def read_rank_statuses(run: RunDirectory, attempt: int) -> list[dict[str, Any]]:
    """What each rank wrote about itself: rank, pid, start time, host and, at its end, exit code."""
    found = []
    for path in sorted(run.logs(attempt).glob("rank-*.json")):
        try:
            found.append(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            continue  # being replaced: it is there in the next round
    return found


def process_start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since boot: with its pid it names it for good.

    Source: proc(5), field 22 of /proc/PID/stat.
    """
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as stat:  # noqa: PTH123 - not a real file
            fields = stat.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])


def _failed(ranks: list[dict[str, Any]]) -> tuple[int, str] | None:
    """The rank that failed first, and how; None while all is well."""
    bad: list[tuple[float, int, str]] = []
    for status in ranks:
        code = status.get("exit_code")
        if code == 0:
            continue
        if code is not None:
            words = status.get("error") or f"it ended with exit code {code}"
            bad.append((status.get("ended", 0.0), status["rank"], words))
        elif process_start_time(status["pid"]) != status["start_time"]:
            bad.append((0.0, status["rank"], "its process was killed from outside"))
    if not bad:
        return None
    _, rank, words = min(bad)
    return rank, words


def _launcher_words(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return f"DeepSpeed's launcher was killed by {name}"
    return f"DeepSpeed's launcher ended with exit code {code} before the ranks were done"


def _environment(request: LaunchRequest) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if name not in request.removed}
    pid = os.getpid()
    return (
        own
        | dict(request.environment)
        | {environment.SUPERVISOR: f"{pid}:{process_start_time(pid)}"}
    )


def _become_subreaper() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _descendants() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def _send(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)
    except psutil.Error:
        return  # it has ended already


def _reap() -> None:
    """Take the exit status of orphans that became ours."""
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return


@contextmanager
def _signals() -> Iterator[_Stop]:
    """SIGINT, SIGTERM and SIGHUP become a wish to stop; what was set before comes back after."""
    stop = _Stop()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
