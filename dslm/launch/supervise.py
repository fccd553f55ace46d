"""The supervisor: starts one attempt, follows every rank, ends everything that belongs to it.

What comes in is a request, the attempt and a run directory; what goes out is an outcome that tells
the truth: it is taken from the ranks' own words and from the end of their connections, never from
the launcher's exit code (DeepSpeed's launcher exits 0 when it was killed). Torch-free. Source of
the process handling: prctl(2), PR_SET_CHILD_SUBREAPER: whatever the launcher leaves behind on this
host becomes a child of ours; on other hosts processes are ended by pid and start time.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from types import FrameType
from typing import Any

import psutil

from dslm.files import write_json
from dslm.host.processes import send
from dslm.launch import watchdog
from dslm.launch.control import Control, Loss, RankState
from dslm.launch.remote_processes import RemoteProcesses
from dslm.launch.spec import LaunchRequest
from dslm.run import timings
from dslm.run.attempt import Attempt
from dslm.run.directory import RunDirectory
from dslm.run.events import EventName, append_event, append_record, read_events
from dslm.run.words import EndNow, ShowStacks, Stop

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_SLOW_EVERY_SECONDS = 60.0
# pdsh(1) says this on stderr for every host as it happens; DeepSpeed passes it through
_SSH_ENDED = re.compile(r"^pdsh@\S+: (\S+): ssh exited with exit code (\d+)", re.MULTILINE)


class Status(StrEnum):
    """How an attempt ended."""

    DONE = "done"
    STOPPED = "stopped"  # asked to stop, and did so in order
    KILLED = "killed"  # asked to stop, and had to be ended
    FAILED = "failed"


class Kind(StrEnum):
    """What failed, as the supervisor saw it."""

    RANK = "rank"  # it said so itself
    KILLED_RANK = "killed rank"  # its connection ended without its last word
    HOST = "host"  # it does not answer, or ssh to it ended
    LAUNCHER = "launcher"
    JOIN = "join"  # ranks that never came
    STALL = "stall"


_LOSSES = {
    Loss.PROCESS: (Kind.KILLED_RANK, "its process was killed from outside"),
    Loss.HOST: (Kind.HOST, "its host {host} does not answer any more"),
    Loss.WORD: (Kind.RANK, "it said what no rank of dslm says: {malformed}"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How an attempt ended; `reason` says in words what the supervisor saw, when it failed."""

    status: Status
    attempt: int
    reason: str = ""
    failed_rank: int | None = None
    host: str | None = None
    kind: Kind | None = None
    noticed: float | None = None  # Unix seconds, when it had failed
    statuses: tuple[dict[str, Any], ...] = ()  # of the ranks, also where no file can be written


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
    attempt: Attempt,
    control: Control,
    *,
    grace: float,
    limits: watchdog.Limits,
    elsewhere: RemoteProcesses,
    on_event: Callable[[dict[str, Any]], None] = lambda event: None,
) -> Outcome:
    """Run one attempt to its end; when this returns, no process of it is alive.

    Args:
        request: what to start.
        run: where its logs, status files and events are.
        attempt: who takes part.
        control: where the ranks connect.
        grace: seconds between the wish to stop and the end of all processes.
        limits: how long nothing may happen.
        elsewhere: how processes on other hosts are looked at and ended.
        on_event: told every event of the run as it appears.
    """
    logs = run.logs(attempt.number)
    logs.mkdir(parents=True, exist_ok=True)
    for path, content in request.files.items():
        path.write_text(content, encoding="utf-8")
    run.stop_request.unlink(missing_ok=True)
    _become_subreaper()
    with _signals() as stop, run.launcher_log(attempt.number).open("wb") as log:
        launcher = subprocess.Popen(
            list(request.argv),
            env=request.whole_environment(os.environ),
            cwd=request.folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        watch = _Watch(run, attempt, control, launcher, stop, grace, limits, elsewhere, on_event)
        outcome = None
        try:
            outcome = watch.until_the_end()
            return outcome
        finally:
            if outcome is None or outcome.status not in (Status.DONE, Status.STOPPED):
                control.send(EndNow())
            else:
                watch.settle(timings.LEAVE_SECONDS)
            if launcher.poll() is None or outcome is None or outcome.status != Status.DONE:
                elsewhere.kill(control.ranks.values(), parents=request.owns_parents)
            _end_launcher(launcher)
            run.stop_request.unlink(missing_ok=True)
            watch.tell()


class _Watch:
    """The loop of one attempt."""

    def __init__(
        self,
        run: RunDirectory,
        attempt: Attempt,
        control: Control,
        launcher: subprocess.Popen[bytes],
        stop: _Stop,
        grace: float,
        limits: watchdog.Limits,
        elsewhere: RemoteProcesses,
        on_event: Callable[[dict[str, Any]], None],
    ) -> None:
        self._run = run
        self._attempt = attempt
        self._control = control
        self._launcher = launcher
        self._stop = stop
        self._grace = grace
        self._limits = limits
        self._elsewhere = elsewhere
        self._on_event = on_event
        self._began = time.monotonic()
        self._offset = run.events.stat().st_size if run.events.exists() else 0
        self._told_stop = False
        self._started = False
        self._clock = watchdog.StepClock()
        self._noticed: float | None = None
        self._slow_at = 0.0
        self._slow_rank: int | None = None
        self._ssh_ended: list[tuple[str, str]] = []
        self._log_offset = 0

    def until_the_end(self) -> Outcome:
        while True:
            # the launcher first: what the ranks have said by then is final
            ended = self._launcher.poll() is not None
            self._poll(timings.DRAIN_SECONDS if ended else timings.POLL_SECONDS)
            self.tell()
            ranks = self._control.ranks.values()
            if len(ranks) == self._attempt.world_size and all(r.exit_code == 0 for r in ranks):
                return self._outcome(Status.STOPPED if self._told_stop else Status.DONE)
            failure = self._failure(ended)
            if failure is not None:
                if self._stop.asked is not None:
                    return self._outcome(Status.KILLED)
                return failure
            if self._must_kill():
                return self._outcome(Status.KILLED)

    def _poll(self, seconds: float) -> None:
        """Receive what the ranks have sent, and write down what is to be kept of it."""
        control = self._control
        control.poll(seconds)
        # a full disk ends the ranks soon enough; it must not end the one who tells of it
        with suppress(OSError):
            while control.changed:
                rank = control.changed.pop(0)
                write_json(self._run.rank_status(self._attempt.number, rank.rank), rank.document())
            while control.events:
                append_record(self._run.events, control.events.pop(0))

    def tell(self) -> None:
        """Pass on the events that were added to the run."""
        events, self._offset = read_events(self._run.events, self._offset)
        for event in events:
            self._started = self._started or event["event"] == "start"
            self._on_event(event)

    def _failure(self, launcher_ended: bool) -> Outcome | None:
        """What has failed, if anything; waits a moment for what else the ranks have to say."""
        now = time.monotonic()
        ranks = self._control.ranks.values()
        self._clock.note(ranks, now)
        self._name_slow(now)
        if _first_failed(ranks) is not None:
            self._noticed = time.time()
            self.settle(timings.SETTLE_SECONDS)
            return self._of_rank(_first_failed(ranks) or next(iter(ranks)))
        orphan = next((rank for rank in ranks if rank.orphaned and rank.lives), None)
        if orphan is not None:
            words = f"the launcher that started rank {orphan.rank} on {orphan.host} was killed"
            return self._failed(Kind.LAUNCHER, words, host=orphan.host)
        host = self._lost_host()
        if host is not None:
            words = f"the connection to {host[0]} ended: {host[1]}"
            return self._failed(Kind.HOST, words, host[0])
        if launcher_ended:
            return self._failed(Kind.LAUNCHER, _launcher_words(self._launcher.returncode))
        missing = sorted(set(range(self._attempt.world_size)) - self._control.ranks.keys())
        if missing and now - self._began > self._limits.join:
            where = self._attempt.host_of(missing[0])
            words = f"rank {missing[0]} on {where} did not start within {self._limits.join:.0f} s"
            return self._failed(Kind.JOIN, words, where, missing[0])
        stall = watchdog.stalled(ranks, self._limits, self._clock.seconds, now)
        return self._stalled(stall) if stall is not None and not missing else None

    def _stalled(self, stall: watchdog.Stall) -> Outcome:
        """Collect the stacks of all ranks, and name the one that differs."""
        self._control.send(ShowStacks())
        deadline = time.monotonic() + timings.STACKS_SECONDS
        ranks = self._control.ranks.values()
        while time.monotonic() < deadline and not all(r.stacks for r in ranks if r.lives):
            self._poll(timings.POLL_SECONDS)
        for rank in ranks:
            file = self._run.stacks(self._attempt.number, rank.rank)
            state = self._elsewhere.state(rank) if rank.lives and not rank.stacks else ""
            file.write_text(rank.stacks or f"no answer; its process is {state}\n", encoding="utf-8")
        found = watchdog.differing(ranks, time.monotonic())
        words = f"no rank made progress for {stall.seconds:.0f} s while {stall.phase}"
        odd = found[0] if found is not None else None
        if found is not None:
            words += f"; rank {found[0].rank} on {found[0].host} differs: {found[1]}"
            if not found[0].stacks:
                words += f", its process is {self._elsewhere.state(found[0])}"
        rank_number, host = (odd.rank, odd.host) if odd else (None, None)
        words += f"; stacks of all ranks: {self._run.logs(self._attempt.number)}/stacks-rank-*.txt"
        append_event(
            self._run.events, EventName.STALL, self._attempt.number,
            rank=rank_number, host=host, seconds=round(stall.seconds, 1), message=words,
        )  # fmt: skip
        return self._failed(Kind.STALL, words, host, rank_number)

    def _name_slow(self, now: float) -> None:
        """Write down which rank is slow: when it was so twice, and not again at once."""
        if now - self._slow_at < _SLOW_EVERY_SECONDS / (10 if self._slow_rank is None else 1):
            return
        slow = watchdog.slowest(self._control.ranks.values(), self._clock.seconds)
        self._slow_at = now
        if slow is not None and slow.rank == self._slow_rank:
            append_event(
                self._run.events, EventName.SLOW, self._attempt.number,
                rank=slow.rank, host=slow.host, seconds=round(slow.seconds, 6),
                ratio=round(slow.ratio, 3),
                work_seconds={r.rank: r.work_seconds for r in self._control.ranks.values()},
            )  # fmt: skip
        self._slow_rank = slow.rank if slow is not None else None

    def _lost_host(self) -> tuple[str, str] | None:
        """A host to which ssh ended although not all of its ranks did."""
        with self._run.launcher_log(self._attempt.number).open("rb") as log:
            log.seek(self._log_offset)
            whole, newline, _ = log.read().rpartition(b"\n")
        self._log_offset += len(whole) + len(newline)
        self._ssh_ended += _SSH_ENDED.findall(whole.decode(errors="replace"))
        for name, code in self._ssh_ended:
            mine = [r for r in self._control.ranks.values() if r.host == name]
            slots = dict(self._attempt.hosts).get(name, 0)
            if len(mine) < slots or any(rank.exit_code != 0 for rank in mine):
                return name, f"ssh exited with {code}"
        return None

    def _must_kill(self) -> bool:
        """Pass the wish to stop on to the ranks; True when they were given enough time."""
        wanted = self._run.stop_request.exists() or self._control.stop_wanted
        if self._stop.asked is None and wanted:
            self._stop.asked = time.monotonic()
        if self._stop.asked is None:
            return False
        if not self._told_stop:
            self._told_stop = True
            self._control.send(Stop())
            append_event(self._run.events, EventName.STOP, self._attempt.number, grace=self._grace)
        late = time.monotonic() - self._stop.asked > self._grace
        # before training has started there is nothing to save
        return late or self._stop.insisted or not self._started

    def settle(self, seconds: float) -> None:
        """Give the other processes a moment to end by themselves."""
        deadline = time.monotonic() + seconds
        while self._launcher.poll() is None and time.monotonic() < deadline:
            self._poll(timings.POLL_SECONDS)

    def _outcome(self, status: Status) -> Outcome:
        return Outcome(status=status, attempt=self._attempt.number)

    def _failed(
        self, kind: Kind, reason: str, host: str | None = None, rank: int | None = None
    ) -> Outcome:
        return Outcome(
            status=Status.FAILED,
            attempt=self._attempt.number,
            reason=reason,
            failed_rank=rank,
            host=host,
            kind=kind,
            noticed=round(self._noticed or time.time(), 3),
            statuses=tuple(known.document() for known in self._control.ranks.values()),
        )

    def _of_rank(self, rank: RankState) -> Outcome:
        if rank.exit_code is not None:
            words = rank.error or f"it ended with exit code {rank.exit_code}"
            return self._failed(Kind.RANK, words, rank.host, rank.rank)
        kind, words = _LOSSES[rank.lost or Loss.PROCESS]
        words = words.format(host=rank.host, malformed=rank.malformed)
        return self._failed(kind, words, rank.host, rank.rank)


def read_rank_statuses(run: RunDirectory, attempt: int) -> list[dict[str, Any]]:
    """What became of each rank: pid, start time, host and, at its end, exit code and error."""
    found = []
    for path in sorted(run.logs(attempt).glob("rank-*.json")):
        try:
            found.append(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            continue  # being replaced: it is there in the next round
    return found


def _first_failed(ranks: Iterable[RankState]) -> RankState | None:
    """The rank that failed first, by this host's clock; None while all is well."""
    bad = [rank for rank in ranks if rank.lost is not None or rank.exit_code not in (None, 0)]
    return min(bad, key=lambda rank: rank.failed_at, default=None)


def _launcher_words(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return f"DeepSpeed's launcher was killed by {name}"
    return f"DeepSpeed's launcher ended with exit code {code} before the ranks were done"


def _end_launcher(launcher: subprocess.Popen[bytes]) -> None:
    """End the launcher and all that it started on this host.

    The `deepspeed` command itself gets SIGKILL: on SIGTERM it would run `pkill -f` on every host,
    with a pattern that other people's jobs match, too.
    """
    processes = _descendants()
    if launcher.poll() is None:
        launcher.kill()
    for process in processes:
        for number in (signal.SIGTERM, signal.SIGCONT):
            send(process, number)
    _, alive = psutil.wait_procs(processes, timeout=timings.TERM_SECONDS)
    for process in alive:
        send(process, signal.SIGKILL)
    psutil.wait_procs(alive, timeout=timings.KILL_SECONDS)
    # what was started while the others ended
    for process in _descendants():
        send(process, signal.SIGKILL)
    _reap()


def _become_subreaper() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _descendants() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


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
