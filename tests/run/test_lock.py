"""A run directory has one owner at a time; the dead don't own anything."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dslm.errors import OptionError
from dslm.run.directory import RunDirectory
from dslm.run.documents import FORMAT
from dslm.run.lock import DEAD_SECONDS, own, owner_of
from tests.processes import HANGS

_HOLD = """
import sys, time
from pathlib import Path
import dslm.run.lock as lock
{before}
with lock.own(Path(sys.argv[1])) as hold:
    print("before", hold.before.pid if hold.before else None, flush=True)
    time.sleep(120)
"""
_NO_KERNEL_LOCKS = """
import errno, fcntl
def none(handle, kind):
    raise OSError(errno.ENOLCK, "No locks available")
fcntl.flock = none
"""
_OTHER_KERNEL = "lock._boot = lambda: 'another kernel'; lock.socket.gethostname = lambda: 'w9'"


class Holder:
    """A process that owns a run directory."""

    def __init__(self, folder: Path, before: str = "") -> None:
        code = _HOLD.format(before=before)
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def said(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "runs" / "mine")


@pytest.fixture
def holders() -> Iterator[list[Holder]]:
    started: list[Holder] = []
    yield started
    for holder in started:
        holder.kill()


def _start(holders: list[Holder], run: RunDirectory, before: str = "") -> Holder:
    holders.append(Holder(run.path, before))
    return holders[-1]


def _refused(run: RunDirectory) -> OptionError:
    with pytest.raises(OptionError) as refused, own(run.path):
        pass
    return refused.value


def _pass_time(run: RunDirectory, seconds: float) -> None:
    before = run.lock.stat().st_mtime - seconds
    os.utime(run.lock, (before, before))


@pytest.mark.parametrize("before", ["", _NO_KERNEL_LOCKS], ids=["kernel locks", "no kernel locks"])
def test_a_second_owner_is_refused_and_told_who_the_first_is(
    run: RunDirectory, holders: list[Holder], before: str
) -> None:
    first = _start(holders, run, before)
    assert first.said() == "before None"
    if before:
        second = _start(holders, run, before)
        assert second.process.wait(HANGS) == 1
        assert second.process.stderr is not None
        said = second.process.stderr.read()
    else:
        refused = _refused(run)
        said = refused.message
        assert refused.exit_code == 2
        assert "dslm runs stop" in refused.hint
        owner = owner_of(run.path)
        assert owner is not None
        assert owner.pid == first.process.pid
    assert f"process {first.process.pid} on {os.uname().nodename}" in said
    assert first.process.poll() is None


@pytest.mark.parametrize("before", ["", _NO_KERNEL_LOCKS], ids=["kernel locks", "no kernel locks"])
def test_a_dead_owner_on_this_host_is_taken_over_at_once_and_named(
    run: RunDirectory, holders: list[Holder], before: str
) -> None:
    first = _start(holders, run, before)
    first.said()
    first.kill()
    assert run.lock.exists()
    assert _start(holders, run, before).said() == f"before {first.process.pid}"


def test_an_owner_of_another_kernel_lives_as_long_as_it_beats(
    run: RunDirectory, holders: list[Holder]
) -> None:
    """As over a network file system whose locks don't reach another host."""
    first = _start(holders, run, _NO_KERNEL_LOCKS + _OTHER_KERNEL)
    first.said()
    assert "on w9" in _refused(run).message
    _pass_time(run, DEAD_SECONDS * 2)
    deadline = time.monotonic() + HANGS
    while owner_of(run.path) is None:  # it touches its lock again
        assert time.monotonic() < deadline
        time.sleep(0.1)
    first.kill()
    assert "on w9" in _refused(run).message  # it can't be known yet
    _pass_time(run, DEAD_SECONDS + 1)
    assert owner_of(run.path) is None
    with own(run.path) as hold:
        assert hold.before is not None
        assert hold.before.host == "w9"


def test_an_owner_that_stood_still_and_lost_its_run_notices_when_it_goes_on(
    run: RunDirectory, holders: list[Holder]
) -> None:
    first = _start(holders, run, _NO_KERNEL_LOCKS + _OTHER_KERNEL)
    first.said()
    first.process.send_signal(signal.SIGSTOP)
    _pass_time(run, DEAD_SECONDS + 1)
    with own(run.path):
        first.process.send_signal(signal.SIGCONT)
        assert first.process.wait(HANGS) == -signal.SIGTERM
        assert first.process.stderr is not None
        assert "was taken over by process" in first.process.stderr.read()
        owner = owner_of(run.path)
        assert owner is not None
        assert owner.pid == os.getpid()


def test_of_many_that_start_at_once_one_has_it(run: RunDirectory, holders: list[Holder]) -> None:
    for _ in range(6):
        _start(holders, run)
    deadline = time.monotonic() + HANGS
    while sum(holder.process.poll() is None for holder in holders) > 1:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    owner = owner_of(run.path)
    assert owner is not None
    assert [h.process.pid for h in holders if h.process.poll() is None] == [owner.pid]
    assert [h.process.poll() for h in holders].count(1) == 5


def test_one_after_the_other_each_has_it(run: RunDirectory) -> None:
    owned = []

    def often() -> None:
        done = 0
        while done < 20:
            try:
                with own(run.path):
                    owned.append(threading.get_ident())
                    done += 1
            except OptionError:
                continue

    threads = [threading.Thread(target=often) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(owned) == 60


def test_one_that_waits_has_it_when_the_other_is_done(
    run: RunDirectory, holders: list[Holder]
) -> None:
    first = _start(holders, run)
    first.said()
    waited = []

    def waiting() -> None:
        waited.append(first)
        first.kill()

    with own(run.path, waiting=waiting) as hold:
        assert waited == [first]
        assert hold.before is not None
        assert hold.before.pid == first.process.pid


def test_nothing_is_left_where_nothing_was_started(run: RunDirectory, tmp_path: Path) -> None:
    with own(run.path):
        assert json.loads(run.lock.read_text())["format"] == FORMAT
    assert list(tmp_path.iterdir()) == []
    run.path.mkdir(parents=True)
    run.manifest.write_text("{}")
    with own(run.path):
        pass
    assert list(run.path.iterdir()) == [run.manifest]


@pytest.mark.parametrize("content", [b"", b"{", b"\0\0", b"[]", b'{"pid": "x"}'])
def test_a_lock_that_says_nothing_is_nobodys(run: RunDirectory, content: bytes) -> None:
    run.path.mkdir(parents=True)
    run.lock.write_bytes(content)
    assert owner_of(run.path) is None
    with own(run.path) as hold:
        assert hold.before is None
