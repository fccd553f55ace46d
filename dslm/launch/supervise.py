"""The supervisor: starts one attempt, follows every rank, ends everything that belongs to it.

What comes in is a request, the attempt and a run directory; what goes out is an outcome that tells
the truth: it is taken from the ranks' own words and from the end of their connections, never from
the launcher's exit code (DeepSpeed's launcher exits 0 when it was killed). Torch-free. Source of
the process handling: prctl(2), PR_SET_CHILD_SUBREAPER: whatever the launcher leaves behind on this
host becomes a child of ours; on other hosts processes are ended by pid and start time.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import BinaryIO, TypedDict, Unpack

import psutil

from dslm.files import is_full
from dslm.host.processes import send
from dslm.launch import watchdog
from dslm.launch.control import Control, RankState
from dslm.launch.outcome import Odd, Outcome, Status
from dslm.launch.remote_processes import RemoteProcesses
from dslm.launch.spec import LaunchRequest
from dslm.run import events, timings
from dslm.run.attempt import Attempt
from dslm.run.directory import RunDirectory
from dslm.run.documents import RankStatus, find_document, write_document
from dslm.run.endings import Kind, Loss
from dslm.run.words import EndNow, ShowStacks, Stop

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_SLOW_EVERY_SECONDS = 60.0
# pdsh(1) says this on stderr for every host as it happens; DeepSpeed passes it through
_SSH_ENDED = re.compile(r"^pdsh@\S+: (\S+): ssh exited with exit code (\d+)", re.MULTILINE)


class _Seen(TypedDict, total=False):
    """Observations of the supervisor beside the failure itself; fields of an outcome."""

    host: str | None
    detail: str
    code: int | None
    seconds: float
    phase: str
    odd: Odd | None
    stacks: str


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
    remote: RemoteProcesses,
    on_event: Callable[[events.Event], None] = lambda event: None,
) -> Outcome:
    """Run one attempt to its end; when this returns, no process of it is alive.

    Args:
        request: what to start.
        run: where its logs, status files and events are.
        attempt: who takes part.
        control: where the ranks connect.
        grace: seconds between the wish to stop and the end of all processes.
        limits: how long nothing may happen.
        remote: how processes on other hosts are looked at and ended.
        on_event: called with every event of the run as it appears.
    """
    run.logs(attempt.number).mkdir(parents=True, exist_ok=True)
    run.stop_request.unlink(missing_ok=True)
    _become_subreaper()
    with _signals() as stop, run.launcher_log(attempt.number).open("wb") as log:
        launcher = _start(request, log)
        watch = _Watch(
            run=run,
            attempt=attempt,
            control=control,
            launcher=launcher,
            stop=stop,
            grace=grace,
            limits=limits,
            remote=remote,
            on_event=on_event,
            events_read=run.events.stat().st_size if run.events.exists() else 0,
        )
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
                remote.kill(control.ranks.values(), parents=request.owns_parents)
            _end_launcher(launcher)
            run.stop_request.unlink(missing_ok=True)
            watch.report_events()


def _start(request: LaunchRequest, log: BinaryIO) -> subprocess.Popen[bytes]:
    """Write the files of a request, and start its command."""
    for path, content in request.files.items():
        path.write_text(content, encoding="utf-8")
    return subprocess.Popen(
        list(request.argv),
        env=request.whole_environment(os.environ),
        cwd=request.folder,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


@dataclass(slots=True, kw_only=True)
class _Watch:
    """The loop of one attempt: what takes part, and what has been seen of it so far."""

    run: RunDirectory
    attempt: Attempt
    control: Control
    launcher: subprocess.Popen[bytes]
    stop: _Stop
    grace: float
    limits: watchdog.Limits
    remote: RemoteProcesses
    on_event: Callable[[events.Event], None]
    began: float = field(default_factory=time.monotonic)
    events_read: int = 0  # bytes
    log_read: int = 0  # bytes of the launcher's log
    stop_sent: bool = False
    started: bool = False  # training has
    clock: watchdog.StepClock = field(default_factory=watchdog.StepClock)
    noticed: float | None = None
    slow_at: float = 0.0
    slow_rank: int | None = None
    ssh_ended: list[tuple[str, str]] = field(default_factory=list)

    def until_the_end(self) -> Outcome:
        while True:
            # the launcher first: what the ranks have said by then is final
            ended = self.launcher.poll() is not None
            self._poll(timings.DRAIN_SECONDS if ended else timings.POLL_SECONDS)
            self.report_events()
            ranks = self.control.ranks.values()
            if len(ranks) == self.attempt.world_size and all(r.exit_code == 0 for r in ranks):
                return self._outcome(Status.STOPPED if self.stop_sent else Status.DONE)
            failure = self._failure(ended)
            if failure is not None:
                if self.stop.asked is not None:
                    return self._outcome(Status.KILLED)
                return failure
            if self._must_kill():
                return self._outcome(Status.KILLED)

    def _poll(self, seconds: float) -> None:
        """Receive what the ranks have sent, and write down what is to be kept of it."""
        control = self.control
        control.poll(seconds)
        # a full disk ends the ranks soon enough; it must not end the one who tells of it
        with suppress(OSError):
            while control.changed:
                rank = control.changed.pop(0)
                file = self.run.rank_status(self.attempt.number, rank.rank)
                write_document(file, rank.status())
            while control.events:
                self._record(control.events.pop(0))

    def report_events(self) -> None:
        """Pass on the events that were added to the run."""
        found = events.tail_events(self.run.events, self.events_read)
        self.events_read = found.offset
        for event in found.events:
            self.started = self.started or isinstance(event, events.Start)
            self.on_event(event)

    def _record(self, event: events.Event) -> None:
        """Write down an event; without space for it, the ranks are the ones to fail for that."""
        try:
            events.write_event(self.run.events, event)
        except OSError as failure:
            if not is_full(failure):
                raise

    def _failure(self, launcher_ended: bool) -> Outcome | None:
        """Return the failure, if any, after waiting a moment for further reports of the ranks."""
        now = time.monotonic()
        ranks = self.control.ranks.values()
        self.clock.note(ranks, now)
        self._name_slow(now)
        if _first_failed(ranks) is not None:
            self.noticed = time.time()
            self.settle(timings.SETTLE_SECONDS)
            return self._of_rank(_first_failed(ranks) or next(iter(ranks)))
        orphan = next((rank for rank in ranks if rank.orphaned and rank.lives), None)
        if orphan is not None:
            return self._failed(Kind.LAUNCHER, host=orphan.host)
        lost = self._lost_host()
        if lost is not None:
            host, code = lost
            return self._failed(Kind.CONNECTION, host=host, code=code)
        if launcher_ended:
            return self._failed(Kind.LAUNCHER, code=self.launcher.returncode)
        missing = sorted(set(range(self.attempt.world_size)) - self.control.ranks.keys())
        if missing and now - self.began > self.limits.join:
            rank = missing[0]
            where = self.attempt.host_of(rank)
            return self._failed(Kind.JOIN, host=where, rank=rank, seconds=self.limits.join)
        stall = watchdog.stalled(ranks, self.limits, self.clock.seconds, now)
        return self._stalled(stall) if stall is not None and not missing else None

    def _stalled(self, stall: watchdog.Stall) -> Outcome:
        """Collect the stacks of all ranks, and name the one that differs."""
        self.control.send(ShowStacks())
        deadline = time.monotonic() + timings.STACKS_SECONDS
        ranks = self.control.ranks.values()
        while time.monotonic() < deadline and not all(r.stacks for r in ranks if r.lives):
            self._poll(timings.POLL_SECONDS)
        states: dict[int, str] = {}
        for rank in ranks:
            file = self.run.stacks(self.attempt.number, rank.rank)
            if rank.lives and not rank.stacks:
                states[rank.rank] = self.remote.state(rank)
            text = rank.stacks or f"no answer; its process is {states.get(rank.rank, 'gone')}\n"
            with suppress(OSError):
                file.write_text(text, encoding="utf-8", errors="replace")
        odd = watchdog.differing(ranks, time.monotonic())
        if odd is not None:
            odd = replace(odd, state=states.get(odd.rank, ""))
        alone = next(iter(ranks)) if len(ranks) == 1 else None
        found = odd or alone
        outcome = self._failed(
            Kind.STALL,
            rank=found.rank if found else None,
            host=found.host if found else None,
            seconds=round(stall.seconds, 1),
            phase=stall.phase,
            odd=odd,
            stacks=f"{self.run.logs(self.attempt.number)}/stacks-rank-*.txt",
        )
        self._record(
            events.Stall(
                **events.stamp(self.attempt.number),
                rank=outcome.failed_rank,
                host=outcome.host,
                seconds=outcome.seconds or 0.0,
                message=outcome.reason,
            )
        )
        return outcome

    def _name_slow(self, now: float) -> None:
        """Write down which rank is slow: when it was so twice, and not again at once."""
        if now - self.slow_at < _SLOW_EVERY_SECONDS / (10 if self.slow_rank is None else 1):
            return
        slow = watchdog.slowest(self.control.ranks.values(), self.clock.seconds)
        self.slow_at = now
        if slow is not None and slow.rank == self.slow_rank:
            work = {str(rank): state.work_seconds for rank, state in self.control.ranks.items()}
            self._record(
                events.Slow(
                    **events.stamp(self.attempt.number),
                    rank=slow.rank,
                    host=slow.host,
                    seconds=round(slow.seconds, 6),
                    ratio=round(slow.ratio, 3),
                    work_seconds=work,
                )
            )
        self.slow_rank = slow.rank if slow is not None else None

    def _lost_host(self) -> tuple[str, int] | None:
        """A host to which ssh ended although not all of its ranks did, and ssh's exit code."""
        with self.run.launcher_log(self.attempt.number).open("rb") as log:
            log.seek(self.log_read)
            whole, newline, _ = log.read().rpartition(b"\n")
        self.log_read += len(whole) + len(newline)
        self.ssh_ended += _SSH_ENDED.findall(whole.decode(errors="replace"))
        for name, code in self.ssh_ended:
            mine = [r for r in self.control.ranks.values() if r.host == name]
            slots = dict(self.attempt.hosts).get(name, 0)
            if len(mine) < slots or any(rank.exit_code != 0 for rank in mine):
                return name, int(code)
        return None

    def _must_kill(self) -> bool:
        """Pass the wish to stop on to the ranks; True when they were given enough time."""
        wanted = self.run.stop_request.exists() or self.control.stop_wanted
        if self.stop.asked is None and wanted:
            self.stop.asked = time.monotonic()
        if self.stop.asked is None:
            return False
        if not self.stop_sent:
            self.stop_sent = True
            self.control.send(Stop())
            self._record(events.Stop(**events.stamp(self.attempt.number), grace=self.grace))
        late = time.monotonic() - self.stop.asked > self.grace
        # before training has started there is nothing to save
        return late or self.stop.insisted or not self.started

    def settle(self, seconds: float) -> None:
        """Give the other processes a moment to end by themselves; a silent host is lost then."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and (
            self.launcher.poll() is None or any(r.lives for r in self.control.ranks.values())
        ):
            self._poll(timings.POLL_SECONDS)
        self.control.lose_silent_hosts()
        self._poll(0)  # what came while the launcher ended

    def _outcome(self, status: Status) -> Outcome:
        return Outcome(status=status, attempt=self.attempt.number)

    def _failed(self, kind: Kind, *, rank: int | None = None, **seen: Unpack[_Seen]) -> Outcome:
        return Outcome(
            status=Status.FAILED,
            attempt=self.attempt.number,
            kind=kind,
            failed_rank=rank,
            noticed=round(self.noticed or time.time(), 3),
            statuses=tuple(known.status() for known in self.control.ranks.values()),
            **seen,
        )

    def _of_rank(self, rank: RankState) -> Outcome:
        if rank.exit_code is None:
            kind = (rank.lost or Loss.PROCESS).kind
            return self._failed(kind, rank=rank.rank, host=rank.host, detail=rank.malformed)
        line = rank.report.line if rank.report is not None else ""
        return self._failed(
            Kind.RANK, rank=rank.rank, host=rank.host, detail=line, code=rank.exit_code
        )


def read_rank_statuses(run: RunDirectory, attempt: int) -> list[RankStatus]:
    """Return what became of each rank; one that can't be read is left out."""
    files = sorted(run.logs(attempt).glob("rank-*.json"))
    found = [find_document(RankStatus, file) for file in files]
    return [status for status in found if status is not None]


def _first_failed(ranks: Iterable[RankState]) -> RankState | None:
    """The rank that failed first, by this host's clock; None while all is well."""
    bad = [rank for rank in ranks if rank.lost is not None or rank.exit_code not in (None, 0)]
    return min(bad, key=lambda rank: rank.failed_at, default=None)


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
