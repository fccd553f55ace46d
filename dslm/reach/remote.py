"""Run a command on hosts: the only place of dslm that starts a process elsewhere.

In comes a list of arguments and the transport that takes it to a host: ssh, or one that a site
brings along; a command for this machine needs none. Out come exit code, output and how long it
took. Over ssh a command passes one shell, the login shell that sshd starts; each argument is one
quoted word of it. A program's input beyond fixed words goes through its stdin.
"""

from __future__ import annotations

import contextlib
import shlex
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

from dslm.cluster.hostfile import check_host_name

LOCALHOST = "localhost"
_CONNECT_SECONDS = 8  # a host that is off or unplugged is noticed by then
_MOST_AT_ONCE = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Transport:
    """A way to run a command on a host."""

    name: str
    command: Callable[[str, Sequence[str]], list[str]]  # host and arguments: the local command
    unreached: int | None = None  # its exit code when it could not reach the host, if it has one


def _ssh(host: str, argv: Sequence[str]) -> list[str]:
    options = {
        "BatchMode": "yes",  # never ask for a password or a new host's key
        "ConnectTimeout": str(_CONNECT_SECONDS),
        "ServerAliveInterval": "2",
        "ServerAliveCountMax": "3",
        "LogLevel": "ERROR",
    }
    given = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    return ["ssh", "-T", *given, "--", host.strip("[]"), shlex.join(argv)]


SSH = Transport(name="ssh", command=_ssh, unreached=255)  # ssh(1), EXIT STATUS


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """The result of a command on a host; `exit_code` is None after a timeout."""

    host: str
    exit_code: int | None
    stdout: str
    stderr: str
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether it ended well."""
        return self.exit_code == 0


def remote_argv(host: str, argv: Sequence[str], transport: Transport = SSH) -> list[str]:
    """Return the local command that runs `argv` on a host.

    Raises:
        ValueError: the name isn't one of a host.
    """
    check_host_name(host)
    if host == LOCALHOST:
        return list(argv)
    return transport.command(host, argv)


def run_on(
    host: str, argv: Sequence[str], *, said: str = "", seconds: float, transport: Transport = SSH
) -> Answer:
    """Run a command on one host, with this text as its stdin, for at most `seconds`."""
    with Remote(host, argv, transport) as remote:
        remote.say(said)
        return remote.end(seconds)


def run_everywhere(
    hosts: Iterable[str],
    argv: Sequence[str],
    *,
    said: str = "",
    seconds: float,
    transport: Transport = SSH,
) -> list[Answer]:
    """Run a command on all hosts at once; the answers stand in the order of the hosts."""
    names = list(hosts)
    if not names:
        return []
    with ThreadPoolExecutor(min(len(names), _MOST_AT_ONCE)) as pool:
        return list(
            pool.map(
                lambda name: run_on(name, argv, said=said, seconds=seconds, transport=transport),
                names,
            )
        )


class Remote:
    """One running command on a host; a context manager, so that it never outlives its use here."""

    def __init__(self, host: str, argv: Sequence[str], transport: Transport = SSH) -> None:
        self.host = host
        self._start = time.monotonic()
        self._timed_out = False
        # a file, so that no amount of it can block the command
        self._stderr = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - closed in __exit__
        self._process = subprocess.Popen(
            remote_argv(host, argv, transport),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C at the terminal is for dslm to decide
        )

    def __enter__(self) -> Remote:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._stderr.close()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def say(self, text: str) -> None:
        """Write to the command's stdin; nothing happens when it has ended already."""
        assert self._process.stdin is not None  # noqa: S101 - Popen was asked for it
        with contextlib.suppress(OSError):
            self._process.stdin.write(text)
            self._process.stdin.flush()

    def line(self, seconds: float) -> str:
        """Read one line; empty if the command ends, or exceeds `seconds`, first."""
        assert self._process.stdout is not None  # noqa: S101 - Popen was asked for it
        with self._limit(seconds):
            return self._process.stdout.readline()

    def end(self, seconds: float) -> Answer:
        """Close its stdin and wait for its end; the answer holds the output that `line` left."""
        assert self._process.stdin is not None  # noqa: S101 - Popen was asked for it
        assert self._process.stdout is not None  # noqa: S101
        with self._limit(seconds):
            with contextlib.suppress(OSError):
                self._process.stdin.close()
            stdout = self._process.stdout.read()
            code = self._process.wait()
        self._stderr.seek(0)
        return Answer(
            host=self.host,
            exit_code=None if self._timed_out else code,
            stdout=stdout,
            stderr=self._stderr.read(),
            seconds=time.monotonic() - self._start,
        )

    @contextlib.contextmanager
    def _limit(self, seconds: float) -> Iterator[None]:
        def too_long() -> None:
            self._timed_out = True
            self._process.kill()

        timer = threading.Timer(max(seconds, 0.0), too_long)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
