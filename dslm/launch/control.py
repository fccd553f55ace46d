"""The control channel: the supervisor listens, and every rank of an attempt connects to it.

A rank says who it is, every second that it lives and how far it is, and at its end how it ended.
The supervisor asks it to stop, to show its stacks, or to end at once. The words and their codec are
`dslm.run.words`. A connection that ends without the rank's own last word means that the rank was
killed; one that the kernel gives up means that its host is gone (tcp(7), TCP_USER_TIMEOUT); and a
rank whose connection ends knows that the supervisor is gone, and ends itself. So no folder has to
be shared for any of it, and nothing has to be polled on other hosts. Carries no training data.

A connection begins with the attempt's token, bare. Until it has come whole nothing is parsed or
kept but as many bytes as the token has, and all that a stranger can bring about is the end of its
own connection. What a rank says after it that is no word is that rank's failure.
"""

from __future__ import annotations

import errno
import resource
import secrets
import selectors
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from dslm.codec import Malformed
from dslm.host.channel import Channel
from dslm.host.network import give_up_after
from dslm.run import timings
from dslm.run.attempt import ControlAddress
from dslm.run.documents import RankStatus
from dslm.run.endings import ErrorReport, Loss
from dslm.run.events import Event
from dslm.run.words import (
    REPORTS,
    Beat,
    End,
    Hello,
    Order,
    Orphaned,
    Recorded,
    Report,
    ShowStacks,
    Stacks,
    StopWanted,
    WordReader,
    encode_word,
)

LOOPBACK = "127.0.0.1"
_STRANGERS = 256  # connections without a token; the oldest goes when there are more
_ACCEPTED = 64  # connections in one round
_READ_BYTES = 65536
_COMPUTES_SHARE = 0.05  # of a core: more than threads use that only wait, also on a full host
_OTHER_FILES = 256  # descriptors that this process needs beside its connections
# What the kernel says of a host that can't be reached any more; all else concerns the process.
_HOST_ERRORS = {
    errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.ENETUNREACH, errno.ENETDOWN,
    errno.ENONET,
}  # fmt: skip


@dataclass(slots=True)
class RankState:
    """The supervisor's knowledge of a rank; times are monotonic seconds on this host."""

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
    cpu_seconds: float = 0.0
    computed_at: float = 0.0  # when it last used much of a core
    exit_code: int | None = None
    report: ErrorReport | None = None
    ended: float | None = None  # Unix seconds
    left: float | None = None  # Unix seconds: when its connection ended, or its host answered last
    lost: Loss | None = None  # why it ended before the rank said its last word
    malformed: str = ""  # what it said that is no word
    failed_at: float = 0.0
    orphaned: bool = False
    stacks: str | None = None
    kills_before: int | None = None

    @property
    def lives(self) -> bool:
        """Whether it is connected and has not said its last word."""
        return self.exit_code is None and self.lost is None

    @property
    def active_at(self) -> float:
        """When it last made progress or computed."""
        return max(self.progress_at, self.computed_at)

    def status(self) -> RankStatus:
        """Return what its status file has."""
        return RankStatus(
            rank=self.rank,
            host=self.host,
            pid=self.pid,
            start_time=self.start_time,
            parent_pid=self.parent_pid,
            kills_before=self.kills_before,
            exit_code=self.exit_code,
            ended=self.ended,
            left=self.left,
            lost=self.lost,
            error=self.report.line if self.report is not None else self.malformed or None,
            report=self.report,
        )


@dataclass(slots=True)
class _Connection:
    """A stranger until its token has come, a guest until its hello, then a rank."""

    channel: Channel
    since: float
    token: bytearray = field(default_factory=bytearray)
    words: WordReader[Report] | None = None  # once its token was right
    rank: RankState | None = None
    ordered: set[type[Order]] = field(default_factory=set)  # and not answered yet

    @property
    def open(self) -> bool:
        return self.channel.fileno() >= 0


class Control:
    """The supervisor's end; a context manager, so that the ranks always learn of its end."""

    def __init__(self, hosts: Sequence[tuple[str, int]], *, address: str = LOOPBACK) -> None:
        """Listen on a free port of one address.

        Args:
            hosts: name and ranks of each, in the order of the ranks.
            address: the one that the ranks connect to; nobody else's interface is listened on.

        Raises:
            OSError: it is no address of this host.
        """
        self.ranks: dict[int, RankState] = {}
        self.changed: list[RankState] = []  # ranks that came or ended since these were taken
        self.events: list[Event] = []  # of ranks that can't write into the run directory
        self.stop_wanted = False  # a batch system has told a rank that its time is over
        self._hosts = [name for name, slots in hosts for _ in range(slots)]  # of each rank
        self._token = secrets.token_urlsafe(24)
        _allow_files(len(self._hosts) + _STRANGERS + _OTHER_FILES)
        self._selector = selectors.DefaultSelector()
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._server = socket.create_server((address, 0), family=family, backlog=1024)
        self._server.setblocking(False)
        self._selector.register(self._server, selectors.EVENT_READ)
        self._connections: dict[int, _Connection] = {}
        self._polled = time.time()

    def address(self) -> ControlAddress:
        """Return what the ranks need to connect."""
        address, port = self._server.getsockname()[:2]
        return ControlAddress(addresses=(address,), port=port, token=self._token)

    def __enter__(self) -> Control:
        return self

    def __exit__(self, *exc: object) -> None:
        for connection in list(self._connections.values()):
            self._drop(connection)
        self._selector.unregister(self._server)
        self._server.close()
        self._selector.close()

    def poll(self, seconds: float) -> None:
        """Receive what ranks have sent; block up to `seconds` for the first of it."""
        ready_now = self._selector.select(seconds)
        self._polled = time.time()  # of all that is read now: in which order it came is not known
        for key, ready in ready_now:
            connection: _Connection | None = key.data
            if connection is None:
                self._accept()
                continue
            if ready & selectors.EVENT_WRITE and connection.open:
                self._flush(connection)
            if ready & selectors.EVENT_READ and connection.open:
                self._read(connection)
        self._drop_strangers()

    def lose_silent_hosts(self) -> None:
        """Take the ranks for lost whose host answers no more, before the kernel gives them up."""
        for connection in list(self._connections.values()):
            rank = connection.rank
            silent = connection.channel.unanswered > timings.SILENT_HOST_SECONDS
            if rank is not None and rank.lives and silent:
                self._lose(connection, Loss.HOST)

    def send(self, order: Order) -> None:
        """Send an order to every rank that lives; one that it has already is not repeated."""
        for connection in list(self._connections.values()):
            rank = connection.rank
            if rank is None or not rank.lives or type(order) in connection.ordered:
                continue
            connection.ordered.add(type(order))
            self._flush(connection, encode_word(order))

    def _flush(self, connection: _Connection, data: bytes = b"") -> None:
        channel = connection.channel
        try:
            channel.send(data)
        except OSError as failure:
            self._end(connection, failure)
            return
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if channel.unsent else 0)
        if self._selector.get_key(channel).events != wanted:
            self._selector.modify(channel, wanted, connection)

    def _accept(self) -> None:
        for _ in range(_ACCEPTED):
            try:
                accepted, _ = self._server.accept()
            except OSError:
                return  # there is none any more, or no descriptor for it: strangers are dropped
            with suppress(OSError):  # it has gone again: reading says so
                give_up_after(accepted, timings.SUPERVISOR_GIVES_UP_SECONDS)
            connection = _Connection(Channel(accepted), time.monotonic())
            self._connections[accepted.fileno()] = connection
            self._selector.register(connection.channel, selectors.EVENT_READ, connection)

    def _drop_strangers(self) -> None:
        """End connections that take too long to say who they are, or are too many."""
        late = time.monotonic() - timings.CONNECT_SECONDS
        waiting = [c for c in self._connections.values() if c.rank is None]  # the oldest first
        surplus = len([c for c in waiting if c.words is None]) - _STRANGERS
        for connection in waiting:
            stranger = connection.words is None
            if connection.since < late or (stranger and surplus > 0):
                self._drop(connection)
                surplus -= stranger

    def _read(self, connection: _Connection) -> None:
        stranger = connection.words is None
        most = len(self._token) + 1 - len(connection.token) if stranger else _READ_BYTES
        try:
            received = connection.channel.receive(most)
        except OSError as failure:
            self._end(connection, failure)
            return
        if received is None:
            return
        if not received:
            self._end(connection, None)
        elif connection.words is None:
            self._greet(connection, received)
        else:
            self._receive(connection, connection.words, received)

    def _greet(self, connection: _Connection, received: bytes) -> None:
        """Compare the token, once it is whole: how much of it is right stays unknown."""
        connection.token += received
        expected = self._token.encode() + b"\n"
        if len(connection.token) < len(expected) and b"\n" not in connection.token:
            return
        if secrets.compare_digest(bytes(connection.token), expected):
            connection.words = WordReader(REPORTS)
        else:
            self._drop(connection)

    def _receive(self, connection: _Connection, words: WordReader[Report], received: bytes) -> None:
        try:
            for word in words.feed(received):
                if connection.rank is None:
                    self._welcome(connection, word)
                else:
                    self._take(connection, connection.rank, word)
        except Malformed as failure:
            if connection.rank is None:
                self._drop(connection)
            else:
                connection.rank.malformed = str(failure)
                self._lose(connection, Loss.WORD)

    def _welcome(self, connection: _Connection, word: Report) -> None:
        if not isinstance(word, Hello) or word.rank >= len(self._hosts):
            raise Malformed("no rank of this attempt")
        if word.rank in self.ranks:
            raise Malformed(f"rank {word.rank} has already joined")
        now = time.monotonic()
        rank = RankState(
            rank=word.rank,
            host=self._hosts[word.rank],
            pid=word.pid,
            start_time=word.start_time,
            parent_pid=word.parent_pid,
            parent_start_time=word.parent_start_time,
            kills_before=word.kills_before,
            beat_at=now,
            progress_at=now,
        )
        connection.rank = self.ranks[rank.rank] = rank
        self.changed.append(rank)

    def _take(self, connection: _Connection, rank: RankState, word: Report) -> None:
        now = time.monotonic()
        match word:
            case Beat():
                if word.progress != rank.progress:
                    rank.progress, rank.progress_at = word.progress, now
                if word.cpu_seconds - rank.cpu_seconds > _COMPUTES_SHARE * (now - rank.beat_at):
                    rank.computed_at = now
                rank.phase, rank.step = word.phase, word.step
                rank.work_seconds, rank.cpu_seconds = word.work_seconds, word.cpu_seconds
            case End() if rank.exit_code is None:
                rank.exit_code, rank.report, rank.ended = word.exit_code, word.report, word.ended
                rank.failed_at = now
                self.changed.append(rank)
            case Stacks():
                rank.stacks = word.text
                connection.ordered.discard(ShowStacks)
            case Recorded():
                self.events.append(word.event)
            case Orphaned():
                rank.orphaned = True
            case StopWanted():
                self.stop_wanted = True
            case _:
                raise Malformed(f"`{word.name}` a second time")
        rank.beat_at = now

    def _end(self, connection: _Connection, failure: OSError | None) -> None:
        """A connection has ended, or is broken."""
        gone = failure is not None and failure.errno in _HOST_ERRORS
        self._lose(connection, Loss.HOST if gone else Loss.PROCESS)

    def _lose(self, connection: _Connection, loss: Loss) -> None:
        rank = connection.rank
        silent = connection.channel.unanswered if loss is Loss.HOST else 0.0
        self._drop(connection)
        if rank is None:
            return
        if rank.lives:
            rank.lost = loss
            rank.failed_at = time.monotonic() - silent
            rank.ended = time.time() - silent
        rank.left = self._polled - silent
        self.changed.append(rank)

    def _drop(self, connection: _Connection) -> None:
        if connection.open:
            del self._connections[connection.channel.fileno()]
            self._selector.unregister(connection.channel)
            connection.channel.close()


def _allow_files(wanted: int) -> None:
    """Raise this process's limit of open files, as far as it may: each rank needs one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
