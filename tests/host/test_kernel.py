"""The kernel's word on a killed process is read where it can be, and never guessed."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dslm.host.kernel import cgroup_kills, killed_for_memory
from tests.support.kernel import reads_kernel_log

HOG = """
import pathlib, sys
pathlib.Path(sys.argv[1]).write_text(str(__import__("os").getpid()))
hog = [bytearray(1 << 20) for _ in range(300)]
"""


@reads_kernel_log
def test_a_process_that_the_kernel_kills_for_memory_is_named(small_group: Path) -> None:
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    process = subprocess.Popen([sys.executable, "-c", HOG, str(small_group / "cgroup.procs")])
    assert process.wait() == -9
    word = killed_for_memory([process.pid], since=before - 1)
    assert word.killed
    assert f"Killed process {process.pid}" in word.said
    # it happened before: it is not the word on something that started later
    later = time.clock_gettime(time.CLOCK_BOOTTIME) + 3600
    assert not killed_for_memory([process.pid], since=later).killed


def test_without_the_kernels_log_nothing_is_said_of_a_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(path: str, flags: int) -> int:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), path)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refused)
        word = killed_for_memory([os.getpid()], since=0)
    assert word.killed is None
    assert word.said == "the kernel's log can't be read (Operation not permitted)"


def test_nobody_is_said_to_have_been_killed_who_was_not() -> None:
    word = killed_for_memory([os.getpid()], since=0, kills_before=cgroup_kills())
    assert not word.killed
    assert word.said


def test_a_kill_that_the_cgroup_counts_is_told_although_nobody_is_named() -> None:
    counted = cgroup_kills()
    if counted is None:
        pytest.skip("the memory cgroup has no counter here")
    word = killed_for_memory([2**22 + 1], since=1e12, kills_before=counted - 1)
    assert word.killed
    assert "1 process " in word.said
