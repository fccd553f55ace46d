"""The control channel: the supervisor listens, and every rank of an attempt connects to it.

A rank says who it is, every second that it lives and how far it is, and at its end how it ended.
The supervisor asks it to stop, to show its stacks, or to end at once. One JSON object a line. A
connection that ends without the rank's own last word means that the rank was killed; one that the
kernel gives up means that its host is gone (tcp(7), TCP_USER_TIMEOUT); and a rank whose connection
ends knows that the supervisor is gone, and ends itself. So no folder has to be shared for any of
it, and nothing has to be polled on other hosts. Carries no training data.
"""

from __future__ import annotations

import json
import secrets
import selectors
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dslm.host.network import give_up_after
from dslm.run.attempt import ControlAddress

LOOPBACK = "127.0.0.1"
_GONE_SECONDS = 6.0  # without an answer from a host's kernel
_GREETING_SECONDS = 10.0  # for a connection to say who it is
_GREETING_BYTES = 4096
_LINE_BYTES = 4 * 2**20
_READ_BYTES = 65536


@dataclass(slots=True)
class RankState:
    """What the supervisor knows of a rank; times are monotonic seconds on this host."""

    rank: int
    host: str
    pid: int
    start_time: int
    parent_pid: int
    parent_start_time: int
    beat_at: float
    progress: int = 0
    progress_at: float = 0.0
    phase: str = ""
    step: int = 0
    work_seconds: float | None = None
    exit_code: int | None = None
    error: str | None = None
    ended: float | None = None  # Unix seconds
    lost: str | None = None  # why its connection ended before it said its last word
    failed_at: float = 0.0
    orphaned: bool = False
    stacks: str | None = None
    kills_before: int | None = None

    @property
    def lives(self) -> bool:
        """Whether it is connected and has not said its last word."""
        return self.exit_code is None and self.lost is None

    def document(self) -> dict[str, Any]:
        """As its status file has it."""
        return {
            "rank": self.rank,
            "host": self.host,
            "pid": self.pid,
            "start_time": self.start_time,
            "parent_pid": self.parent_pid,
            "kills_before": self.kills_before,
            "exit_code": self.exit_code,
            "ended": self.ended,
            "error": self.error,
        }


@dataclass(slots=True)
class _Connection:
    channel: socket.socket
    since: float
    received: bytearray = field(default_factory=bytearray)
    rank: RankState | None = None


class Control:
    """The supervisor's end; a context manager, so that the ranks always learn of its end."""

    def __init__(
        self,
        *,
        everywhere: bool,
        on_event: Callable[[dict[str, Any]], None] = lambda event: None,
        on_change: Callable[[RankState], None] = lambda rank: None,
    ) -> None:
        """Listen on a free port: on all interfaces, or on the loopback one.

        Args:
            everywhere: whether ranks on other hosts connect.
            on_event: told an event of a rank that can't write into the run directory.
            on_change: told when a rank has come or has ended.
        """
        self.ranks: dict[int, RankState] = {}
        self.stop_wanted = False  # a batch system has told a rank that its time is over
        self.on_event = on_event
        self.on_change = on_change
        self._token = secrets.token_urlsafe(24)
        self._selector = selectors.DefaultSelector()
        self._server = socket.create_server(
            ("" if everywhere else LOOPBACK, 0), backlog=1024, reuse_port=False
        )
        self._server.setblocking(False)
        self._selector.register(self._server, selectors.EVENT_READ)
        self._connections: dict[int, _Connection] = {}

    def address(self, *addresses: str) -> ControlAddress:
        """What the ranks need to connect, given the addresses of this host that they can reach."""
        port: int = self._server.getsockname()[1]
        return ControlAddress(addresses=addresses or (LOOPBACK,), port=port, token=self._token)

    def __enter__(self) -> Control:
        return self

    def __exit__(self, *exc: object) -> None:
        for connection in list(self._connections.values()):
            self._drop(connection)
        self._selector.unregister(self._server)
        self._server.close()
        self._selector.close()

    def poll(self, seconds: float) -> None:
        """Take in what the ranks have said; wait so long for the first word."""
        for key, _ in self._selector.select(seconds):
            if key.fileobj is self._server:
                self._accept()
            else:
                self._read(self._connections[key.fd])
        now = time.monotonic()
        for connection in list(self._connections.values()):
            if connection.rank is None and now - connection.since > _GREETING_SECONDS:
                self._drop(connection)

    def tell(self, word: str) -> None:
        """Say one of `stop`, `stacks`, `end` to every rank that lives."""
        line = json.dumps({word: True}).encode() + b"\n"
        for connection in list(self._connections.values()):
            try:
                connection.channel.send(line)
            except OSError as failure:
                self._lost(connection, failure)

    def _accept(self) -> None:
        try:
            channel, _ = self._server.accept()
        except OSError:
            return  # it has gone again
        channel.setblocking(False)
        give_up_after(channel, _GONE_SECONDS)
        self._connections[channel.fileno()] = _Connection(channel, time.monotonic())
        self._selector.register(channel, selectors.EVENT_READ)

    def _read(self, connection: _Connection) -> None:
        try:
            received = connection.channel.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError as failure:
            self._lost(connection, failure)
            return
        if not received:
            self._lost(connection, None)
            return
        connection.received += received
        *lines, rest = connection.received.split(b"\n")
        connection.received = bytearray(rest)
        limit = _GREETING_BYTES if connection.rank is None else _LINE_BYTES
        try:
            if len(rest) > limit:
                raise ValueError("a line without an end")
            for line in lines:
                self._hear(connection, json.loads(line))
        except (ValueError, KeyError, TypeError):
            self._drop(connection)  # not one of ours

    def _hear(self, connection: _Connection, word: dict[str, Any]) -> None:
        now = time.monotonic()
        rank = connection.rank
        if rank is None:
            hello = word["hello"]
            if not secrets.compare_digest(str(hello.pop("token")), self._token):
                raise ValueError("not of this attempt")
            rank = RankState(**hello, beat_at=now, progress_at=now)
            connection.rank = self.ranks[rank.rank] = rank
            self.on_change(rank)
            return
        rank.beat_at = now
        if "beat" in word:
            beat = word["beat"]
            if beat["progress"] != rank.progress:
                rank.progress, rank.progress_at = beat["progress"], now
            rank.phase, rank.step = beat["phase"], beat["step"]
            rank.work_seconds = beat["work_seconds"]
        elif "end" in word:
            end = word["end"]
            rank.exit_code, rank.error, rank.ended = end["exit_code"], end["error"], end["ended"]
            rank.failed_at = now
            self.on_change(rank)
        elif "orphaned" in word:
            rank.orphaned = True
        elif "stop" in word:
            self.stop_wanted = True
        elif "stacks" in word:
            rank.stacks = str(word["stacks"])
        elif "event" in word:
            self.on_event(word["event"])

    def _lost(self, connection: _Connection, failure: OSError | None) -> None:
        rank = connection.rank
        self._drop(connection)
        if rank is None or rank.exit_code is not None:
            return
        gone = isinstance(failure, TimeoutError) or (
            failure is not None and not isinstance(failure, ConnectionError)
        )
        rank.lost = (
            f"its host {rank.host} does not answer any more"
            if gone
            else "its process was killed from outside"
        )
        rank.failed_at = time.monotonic()
        rank.ended = time.time()
        self.on_change(rank)

    def _drop(self, connection: _Connection) -> None:
        self._connections.pop(connection.channel.fileno(), None)
        self._selector.unregister(connection.channel)
        connection.channel.close()
