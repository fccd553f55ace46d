"""One owner at a time: who trains in a run directory, on any host, and whether they still live.

The owner holds a kernel lock on `RUN/lock`, and writes into it who they are: host, process id and
start time, since when. While they live they touch it every two seconds. Within one kernel the lock
is the truth: it goes with its process, however that ends. Another kernel's lock may not be seen
here (some network file systems have none, or keep it to one host), so an owner on a host of another
kernel is alive as long as the file is touched, by the clock of the file system itself.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from dslm.codec import Count, Malformed, Time, decode, encode, line_of
from dslm.errors import OptionError, Where
from dslm.host.processes import start_time
from dslm.run.directory import RunDirectory
from dslm.run.documents import Document
from dslm.run.events import now

BEAT_SECONDS = 2.0
DEAD_SECONDS = 30.0  # without a beat: fifteen were missed
_PATIENCE_SECONDS = 0.1  # somebody may only be asking whether it is held
_SETTLE_SECONDS = 0.4  # without kernel locks: for another one's name to arrive
_WAITING_SECONDS = 0.5
_BOOT = Path("/proc/sys/kernel/random/boot_id")
# flock(2), and what network file systems say that have no locks
_NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL})


@dataclass(frozen=True, kw_only=True, slots=True)
class Owner(Document):
    """The process that trains in a run directory."""

    what: ClassVar[str] = "the lock of the run"
    host: str
    boot: str  # names the kernel
    pid: Count
    start_time: Count | None  # clock ticks since the kernel started
    since: Time
    token: str  # of this very hold

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"process {self.pid} on {self.host}, since {since}"


@dataclass(slots=True)
class Hold:
    """A run directory that is ours; `before` is a dead owner that it was taken over from."""

    before: Owner | None = None
    lost: threading.Event = field(default_factory=threading.Event)


@contextmanager
def own(
    folder: Path,
    *,
    waiting: Callable[[], None] | None = None,
    on_lost: Callable[[], None] | None = None,
) -> Iterator[Hold]:
    """Be the one owner of a run directory, which is made if need be, until the block ends.

    Args:
        folder: the run directory.
        waiting: called every half second as long as somebody else owns it; by default that is an
            error.
        on_lost: called when another host took the lock over, since this process had stood still
            for too long; by default this process exits at once.

    Raises:
        OptionError: somebody else owns it, or it can't be written.
    """
    run = RunDirectory(folder.absolute())
    made = [path for path in (run.path, *run.path.parents) if not path.exists()]
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        handle, by_kernel = _locked(run, waiting)
    except OSError as failure:
        _remove_empty(made)
        raise OptionError(
            f"the run directory can't be written: {failure.strerror}",
            where=Where(file=folder),
            hint="choose another with `-o DIR`",
        ) from failure
    owner = _myself()
    ended = threading.Event()
    try:
        hold = Hold(before=_read(run.lock))  # whoever is in there has died
        _write(handle, owner)
        if not by_kernel:
            _check_mine(run, owner)
        beats = threading.Thread(
            target=_beat,
            args=(run, handle, owner, hold, ended, on_lost or _end_at_once),
            name="dslm-lock",
            daemon=True,
        )
        beats.start()
        try:
            yield hold
        finally:
            ended.set()
            beats.join()
            if not hold.lost.is_set():
                run.lock.unlink(missing_ok=True)
    finally:
        os.close(handle)
        if not run.manifest.exists():  # nothing was started in it
            _remove_empty(made)


def owner_of(folder: Path) -> Owner | None:
    """Return the owner of a run directory; None if there is none, or it has died."""
    run = RunDirectory(folder.absolute())
    owner = _read(run.lock)
    try:
        handle = os.open(run.lock, os.O_RDONLY)
    except OSError:
        return None
    try:
        held = _flock(handle, fcntl.LOCK_SH)
    finally:
        os.close(handle)
    return (owner or _UNKNOWN) if _lives(run, owner, held) else None


def refuse(folder: Path, owner: Owner) -> OptionError:
    """Return the error for somebody who wants a run directory that another process owns."""
    return OptionError(
        f"another dslm is training in this run directory: {owner}",
        where=Where(file=folder),
        hint=f"follow it with `dslm runs watch {folder}`, stop it with `dslm runs stop {folder}`, "
        "or train into another folder with `-o DIR`",
    )


def _locked(run: RunDirectory, waiting: Callable[[], None] | None) -> tuple[int, bool]:
    """An open lock file that nobody else has, and whether the kernel says so.

    Waits a moment for somebody who only asks who has it.
    """
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        handle = os.open(run.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            held = _flock(handle, fcntl.LOCK_EX)
            owner = _read(run.lock)
            if not _lives(run, owner, held):
                # the last owner may have removed the file between opening and locking it
                if _is_the_file(handle, run.lock):
                    return handle, held is False
            elif time.monotonic() > deadline:
                if waiting is None:
                    raise refuse(run.path, owner or _UNKNOWN)
                waiting()
                time.sleep(_WAITING_SECONDS)
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
        time.sleep(0.02)


def _check_mine(run: RunDirectory, owner: Owner) -> None:
    """Where there are no kernel locks two may have found it free: the last to write has it."""
    time.sleep(_SETTLE_SECONDS)
    found = _read(run.lock)
    if found is not None and found.token != owner.token:
        raise refuse(run.path, found)


def _flock(handle: int, kind: int) -> bool | None:
    """Try a kernel lock: whether another holds it; None where the file system has no locks."""
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as failure:
        if failure.errno in _NO_LOCKS:
            return None
        raise
    return False


def _lives(run: RunDirectory, owner: Owner | None, held: bool | None) -> bool:
    """Return whether an owner is alive, given the kernel's answer about the lock."""
    if held:
        return True
    if owner is None:
        return False
    here = owner.boot == _boot()
    if here and held is False:
        return False
    if here and owner.host == socket.gethostname():
        return owner.start_time is not None and start_time(owner.pid) == owner.start_time
    return _silent_seconds(run) < DEAD_SECONDS


def _silent_seconds(run: RunDirectory) -> float:
    """Return the seconds since the lock was touched, by the clock of the file system."""
    try:
        with tempfile.NamedTemporaryFile(prefix=".clock-", dir=run.path) as clock:
            return Path(clock.name).stat().st_mtime - run.lock.stat().st_mtime
    except FileNotFoundError:
        return float("inf")  # it has been removed meanwhile


def _beat(
    run: RunDirectory,
    handle: int,
    owner: Owner,
    hold: Hold,
    ended: threading.Event,
    on_lost: Callable[[], None],
) -> None:
    """Touch the lock until the end; notice when it has become somebody else's."""
    while not ended.wait(BEAT_SECONDS):
        found = _read(run.lock)
        if found is not None and found.token != owner.token:
            hold.lost.set()
            sys.stderr.write(f"dslm: {run.path} was taken over by {found}: this process ends\n")
            on_lost()
            return
        with suppress(OSError):  # a full or hanging disk shows elsewhere
            os.utime(handle)


def _end_at_once() -> None:
    for _ in range(2):  # the first asks, the second insists
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)


def _myself() -> Owner:
    return Owner(
        host=socket.gethostname(),
        boot=_boot(),
        pid=os.getpid(),
        start_time=start_time(os.getpid()),
        since=now(),
        token=secrets.token_hex(8),
    )


_UNKNOWN = Owner(host="?", boot="", pid=0, start_time=None, since=0, token="")


def _boot() -> str:
    try:
        return _BOOT.read_text(encoding="ascii").strip()
    except OSError:
        return socket.gethostname()


def _read(lock: Path) -> Owner | None:
    """Read the owner in the lock; None if it can't be read."""
    try:
        return decode(Owner, lock.read_bytes())
    except (OSError, Malformed):
        return None


def _write(handle: int, owner: Owner) -> None:
    """Write who we are, in place: another file would have another lock."""
    content = line_of(encode(owner)).encode() + b"\n"
    os.ftruncate(handle, 0)
    os.pwrite(handle, content, 0)
    os.fsync(handle)


def _is_the_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _remove_empty(folders: list[Path]) -> None:
    """Remove the folders that were made for nothing, the innermost first."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()
