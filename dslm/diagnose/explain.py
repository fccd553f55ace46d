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
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from dslm.diagnose import logs
from dslm.diagnose.blame import Judged, judge
from dslm.diagnose.catalogue import (
    DEVICE_MEMORY,
    DISK_FULL,
    HOST_MEMORY,
    KERNEL_KNOWS,
    KILLED,
    KILLED_FOR_MEMORY,
    OWN_ERROR,
    Failure,
    entry,
)
from dslm.diagnose.evidence import Evidence, device_memory, host_memory
from dslm.diagnose.witness import Source, Witness, witnesses
from dslm.host.kernel import OomVerdict
from dslm.launch.outcome import Outcome, signal_name
from dslm.launch.remote_processes import RemoteProcesses
from dslm.run.directory import RunDirectory
from dslm.run.endings import Kind
from dslm.run.events import Error, Event, JudgedWitness, Resume, Step, now, tail_events
from dslm.secrets import text_without_secrets
from dslm.units import render_bytes

_FULL_BYTES = 64 * 1024  # a log and a status file need less
_WORKER_PIDS = re.compile(r"DataLoader worker \(pid\(?s?\)? ?([\d, ]+)\)")
_MEMORY_WAYS = (
    "`--num-gpus`: fewer ranks per host",
    "`--set parallel.offload=none`",
    "`--set data.workers=0`",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Diagnosis:
    """The diagnosis of a failed attempt.

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
        rule: by which rule of `dslm.diagnose.blame` it was blamed.
        source: where the cause was found.
        judged: all witnesses, the one to blame first.
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
    rule: str
    source: str
    judged: tuple[JudgedWitness, ...]

    @property
    def known(self) -> bool:
        """Whether the catalogue has it."""
        return self.id is not None

    def event(self, attempt: int, *, noticed: float | None = None, again: bool = False) -> Error:
        """Return the run's error event, from which the diagnosis can be shown again."""
        told = {field.name: getattr(self, field.name) for field in fields(self)}
        message = f"{self.cause}: {self.said}" if self.said else self.cause
        return Error(
            time=now(), attempt=attempt, noticed=noticed, again=again,
            message=message, known=self.known, **told,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class _Finding:
    """Findings about the blamed witness, beside the evidence that it left."""

    witness: Witness
    facts: tuple[str, ...] = ()
    ways: tuple[str, ...] = ()


def diagnose(
    run: RunDirectory, outcome: Outcome, remote: RemoteProcesses | None = None
) -> Diagnosis:
    """Explain a failed attempt.

    Args:
        run: its directory.
        outcome: what the supervisor saw.
        remote: how its hosts are reached; None: it ran on this one.
    """
    judged = judge(witnesses(run, outcome))
    first = judged[0].witness
    found = _look_at_the_disk(run, first) or _ask_the_kernel(first, remote or RemoteProcesses())
    return _explain(run, outcome, found, judged)


def _look_at_the_disk(run: RunDirectory, first: Witness) -> _Finding | None:
    """Look for a full disk: with one a rank can't even report it."""
    free = shutil.disk_usage(run.path).free
    if free > _FULL_BYTES or not (first.silent or first.failure is None):
        return None
    fact = f"the disk of the run directory has {render_bytes(free)} free"
    full = replace(first, failure=entry(DISK_FULL), source=Source.DISK)
    return _Finding(witness=full, facts=(fact,))


def _ask_the_kernel(first: Witness, remote: RemoteProcesses) -> _Finding:
    """Find out which signal ended a process, and whether the kernel sent it for memory."""
    facts: list[str] = []
    code = first.code if first.silent else None
    if code is not None and code < 0:
        facts.append(f"it was ended by {signal_name(-code)}")
    known = first.failure is not None and first.failure.id in KERNEL_KNOWS
    if first.rank is None or not known or code not in (None, -signal.SIGKILL):
        return _Finding(witness=first, facts=tuple(facts))
    verdict = _verdict(first, remote)
    facts.append(verdict.said)
    if verdict.killed:
        first = replace(first, failure=entry(KILLED_FOR_MEMORY), source=Source.KERNEL)
        return _Finding(witness=first, facts=tuple(facts))
    if first.failure is None or first.failure.id != KILLED:
        return _Finding(witness=first, facts=tuple(facts))
    if verdict.killed is None:  # only then may it have been for memory
        ways = (first.failure.remedy, f"if it was for memory: {', '.join(_MEMORY_WAYS)}")
        return _Finding(witness=first, facts=tuple(facts), ways=ways)
    facts.append(
        "neither the kernel, for memory, nor dslm nor a batch system did it: so a process of the "
        "same user or of root"
    )
    return _Finding(witness=first, facts=tuple(facts))


def _verdict(witness: Witness, remote: RemoteProcesses) -> OomVerdict:
    """Return the kernel's word on a rank and the processes that read its data."""
    status = witness.status
    if status is None:
        return OomVerdict(killed=None, said="its process is not known")
    pids = {status.pid}
    for listed in _WORKER_PIDS.findall(witness.text):
        pids |= {int(pid) for pid in listed.split(",") if pid.strip()}
    return remote.oom_verdict(
        witness.host or "localhost",
        pids,
        since=(status.start_time or 0) / os.sysconf("SC_CLK_TCK"),
        kills_before=status.kills_before,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Words:
    """The text for people: the cause, the message, the remedies."""

    cause: str
    said: str
    remedy: str


def _explain(
    run: RunDirectory, outcome: Outcome, found: _Finding, judged: Sequence[Judged]
) -> Diagnosis:
    events = [e for e in tail_events(run.events).events if e.attempt == outcome.attempt]
    steps = [e.step for e in events if isinstance(e, Step | Resume)]
    first, failure = found.witness, found.witness.failure
    log = str(first.log.relative_to(run.path))
    more = _more(run, first, events)
    words = _words(first, outcome, log)
    ways = found.ways or more.ways
    traceback = "" if failure is not None else logs.first_traceback(first.text)
    if failure is None and not traceback:
        traceback = text_without_secrets(logs.last_lines(logs.read_end(first.log)))
    blamed = [_shown(one) for one in judged]
    blamed[0] = replace(
        blamed[0], failure=failure.id if failure else None, source=str(first.source or "")
    )
    return Diagnosis(
        id=failure.id if failure else None,
        stage=failure.stage if failure else None,
        cause=words.cause,
        said=words.said,
        remedy=words.remedy,
        # fewer than three concrete ones: what the catalogue says follows them
        ways=ways if found.ways or len(ways) > 2 or failure is None else (*ways, words.remedy),
        facts=(*found.facts, *more.facts, *_stand(outcome)),
        rank=first.rank,
        host=first.host,
        step=max(steps, default=0),
        log=log,
        traceback=traceback,
        followers=tuple(one.witness.rank for one in judged[1:] if one.witness.rank is not None),
        retry=failure.retry if failure else False,
        rule=judged[0].rule.id,
        source=str(first.source or ""),
        judged=tuple(blamed),
    )


def _stand(outcome: Outcome) -> tuple[str, ...]:
    """Return which rank differed where no rank made progress, and since when."""
    return (outcome.reason,) if outcome.kind == Kind.STALL else ()


def _shown(one: Judged) -> JudgedWitness:
    witness = one.witness
    return JudgedWitness(
        rank=witness.rank,
        host=witness.host,
        rule=one.rule.id,
        failure=witness.failure.id if witness.failure else None,
        source=str(witness.source or ""),
    )


def _more(run: RunDirectory, first: Witness, events: Sequence[Event]) -> Evidence:
    """The plan beside what was measured, where memory ran out."""
    if first.failure is None:
        return Evidence()
    if first.failure.id in DEVICE_MEMORY:
        peaks = [e.memory_peak_bytes for e in events if isinstance(e, Step) and e.memory_peak_bytes]
        return device_memory(run, first.text, max(peaks, default=None))
    return host_memory(run) if first.failure.id in HOST_MEMORY else Evidence()


def _words(first: Witness, outcome: Outcome, log: str) -> _Words:
    """Return the cause, what the rank or the supervisor said, and the remedy."""
    said = _said(first, outcome)
    failure = first.failure
    if failure is None:
        return _Words(
            cause="unknown to dslm", said=said, remedy=f"the whole log may say more: {log}"
        )
    own = first.report.own if first.report is not None else None
    if own is not None:
        where, message, hint = map(text_without_secrets, (own.where, own.message, own.hint))
        return _Words(cause=message, said=where, remedy=hint or failure.remedy)
    if failure.id == OWN_ERROR:
        return _own_of_log(first, failure)
    return _Words(cause=failure.cause, said=said, remedy=failure.remedy)


def _said(first: Witness, outcome: Outcome) -> str:
    """Return the line that the rank itself had to say, or the supervisor in its place."""
    if first.report is not None:
        return text_without_secrets(first.report.line)
    if first.silent:  # it said nothing, and the supervisor no more than the cause does
        return "" if first.failure is not None else text_without_secrets(outcome.reason)
    if first.rank is not None and first.status is not None:
        last = logs.last_message(first.text)
        return text_without_secrets(last) or f"it exited with code {first.status.exit_code}"
    return text_without_secrets(outcome.reason or logs.last_message(first.text))


def _own_of_log(first: Witness, failure: Failure) -> _Words:
    """Return the words of one of dslm's own errors that only its log has."""
    own = re.search(r"^dslm\.errors\.\w+: (.+)$", first.text, flags=re.MULTILINE)
    cause = text_without_secrets(own[1]) if own is not None else failure.cause
    return _Words(cause=cause, said="", remedy=failure.remedy)
