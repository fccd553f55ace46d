"""The kernel's record of processes that it killed because memory was full.

Two sources, both readable only where the host allows it: the kernel's log (/dev/kmsg), which names
the process, and the counter of this process's memory cgroup, which only says that it happened.
Reads, never guesses: what can't be read is said to be so. Knows nothing of runs.

`python -m dslm.host.kernel SINCE PID …` says it as a line of JSON: what a supervisor runs on
another host. The counter is not asked there: the ranks were in another cgroup than that command.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path

_KILLED = re.compile(r"^\d+,\d+,(\d+),[^;]*;(.*[Oo]ut of memory: Killed process (\d+) .*)$")
_RECORD_BYTES = 8192  # the kernel hands out one record a read (Documentation/ABI/testing/dev-kmsg)


@dataclass(frozen=True, kw_only=True, slots=True)
class OomVerdict:
    """The kernel's word: `killed` it for memory, or None when it can't be known."""

    killed: bool | None
    said: str


def killed_for_memory(
    pids: Collection[int], *, since: float, kills_before: int | None = None
) -> OomVerdict:
    """Return whether this host's kernel killed one of the processes because memory was full.

    Args:
        pids: the process, and others that belong to it.
        since: seconds since boot; what is older in the log concerns others.
        kills_before: the cgroup's counter when the process started; None: not known.
    """
    try:
        lines = _kernel_log(since)
    except OSError as failure:
        return _by_counter(kills_before, f"the kernel's log can't be read ({failure.strerror})")
    for pid, line in lines:
        if pid in pids:
            return OomVerdict(killed=True, said=f"kernel: {line}")
    found = _by_counter(kills_before, "the kernel's log names none of its processes")
    return found if found.killed else OomVerdict(killed=False, said=found.said)


def cgroup_kills() -> int | None:
    """Count the kills for memory in this memory cgroup so far; None if that can't be read.

    Source: Documentation/admin-guide/cgroup-v2.rst, memory.events; cgroup-v1/memory.rst, 10.
    """
    for file in _counters():
        try:
            found = re.search(r"^oom_kill (\d+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
        except OSError:
            continue
        if found:
            return int(found[1])
    return None


def _by_counter(before: int | None, otherwise: str) -> OomVerdict:
    now = cgroup_kills()
    if before is None or now is None:
        return OomVerdict(killed=None, said=otherwise)
    if now > before:
        many = f"{now - before} process{'es' if now - before > 1 else ''}"
        return OomVerdict(
            killed=True,
            said=f"Out of memory: Killed process of this cgroup ({many} since this one started)",
        )
    return OomVerdict(
        killed=False, said=f"{otherwise}; its memory cgroup counts no kill since it started"
    )


def _counters() -> list[Path]:
    """The files that may hold the counter, for cgroup v2 and v1, mounted where they usually are."""
    root = Path("/sys/fs/cgroup")
    try:
        groups = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for group in groups:
        _, controllers, path = group.split(":", 2)
        if controllers == "":
            found.append(root / path.lstrip("/") / "memory.events")
        elif "memory" in controllers.split(","):
            found.append(root / "memory" / path.lstrip("/") / "memory.oom_control")
    # inside a container the path is that of the host, but the container's own group is mounted here
    return [*found, root / "memory.events", root / "memory" / "memory.oom_control"]


def _kernel_log(since: float) -> list[tuple[int, str]]:
    """Pid and text of every process killed for memory, from `since` seconds after boot on."""
    found: list[tuple[int, str]] = []
    log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    try:
        while True:
            try:
                record = os.read(log, _RECORD_BYTES).decode("utf-8", errors="replace")
            except BlockingIOError:
                return found
            except BrokenPipeError:
                continue  # the record was overwritten while it was read: on to the next
            match = _KILLED.match(record.partition("\n")[0])
            if match and int(match[1]) / 1e6 >= since:
                found.append((int(match[3]), match[2]))
    finally:
        os.close(log)


def main(arguments: list[str]) -> None:
    """Print the kernel's word on processes of this host."""
    since, *pids = arguments
    word = killed_for_memory([int(pid) for pid in pids], since=float(since))
    sys.stdout.write(json.dumps(asdict(word)) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
