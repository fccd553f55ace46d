"""Processes of a run, wherever they are: how one is, how they are ended, who ended them.

On this host they are seen directly, on others a fixed command is run there; what it is given are
numbers.
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from dslm.host import processes
from dslm.host.kernel import OomVerdict, killed_for_memory
from dslm.launch.control import RankState
from dslm.reach.remote import Transport, run_on
from dslm.run import timings

_ANSWER_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteProcesses:
    """The processes of an attempt; `transport` None: all of them are on this host."""

    transport: Transport | None = None

    def state(self, rank: RankState) -> str:
        """`running`, `stopped` (by a signal), `gone`, or `out of reach`."""
        if self.transport is None:
            return processes.state(rank.pid, rank.start_time)
        argv = _argv("state", [(rank.pid, rank.start_time)])
        answer = run_on(rank.host, argv, seconds=_ANSWER_SECONDS, transport=self.transport)
        return answer.stdout.strip() if answer.ok else "out of reach"

    def kill(self, ranks: Iterable[RankState], *, parents: bool) -> None:
        """End what is left of ranks, and of what started them, on all other hosts at once.

        Args:
            ranks: all that have come.
            parents: whether the process that started a rank belongs to the run alone, too.
        """
        transport = self.transport
        if transport is None:
            return  # the launcher's descendants are ours
        named: dict[str, set[tuple[int, int]]] = {}
        for rank in ranks:
            mine = named.setdefault(rank.host, set())
            mine.add((rank.pid, rank.start_time))
            if parents and rank.parent_start_time:
                mine.add((rank.parent_pid, rank.parent_start_time))
        if not named:
            return

        def end(host: str) -> None:
            run_on(
                host,
                _argv("kill", named[host]),
                seconds=timings.REMOTE_SECONDS,
                transport=transport,
            )

        with ThreadPoolExecutor(min(64, len(named))) as pool:
            list(pool.map(end, named))

    def oom_verdict(
        self, host: str, pids: Collection[int], *, since: float, kills_before: int | None
    ) -> OomVerdict:
        """Ask a host's kernel about processes that were killed there.

        Args:
            host: which.
            pids: a process, and others that belong to it.
            since: seconds since that host's boot; what is older in its log concerns others.
            kills_before: the cgroup's counter when the process started; used on this host.
        """
        if self.transport is not None:
            argv = [
                sys.executable,
                "-P",
                "-m",
                "dslm.host.kernel",
                str(since),
                *map(str, sorted(pids)),
            ]
            answer = run_on(host, argv, seconds=_ANSWER_SECONDS, transport=self.transport)
            with suppress(ValueError, TypeError):  # it gave no answer
                return OomVerdict(**json.loads(answer.stdout))
        elif host in ("localhost", socket.gethostname()):
            return killed_for_memory(pids, since=since, kills_before=kills_before)
        ask = f"`ssh {host} dmesg -T | grep -i 'killed process'` does"
        return OomVerdict(killed=None, said=f"its kernel's log can't be read from here: {ask}")


def _argv(verb: str, wanted: Iterable[tuple[int, int]]) -> list[str]:
    words = [f"{pid}:{started}" for pid, started in sorted(wanted)]
    return [sys.executable, "-P", "-m", "dslm.host.processes", verb, *words]
