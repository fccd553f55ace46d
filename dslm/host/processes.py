"""Processes by pid and start time: together they name one for good, a pid alone does not.

`python -m dslm.host.processes kill PID:START …` kills those processes of this host with everything
below them: that is what a supervisor runs on other hosts. A process that has gone, or whose pid is
somebody else's by now, is left alone.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

_GONE_SECONDS = 3.0


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None: it has ended.

    Source: proc(5), field 22 of /proc/PID/stat.
    """
    fields = _stat(pid)
    return None if fields is None or fields[0] == "Z" else int(fields[19])


def state(pid: int, started: int) -> str:
    """`running`, `stopped` (by a signal or a debugger) or `gone`."""
    fields = _stat(pid)
    if fields is None or fields[0] == "Z" or int(fields[19]) != started:
        return "gone"
    return "stopped" if fields[0] in "Tt" else "running"


def kill_trees(wanted: Iterable[tuple[int, int]]) -> None:
    """Kill processes, by pid and start time, and all that they started, with SIGKILL."""
    victims: list[psutil.Process] = []
    for pid, started in wanted:
        if start_time(pid) != started:
            continue
        try:
            process = psutil.Process(pid)
            victims += [process, *process.children(recursive=True)]
        except psutil.Error:
            continue  # it has ended meanwhile
    kill(victims)


def kill(victims: Iterable[psutil.Process], *, seconds: float = _GONE_SECONDS) -> None:
    """Kill processes with SIGKILL and wait until they are gone, for at most `seconds`."""
    victims = [process for process in victims if process.pid != os.getpid()]
    for process in victims:
        send(process, signal.SIGKILL)
    psutil.wait_procs(victims, timeout=seconds)


def send(process: psutil.Process, number: int) -> None:
    """Send a signal; nothing happens when the process has ended already."""
    try:
        process.send_signal(number)
    except psutil.Error:
        return


def _stat(pid: int) -> list[str] | None:
    try:
        content = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return content.rpartition(")")[2].split()


def named(words: Iterable[str]) -> list[tuple[int, int]]:
    """Pids and start times of words `PID:START`."""
    return [(int(pid), int(started)) for pid, _, started in (w.partition(":") for w in words)]


def main(arguments: list[str]) -> None:
    """`state PID:START …` prints how each process is; `kill …` kills them first and all below."""
    verb, *words = arguments
    wanted = named(words)
    if verb == "kill":
        kill_trees(wanted)
        deadline = time.monotonic() + _GONE_SECONDS
        while any(state(*one) != "gone" for one in wanted) and time.monotonic() < deadline:
            time.sleep(0.1)
    sys.stdout.write(" ".join(state(*one) for one in wanted) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
