"""The identity of this rank, its log, and its last report to the supervisor.

Imports nothing heavy, so that even a failure to import torch ends in the rank's own log.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dslm import environment
from dslm.errors import RunFailed
from dslm.host.cores import usable_cores
from dslm.run.attempt import Attempt, path_of_word, read_attempt
from dslm.run.directory import RunDirectory
from dslm.run.endings import report_of
from dslm.run.events import Event, Stamp, stamp, write_event
from dslm.worker.extension_builds import build_folder, program_path
from dslm.worker.guard import Guard


@dataclass(frozen=True, kw_only=True, slots=True)
class Rank:
    """One rank of one attempt."""

    rank: int
    local_rank: int
    world_size: int
    run: RunDirectory
    attempt: Attempt
    guard: Guard

    def stamp(self) -> Stamp:
        """Return the beginning of an event that happens now."""
        return stamp(self.attempt.number)

    def record(self, event: Event) -> None:
        """Record an event of this rank, in the run directory wherever that is."""
        if self.attempt.host_of(self.rank) in self.attempt.hosts_without_run_dir:
            self.guard.event(event)
        else:
            write_event(self.run.events, event)


def join(arguments: Sequence[str]) -> Rank:
    """Become a rank: say hello to the supervisor and take on the attempt's environment.

    Args:
        arguments: `--run WORD --attempt N`, see `dslm.run.attempt.path_word`.

    Raises:
        RunFailed: this process was not started by dslm, or the supervisor can't be reached.
    """
    match list(arguments):
        case ["--run", word, "--attempt", number]:
            run = RunDirectory(path_of_word(word))
        case _:
            raise RunFailed("this module is started by `dslm train`, not by hand")
    file = run.attempt(int(number))
    if not os.access(file, os.R_OK):
        raise RunFailed(f"{socket.gethostname()} does not see the run directory: no {file}")
    attempt = read_attempt(run, int(number))
    missing = [name for name in attempt.rank_variables if name not in os.environ]
    if missing:
        raise RunFailed(f"no launcher has started this rank: {', '.join(missing)} is not set")
    rank, local_rank, world_size = (int(os.environ[name]) for name in attempt.rank_variables)
    guard = Guard(attempt, rank)
    try:
        _take_on(attempt, rank, local_rank)
    except BaseException as failure:
        guard.end(1, report_of(failure))
        raise
    return Rank(
        rank=rank,
        local_rank=local_rank,
        world_size=world_size,
        run=run,
        attempt=attempt,
        guard=guard,
    )


def _take_on(attempt: Attempt, rank: int, local_rank: int) -> None:
    """Take on the attempt's environment and folder."""
    os.environ.update(attempt.environment_of(rank))
    # so that the ranks of a host don't fight over its cores
    threads = max(1, usable_cores() // dict(attempt.hosts)[attempt.host_of(rank)])
    os.environ.setdefault(environment.THREADS, str(threads))
    os.environ[environment.EXTENSIONS] = str(build_folder(os.environ))
    os.environ[environment.PATH] = program_path(os.environ)
    # DeepSpeed and torch read no other names
    values = (rank, local_rank, attempt.world_size)
    os.environ.update(zip(environment.RANK_VARIABLES, map(str, values), strict=True))
    os.environ["MASTER_ADDR"] = attempt.master_address
    os.environ["MASTER_PORT"] = str(attempt.master_port)
    if Path(attempt.folder).is_dir():
        os.chdir(attempt.folder)


def live(rank: Rank, work: Callable[[], None]) -> None:
    """Do the work of a rank, and tell the supervisor the truth about its end.

    A rank that fails ends at once: a clean end would wait for ranks that wait for it.
    """
    _redirect(rank.run.rank_log(rank.attempt.number, rank.rank))
    # a crash in native code leaves its stack there
    faulthandler.enable()
    # `kill -USR1 PID` writes the stacks of all threads into the rank's log
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    # the supervisor alone decides what Ctrl-C means; the terminal sends it to every process
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if rank.attempt.stopped_by_signal:
        signal.signal(signal.SIGTERM, lambda number, frame: rank.guard.want_stop())
    try:
        work()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        report = None
        if isinstance(end.code, str):
            _print(f"{end.code}\n")  # as Python itself does
    except BaseException as failure:  # noqa: BLE001 - whatever it is, it is written down
        _print(traceback.format_exc())
        code, report = 1, report_of(failure)
    else:
        code, report = 0, None
    _print("")
    rank.guard.end(code, report)
    if code:
        os._exit(code)


def _print(text: str) -> None:
    """Add to the rank's log; a full disk must not keep the supervisor from the report."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    with suppress(OSError):
        sys.stderr.write(text)
        sys.stderr.flush()


def release_shared_memory(rank: int) -> None:
    """Give back the name of the memory that DeepSpeed shares between the ranks of a CPU host.

    DeepSpeed never does, so every run would leave 66 MiB a rank in /dev/shm. Once all ranks have
    opened it the name isn't needed, and the memory goes with the last process, however that ends.
    Source of the name: `shm_initialize` in deepspeed/ops/csrc/cpu/comm/shm.cpp.
    """
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    name = f"deepspeed_allreduce_buffer_{os.getuid()}_{address}_{port}_{rank}"
    Path("/dev/shm", name).unlink(missing_ok=True)  # noqa: S108 - where shm_open(3) keeps it


def _redirect(log: Path) -> None:
    """Send what this process and its libraries print to the rank's log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
