"""Why an attempt failed, in words: the rank that failed first, the cause, the way out, the log.

Reads the run directory and, for a process that was killed, the kernel of its host; the causes are
data, `failures.yaml`. What is not in it is said to be unknown, and shown as the first failed rank
told it. Starts and changes nothing.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from dslm.diagnose import logs
from dslm.diagnose.evidence import Evidence, device_memory, host_memory
from dslm.host.kernel import OomVerdict
from dslm.launch.remote_processes import RemoteProcesses
from dslm.launch.supervise import Outcome, read_rank_statuses
from dslm.run.directory import RunDirectory
from dslm.run.events import Error, now, read_events
from dslm.secrets import text_without_secrets
from dslm.units import render_bytes

_OWN = "bad-input"  # dslm's own errors carry their remedy
_KILLED = "killed"
_DEVICE_MEMORY = ("gpu-memory",)
_HOST_MEMORY = ("host-memory", "host-memory-killed", "slurm-memory", "data-worker-killed")
# What a batch system says in the launcher's log explains why a process was killed.
_BATCH = ("slurm-memory", "time-limit", "preempted", "slurm-node-failure")
_KERNEL_KNOWS = ("killed", "data-worker-killed", "data-worker")
# DeepSpeed's launcher, launch.py, sigkill_handler; under pdsh with the host before it.
_RETURN_CODE = re.compile(r"^(?:(\S+): )?.*exits with return code = (-?\d+)", re.MULTILINE)
_FULL_BYTES = 64 * 1024  # a log and a status file need less
_WORKER_PIDS = re.compile(r"DataLoader worker \(pid\(?s?\)? ?([\d, ]+)\)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """One entry of the catalogue; see the head of failures.yaml."""

    id: str
    pattern: str
    stage: str
    cause: str
    remedy: str
    source: str
    retry: bool
    follows: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Diagnosis:
    """What went wrong.

    Attributes:
        id: its entry in the catalogue; None: unknown.
        stage: where it happened, as the catalogue has it.
        cause: in words.
        said: the line that the rank itself, or the supervisor, had to say.
        remedy: what to do, in a line.
        ways: exact options or recipe lines that would help, the smallest first; mostly the remedy.
        facts: what else was found: numbers, the kernel's word.
        rank: which failed first; None: none of them, but the launcher or a host.
        host: where.
        step: the last one that was finished.
        log: the whole log, relative to the run directory.
        traceback: the first one, where the cause is unknown.
        followers: ranks that failed after it, because of it.
        retry: whether the same command may work the next time.
    """

    id: str | None
    stage: str | None
    cause: str
    said: str
    remedy: str
    ways: tuple[str, ...]
    facts: tuple[str, ...]
    rank: int | None
    host: str | None
    step: int
    log: str
    traceback: str
    followers: tuple[int, ...]
    retry: bool

    @property
    def known(self) -> bool:
        """Whether the catalogue has it."""
        return self.id is not None

    def event(self, attempt: int, *, noticed: float | None = None, again: bool = False) -> Error:
        """As the run's error event, from which it can be shown again."""
        return Error(time=now(), attempt=attempt, noticed=noticed, again=again, **self.fields())

    def fields(self) -> dict[str, Any]:
        """As the fields of the run's error event, from which it can be shown again."""
        message = f"{self.cause}: {self.said}" if self.said else self.cause
        return {"message": message, **asdict(self), "known": self.known}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Witness:
    """What one rank, or the launcher, left behind."""

    rank: int | None
    host: str | None
    status: dict[str, Any]
    log: Path
    error: str  # what it said itself, in a line
    traceback: str  # the chain that ends in it
    failure: Failure | None

    @property
    def silent(self) -> bool:
        """Whether it ended without a word of its own: killed, or crashed in native code."""
        return self.rank is not None and self.status.get("exit_code") is None

    @property
    def follows(self) -> bool:
        """Whether it may only have noticed the end of another."""
        return self.failure is not None and self.failure.follows


@cache
def catalogue() -> tuple[Failure, ...]:
    """All known failures, in the order in which they are looked for."""
    text = Path(__file__).with_name("failures.yaml").read_text(encoding="utf-8")
    return tuple(Failure(**entry) for entry in yaml.safe_load(text))


def find(text: str, only: Collection[str] = ()) -> Failure | None:
    """The first known failure whose pattern occurs in a text; of all, or of some ids."""
    return next(
        (
            failure
            for failure in catalogue()
            if (not only or failure.id in only)
            and re.search(failure.pattern, text, flags=re.MULTILINE)
        ),
        None,
    )


def diagnose(
    run: RunDirectory, outcome: Outcome, elsewhere: RemoteProcesses | None = None
) -> Diagnosis:
    """Explain a failed attempt.

    Args:
        run: its directory.
        outcome: what the supervisor saw.
        elsewhere: how its hosts are reached; None: it ran on this one.
    """
    file = run.logs(outcome.attempt) / "launcher.log"
    launcher = logs.read_end(file)
    ranks = [
        _witness(run, outcome, status, launcher)
        for status in outcome.statuses or read_rank_statuses(run, outcome.attempt)
        if _failed(status, outcome)
    ]
    whole = _Witness(
        rank=None,
        host=outcome.host,
        status={},
        log=file,
        error=outcome.reason,
        traceback=logs.chain(launcher, ""),
        failure=_of_launcher(outcome, ranks, logs.without_warnings(logs.messages(launcher))),
    )
    everybody = [*ranks, whole]
    first = min(everybody, key=lambda witness: _blame(witness, outcome, launcher))
    first, facts = _look_at_the_disk(run, first)
    if not facts:
        first, facts = _ask_the_kernel(first, launcher, elsewhere or RemoteProcesses())
    followers = tuple(w.rank for w in ranks if w.rank is not None and w.rank != first.rank)
    return _explain(run, outcome, first, facts, followers)


def _of_launcher(outcome: Outcome, ranks: Collection[_Witness], log: str) -> Failure | None:
    """What the supervisor and the launcher saw, where it is not about a rank that is looked at."""
    if any(witness.rank == outcome.failed_rank and witness.silent for witness in ranks):
        return find(log, only=_BATCH)  # the signals that it names are that rank's
    reason = outcome.reason if outcome.failed_rank is None else ""
    seen = find(reason)
    # of a host that can't be reached ssh's own words say more
    return find(f"{reason}\n{log}") if seen is None or seen.stage == "launch" else seen


def _failed(status: dict[str, Any], outcome: Outcome) -> bool:
    """Whether a rank failed by itself; one without a word was mostly ended by the supervisor."""
    code = status.get("exit_code")
    if code is None:
        return status["rank"] == outcome.failed_rank or bool(status.get("error"))
    return bool(code)


def _witness(
    run: RunDirectory, outcome: Outcome, status: dict[str, Any], launcher: str
) -> _Witness:
    rank = status["rank"]
    log = run.rank_log(outcome.attempt, rank)
    if not log.is_file():  # it is on another host, or the rank did not get so far
        log = run.logs(outcome.attempt) / "launcher.log"
    text = logs.read_end(log)
    error = str(status.get("error") or "")
    if not error and rank == outcome.failed_rank:
        error = outcome.reason
    traceback = logs.chain(text, error)
    messages = logs.messages(traceback)
    if status.get("exit_code") is None:
        failure = _of_silent(error, text, messages, launcher, status.get("host"))
    elif re.search(r"^dslm\.errors\.", traceback, flags=re.MULTILINE):
        failure = find(messages, only=(_OWN,))
    else:
        failure = find(error) or find(messages or logs.without_warnings(logs.last_lines(text)))
    return _Witness(
        rank=rank,
        host=status.get("host"),
        status=status,
        log=log,
        error=error,
        traceback=traceback,
        failure=failure,
    )


def _of_silent(
    error: str, text: str, messages: str, launcher: str, host: str | None
) -> Failure | None:
    """Why a rank ended without a word, from those around it and what native code printed."""
    code = _return_code(launcher, host)
    by_signal = code is not None and code < 0
    return (
        find(launcher, only=_BATCH)
        or find(logs.native_words(text))
        or find(f"exit code {code}" if by_signal else "")
        # it ended by itself, but could not say so: then its traceback does
        or find(messages if code and not by_signal else "")
        or find(error)
    )


def _blame(witness: _Witness, outcome: Outcome, launcher: str) -> tuple[int, bool, float]:
    """Who is to blame comes first: causes before consequences, then what the supervisor saw."""
    ended = float(witness.status.get("ended") or 0.0)
    other = witness.rank != outcome.failed_rank
    if witness.rank is None:
        # the launcher knows of hosts and of signals, and otherwise less than any rank
        grade = 0 if not other else (3 if witness.failure is None or witness.follows else 1)
    elif witness.follows:
        grade = 2
    elif witness.silent:
        code = _return_code(launcher, witness.host)
        # a positive code: the launcher ended the others after one that had failed by itself
        grade = 0 if code is not None and code < 0 and not other else 1
        grade = 2 if code is not None and code > 0 and other else grade
    else:
        grade = 0
    return grade, other, ended


def _return_code(launcher: str, host: str | None) -> int | None:
    """What DeepSpeed's launcher on a host said the first failed process ended with."""
    found = [(name, int(code)) for name, code in _RETURN_CODE.findall(launcher)]
    of_host = [code for name, code in found if name == host]
    return next(iter(of_host or [code for _, code in found]), None)


def _look_at_the_disk(run: RunDirectory, first: _Witness) -> tuple[_Witness, list[str]]:
    """Where the run directory's disk is full, a rank can't even say so."""
    if not (first.silent or first.failure is None):
        return first, []
    free = shutil.disk_usage(run.path).free
    if free > _FULL_BYTES:
        return first, []
    fact = f"the disk of the run directory has {render_bytes(free)} free"
    return replace(first, failure=find("No space left on device")), [fact]


def _ask_the_kernel(
    first: _Witness, launcher: str, elsewhere: RemoteProcesses
) -> tuple[_Witness, list[str]]:
    """Find out which signal ended a process, and whether the kernel sent it for memory."""
    facts: list[str] = []
    code = _return_code(launcher, first.host) if first.silent else None
    if code is not None and code < 0:
        facts.append(f"it was ended by {signal.Signals(-code).name}")
    if first.rank is None or first.failure is None or first.failure.id not in _KERNEL_KNOWS:
        return first, facts
    if code not in (None, -signal.SIGKILL):
        return first, facts
    word = _word(first, elsewhere)
    if word.killed:
        found = find("Out of memory: Killed process")
        first = replace(first, failure=found)
    return first, [*facts, word.said]


def _word(witness: _Witness, elsewhere: RemoteProcesses) -> OomVerdict:
    """The kernel's word on a rank and the processes that read its data."""
    pids = {int(witness.status.get("pid", 0))}
    for listed in _WORKER_PIDS.findall(witness.traceback):
        pids |= {int(pid) for pid in listed.split(",") if pid.strip()}
    ticks = witness.status.get("start_time") or 0
    return elsewhere.oom_verdict(
        witness.host or "localhost",
        pids,
        since=ticks / os.sysconf("SC_CLK_TCK"),
        kills_before=witness.status.get("kills_before"),
    )


def _explain(
    run: RunDirectory,
    outcome: Outcome,
    first: _Witness,
    facts: list[str],
    followers: tuple[int, ...],
) -> Diagnosis:
    events = [e for e in read_events(run.events)[0] if e.get("attempt") == outcome.attempt]
    steps = [e["step"] for e in events if e["event"] in ("step", "resume") and "step" in e]
    failure = first.failure
    more = _more(run, first, events)
    log = str(first.log.relative_to(run.path))
    said = text_without_secrets(first.error or _last_message(first.traceback))
    if first.silent and failure is not None:
        said = ""  # it said nothing, and the supervisor no more than the cause does
    if failure is None:
        cause, remedy = "unknown to dslm", f"the whole log may say more: {log}"
    elif failure.id == _OWN:
        cause, said, remedy = _own_words(first, said, failure)
    else:
        cause, remedy = failure.cause, failure.remedy
    traceback = "" if failure is not None else logs.first_traceback(first.traceback)
    if failure is None and not traceback:
        traceback = text_without_secrets(logs.last_lines(logs.read_end(first.log)))
    return Diagnosis(
        id=failure.id if failure else None,
        stage=failure.stage if failure else None,
        cause=cause,
        said=said,
        remedy=remedy,
        # fewer than three concrete ones: what the catalogue says follows them
        ways=more.ways if len(more.ways) > 2 or failure is None else (*more.ways, remedy),
        facts=(*facts, *more.facts),
        rank=first.rank,
        host=first.host,
        step=max(steps, default=0),
        log=log,
        traceback=traceback,
        followers=followers,
        retry=failure.retry if failure else False,
    )


def _more(run: RunDirectory, first: _Witness, events: list[dict[str, Any]]) -> Evidence:
    """The plan beside what was measured, where memory ran out."""
    if first.failure is None:
        return Evidence()
    if first.failure.id in _DEVICE_MEMORY:
        peaks = [e["memory_peak_bytes"] for e in events if e.get("memory_peak_bytes")]
        return device_memory(run, first.traceback, max(peaks, default=None))
    return host_memory(run) if first.failure.id in _HOST_MEMORY else Evidence()


def _own_words(first: _Witness, said: str, failure: Failure) -> tuple[str, str, str]:
    """Cause, what was said and remedy of one of dslm's own errors: `PLACE: MESSAGE (HINT)`."""
    own = re.search(r"^dslm\.errors\.\w+: (.+)$", first.traceback, flags=re.MULTILINE)
    place, found, hint = said.partition(own[1]) if own else (said, "", "")
    if own is None or not found:
        return failure.cause, said, failure.remedy
    return own[1], place.rstrip(": "), hint.strip(" ()") or failure.remedy


def _last_message(traceback: str) -> str:
    """The first line of the last exception."""
    pieces = traceback.split("Traceback (most recent call last):")
    lines = [line for line in pieces[-1].splitlines() if line[:1].strip()]
    return lines[0] if len(pieces) > 1 and lines else ""
