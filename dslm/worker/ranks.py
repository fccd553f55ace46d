"""Who this rank is, and what it leaves behind: its log, its status file.

Imports nothing heavy, so that even a failure to import torch ends in the rank's own log.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dslm import environment
from dslm.errors import DslmError
from dslm.files import write_json
from dslm.run.directory import RunDirectory
from dslm.run.kernel import cgroup_kills


@dataclass(frozen=True, kw_only=True, slots=True)
class Rank:
    """One rank of one attempt."""

    rank: int
    local_rank: int
    world_size: int
    run: RunDirectory
    attempt: int


def this_rank() -> Rank:
    """Read who this process is from the variables of whichever launcher started it."""
    names = next(
        (names for names in environment.RANK_VARIABLES if all(n in os.environ for n in names)), None
    )
    if names is None or environment.RUN not in os.environ:
        raise RuntimeError("this module is started by `dslm train`, not by hand")
    rank, local_rank, world_size = (int(os.environ[name]) for name in names)
    # DeepSpeed and torch read the first set of names only
    for name, value in zip(
        environment.RANK_VARIABLES[0], (rank, local_rank, world_size), strict=True
    ):
        os.environ[name] = str(value)
    return Rank(
        rank=rank,
        local_rank=local_rank,
        world_size=world_size,
        run=RunDirectory(Path(os.environ[environment.RUN])),
        attempt=int(os.environ[environment.ATTEMPT]),
    )


def live(rank: Rank, work: Callable[[], None]) -> None:
    """Do the work of a rank, and leave the truth about its end in its status file.

    A rank that fails ends at once: a clean end would wait for ranks that wait for it.
    """
    _redirect(rank.run.rank_log(rank.attempt, rank.rank))
    # a crash in native code leaves its stack there
    faulthandler.enable()
    # `kill -USR1 PID` writes the stacks of all threads into the rank's log
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    # the supervisor alone decides what Ctrl-C means; the terminal sends it to every process
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    status: dict[str, Any] = {
        "rank": rank.rank,
        "pid": os.getpid(),
        "start_time": start_time(os.getpid()),
        "host": socket.gethostname(),
        "kills_before": cgroup_kills(),  # what is counted later happened to this attempt
    }
    path = rank.run.rank_status(rank.attempt, rank.rank)
    write_json(path, status)
    try:
        work()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        error = None if not code else f"it called sys.exit({end.code!r})"
    except BaseException as failure:  # noqa: BLE001 - whatever it is, it is written down
        traceback.print_exc()
        code, error = 1, _in_a_line(failure)
    else:
        code, error = 0, None
    write_json(path, {**status, "exit_code": code, "ended": time.time(), "error": error})
    if code:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def release_shared_memory(rank: Rank) -> None:
    """Give back the name of the memory that DeepSpeed shares between the ranks of a CPU host.

    DeepSpeed never does, so every run would leave 66 MiB a rank in /dev/shm. Once all ranks have
    opened it the name isn't needed, and the memory goes with the last process, however that ends.
    Source of the name: `shm_initialize` in deepspeed/ops/csrc/cpu/comm/shm.cpp.
    """
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    name = f"deepspeed_allreduce_buffer_{os.getuid()}_{address}_{port}_{rank.rank}"
    Path("/dev/shm", name).unlink(missing_ok=True)  # noqa: S108 - where shm_open(3) keeps it


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since boot (proc(5), field 22 of stat); None: gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])


def _redirect(log: Path) -> None:
    """Send what this process and its libraries print to the rank's log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)


def _in_a_line(failure: BaseException) -> str:
    if isinstance(failure, DslmError):
        place = f"{failure.where}: " if str(failure.where) else ""
        hint = f" ({failure.hint})" if failure.hint else ""
        return f"{place}{failure.message}{hint}"
    lines = str(failure).strip().splitlines()
    return f"{type(failure).__name__}: {lines[0] if lines else ''}".rstrip(": ")
