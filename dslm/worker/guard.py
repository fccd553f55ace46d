"""The guard of a rank: a thread that keeps the control channel to the supervisor.

It says every second that the rank lives and how far it is, passes on what the supervisor wants, and
ends the rank with all that it started when the supervisor, or the launcher that started the rank,
is gone. Started before torch is imported; runs as long as the process. The other end is
`dslm.launch.control`.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import threading
import time
import traceback

import psutil

from dslm.codec import Malformed
from dslm.errors import RunFailed
from dslm.host.channel import Channel
from dslm.host.kernel import cgroup_kills
from dslm.host.network import give_up_after
from dslm.host.processes import kill, start_time
from dslm.run import timings
from dslm.run.attempt import Attempt
from dslm.run.endings import ErrorReport, shortened
from dslm.run.events import Event
from dslm.run.words import (
    ORDERS,
    STACKS_LENGTH,
    Beat,
    End,
    EndNow,
    Hello,
    Orphaned,
    Phase,
    Recorded,
    Report,
    ShowStacks,
    Stacks,
    Stop,
    StopWanted,
    WordReader,
    encode_word,
)

_EXIT_CODE = 1


class Guard:
    """The rank's end of the control channel; the training notes its progress here."""

    def __init__(self, attempt: Attempt, rank: int) -> None:
        """Connect and say hello.

        Raises:
            RunFailed: the supervisor can't be reached.
        """
        self._channel = Channel(_connect(attempt, attempt.host_of(rank)))
        self._sending = threading.Lock()
        self._progress = 0
        self._phase: Phase | None = None
        self._step = 0
        self._work_seconds: float | None = None
        self._parent = os.getppid()
        self._ended = False
        self._stop_wanted = False
        self._broken = False
        self._orders = WordReader(ORDERS)
        self.stop_asked = False
        self._channel.send(attempt.control.token.encode() + b"\n")
        self._send(
            Hello(
                rank=rank,
                pid=os.getpid(),
                start_time=start_time(os.getpid()) or 0,
                parent_pid=self._parent,
                parent_start_time=start_time(self._parent) or 0,
                kills_before=cgroup_kills(),
            )
        )
        threading.Thread(target=self._watch, name="dslm-guard", daemon=True).start()

    def note(
        self, *, phase: Phase | None = None, step: int | None = None, work: float | None = None
    ) -> None:
        """Note progress: anything that was done since the last time.

        Args:
            phase: the phase that begins now.
            step: the last optimizer step that was finished.
            work: seconds per step that this rank computed without waiting for others.
        """
        self._progress += 1
        entered = phase is not None and phase != self._phase
        self._phase = self._phase if phase is None else phase
        self._step = self._step if step is None else step
        self._work_seconds = self._work_seconds if work is None else work
        if entered:
            self._beat()  # how long a rank may be silent depends on its phase: send it at once

    def event(self, event: Event) -> None:
        """Hand an event to the supervisor, from a rank that can't write into the run directory."""
        self._send(Recorded(event=event))

    def want_stop(self) -> None:
        """Ask the supervisor to stop the run in order: this host's time is over."""
        self._stop_wanted = True  # sent by the watching thread: this may be a signal's handler

    def end(self, exit_code: int, report: ErrorReport | None) -> None:
        """Send the rank's last word, and wait until the supervisor's host has taken it."""
        self._ended = True
        self._send(End(exit_code=exit_code % 256, report=report, ended=time.time()))
        deadline = time.monotonic() + timings.LAST_WORD_SECONDS
        while self._unsent() and time.monotonic() < deadline:
            select.select([], [self._channel], [], timings.BEAT_SECONDS)
            self._send()

    def _send(self, word: Report | None = None) -> None:
        """Send a word, or what is left of those before it."""
        data = b"" if word is None else encode_word(word)
        with self._sending:
            try:
                self._channel.send(data)
            except OSError:
                self._broken = True  # the watching thread acts on it

    def _unsent(self) -> bool:
        with self._sending:
            return self._channel.unsent and not self._broken

    def _beat(self) -> None:
        if self._unsent():
            return  # the supervisor is slow to read; it learns nothing new from older beats
        self._send(
            Beat(
                progress=self._progress,
                phase=self._phase or "",
                step=self._step,
                work_seconds=self._work_seconds,
                cpu_seconds=time.process_time(),
            )
        )

    def _watch(self) -> None:
        while True:
            writing = [self._channel] if self._unsent() else []
            readable, writable, _ = select.select(
                [self._channel], writing, [], timings.BEAT_SECONDS
            )
            if writable:
                self._send()
            if self._broken or (readable and not self._receive()):
                if self._ended:
                    return  # the rank is about to end by itself
                self._vanish("the supervisor is gone")
            if os.getppid() != self._parent and not self._ended:
                self._send(Orphaned())
                self._vanish("the launcher that started this rank is gone")
            if self._stop_wanted:
                self._stop_wanted = False
                self._send(StopWanted())
            self._beat()

    def _receive(self) -> bool:
        """Do what the supervisor orders; False when it has gone."""
        try:
            received = self._channel.receive(4096)
            if received is None:
                return True
            for order in self._orders.feed(received):
                match order:
                    case Stop():
                        self.stop_asked = True
                    case ShowStacks():
                        self._send(Stacks(text=shortened(_stacks(), STACKS_LENGTH)))
                    case EndNow():
                        self._vanish("the supervisor ends this attempt")
        except (OSError, Malformed):
            return False
        return bool(received)

    def _vanish(self, why: str) -> None:
        os.write(2, f"dslm: {why}; this rank ends\n".encode())
        children = psutil.Process().children(recursive=True)
        kill(children, seconds=timings.RANK_ENDS_CHILDREN_SECONDS)
        os._exit(_EXIT_CODE)


def _connect(attempt: Attempt, host: str) -> socket.socket:
    failures = []
    for address in attempt.control.addresses:
        place = (address, attempt.control.port)
        try:
            channel = socket.create_connection(place, timeout=timings.CONNECT_SECONDS)
        except OSError as failure:
            failures.append(f"{address}:{attempt.control.port}: {failure}")
            continue
        give_up_after(channel, timings.RANK_GIVES_UP_SECONDS)
        return channel
    raise RunFailed(
        f"{host} can't reach the supervisor at {', '.join(failures)}: does a firewall stop it?"
    )


def _stacks() -> str:
    """Return the stack of each thread, the main one first, innermost call last."""
    frames = sys._current_frames()
    main = threading.main_thread().ident
    parts = []
    for ident in sorted(frames, key=lambda one: one != main):
        name = next((t.name for t in threading.enumerate() if t.ident == ident), str(ident))
        if name != "dslm-guard":
            stack = "".join(traceback.format_stack(frames[ident]))
            parts.append(f"Thread {name}:\n{stack}")
    return "\n".join(parts)
