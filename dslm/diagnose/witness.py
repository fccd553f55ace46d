"""Evidence that each rank and the launcher left, collected before any of them is blamed.

A rank that could say how it ended sent an `ErrorReport`; of one that could not there are its log,
what the launcher on its host printed, and what the supervisor saw. The cause of each is looked for
in an order of sources, and the first that knows one counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from dslm.diagnose import logs
from dslm.diagnose.catalogue import BATCH, OWN_ERROR, Failure, entry, find, of_kind, of_signal
from dslm.launch.outcome import Outcome
from dslm.launch.supervise import read_rank_statuses
from dslm.run.directory import RunDirectory
from dslm.run.documents import RankStatus
from dslm.run.endings import ErrorReport, Kind

# DeepSpeed's launcher, launch.py, sigkill_handler; under pdsh with the host before it.
_RETURN_CODE = re.compile(r"^(?:(\S+): )?.*exits with return code = (-?\d+)", re.MULTILINE)
_OWN_TYPE = re.compile(r"^dslm\.errors\.\w+(: |$)", re.MULTILINE)
# Of these the launcher's log says more than that it happened.
_LAUNCHER_KNOWS = (Kind.CONNECTION, Kind.LAUNCHER, Kind.JOIN)


class Source(StrEnum):
    """The place where a cause was found."""

    OWN = "own"
    EXCEPTION = "exception"
    CHAIN = "chain"
    BATCH = "batch"
    NATIVE = "native"
    SIGNAL = "signal"
    LOG = "log"
    LAUNCHER = "launcher"
    SUPERVISOR = "supervisor"
    KERNEL = "kernel"
    DISK = "disk"


SOURCES = {
    Source.OWN: "dslm's own error",
    Source.EXCEPTION: "the exception that ended it",
    Source.CHAIN: "the exceptions that led to it",
    Source.BATCH: "the batch system's words in the launcher's log",
    Source.NATIVE: "what native code printed",
    Source.SIGNAL: "the signal that ended it",
    Source.LOG: "its log",
    Source.LAUNCHER: "the launcher's log",
    Source.SUPERVISOR: "what the supervisor saw",
    Source.KERNEL: "the kernel of its host",
    Source.DISK: "the disk of the run directory",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Witness:
    """Evidence that one rank, or the launcher (rank None), left.

    Attributes:
        rank: which.
        host: where.
        status: what the supervisor knows of it.
        log: where it printed.
        report: the exception that ended it, if it said so.
        text: tracebacks, from the report or else from its log.
        code: what it ended with, as far as the launcher of its host tells; negative: a signal.
        named: whether the supervisor saw it fail first.
        failure: the known cause, if it is one.
        source: where that was found.
    """

    rank: int | None
    host: str | None
    status: RankStatus | None
    log: Path
    report: ErrorReport | None
    text: str
    code: int | None
    named: bool
    failure: Failure | None = None
    source: Source | None = None

    @property
    def silent(self) -> bool:
        """Whether it ended without a word of its own: killed, or crashed in native code."""
        return self.status is not None and self.status.exit_code is None

    @property
    def follows(self) -> bool:
        """Whether it may only have noticed the end of another."""
        return self.failure is not None and self.failure.follows

    @property
    def by_signal(self) -> bool:
        """Whether a signal ended the first process of its host, as the launcher there says."""
        return self.code is not None and self.code < 0

    @property
    def by_itself(self) -> bool:
        """Whether the first process of its host failed by itself, as the launcher there says."""
        return self.code is not None and self.code > 0

    @property
    def ended(self) -> float:
        """When it ended, in Unix seconds; 0: not known."""
        return (self.status.ended if self.status is not None else None) or 0.0


Sources = Iterable[tuple[Source, Failure | None]]


def witnesses(run: RunDirectory, outcome: Outcome) -> list[Witness]:
    """Collect what the ranks that failed left behind, and what the launcher did."""
    launcher = logs.read_end(run.launcher_log(outcome.attempt))
    statuses = outcome.statuses or tuple(read_rank_statuses(run, outcome.attempt))
    alone = len(statuses) == 1
    ranks = [
        _of_rank(run, outcome, status, launcher, _code_of(status, statuses, launcher), alone=alone)
        for status in statuses
        if _failed(status, outcome)
    ]
    only_noticed = ranks and all(rank.follows for rank in ranks)
    first = _first_gone(statuses) if only_noticed else None
    if first is not None and first.lost is not None and first.rank != outcome.failed_rank:
        # the others had their word in first
        seen = replace(outcome, kind=first.lost.kind, failed_rank=first.rank)
        ranks.append(
            _of_rank(run, seen, first, launcher, _code_of(first, statuses, launcher), alone=alone)
        )
    return [*ranks, _of_launcher(run, outcome, ranks, launcher, alone=alone)]


def _first_gone(statuses: Iterable[RankStatus]) -> RankStatus | None:
    """The rank whose process was gone first, if any is; a lost one before another at that moment.

    Nobody ended it: a launcher ends the others once it has seen that a rank is gone.
    """
    gone = (status for status in statuses if status.left is not None)
    return min(gone, key=lambda one: (one.left or 0.0, one.lost is None), default=None)


def _failed(status: RankStatus, outcome: Outcome) -> bool:
    """Return whether a rank failed by itself; most silent ranks were ended by the supervisor."""
    if status.exit_code is None:
        return status.rank == outcome.failed_rank
    return bool(status.exit_code)


def _of_rank(
    run: RunDirectory,
    outcome: Outcome,
    status: RankStatus,
    launcher: str,
    code: int | None,
    *,
    alone: bool,
) -> Witness:
    log = run.rank_log(outcome.attempt, status.rank)
    if not log.is_file():  # it is on another host, or the rank did not get so far
        log = run.launcher_log(outcome.attempt)
    printed = logs.read_end(log)
    report = status.report
    witness = Witness(
        rank=status.rank,
        host=status.host,
        status=status,
        log=log,
        report=report,
        text=_traceback(report) if report is not None else logs.chain(printed),
        code=code,
        named=status.rank == outcome.failed_rank,
    )
    if report is not None:
        return _with_cause(witness, _of_report(report))
    if witness.silent:
        seen = of_kind(outcome.kind, alone=alone) if witness.named else None
        return _with_cause(witness, _of_silent(witness, printed, launcher, seen))
    return _with_cause(witness, _of_log(witness, printed))


def _of_report(report: ErrorReport) -> Iterator[tuple[Source, Failure | None]]:
    """Return the places to look for the cause of an exception."""
    if report.own is not None:
        yield Source.OWN, entry(OWN_ERROR)
    else:
        yield Source.EXCEPTION, find(report.line)
        # a data worker's own traceback is inside the message of its reader's
        yield Source.CHAIN, find(logs.messages(report.messages))


def _of_silent(
    witness: Witness, printed: str, launcher: str, seen: Failure | None
) -> Iterator[tuple[Source, Failure | None]]:
    """Return the places to look for the cause of a silent end."""
    yield Source.BATCH, find(launcher, only=BATCH)
    yield Source.NATIVE, find(logs.native_words(printed))
    if witness.by_signal:
        yield Source.SIGNAL, of_signal(-(witness.code or 0))
    if witness.by_itself:  # it could not say so: then its traceback does
        yield from _of_log(witness, "")
    else:
        yield Source.SUPERVISOR, seen


def _of_log(witness: Witness, printed: str) -> Iterator[tuple[Source, Failure | None]]:
    """Return the places to look for the cause of a failure that no exception explains."""
    messages = logs.messages(witness.text)
    if _OWN_TYPE.search(messages):
        yield Source.OWN, entry(OWN_ERROR)
    yield Source.LOG, find(messages or logs.without_warnings(logs.last_lines(printed)))


def _of_launcher(
    run: RunDirectory, outcome: Outcome, ranks: list[Witness], launcher: str, *, alone: bool
) -> Witness:
    """The launcher, and what the supervisor saw of hosts and of ranks that never came."""
    come = any(witness.named for witness in ranks)
    witness = Witness(
        rank=None,
        host=outcome.host,
        status=None,
        log=run.launcher_log(outcome.attempt),
        report=None,
        text=logs.chain(launcher),
        code=None,
        named=not come and (outcome.failed_rank is None or outcome.kind == Kind.JOIN),
    )
    text = logs.without_warnings(logs.messages(launcher))
    if any(w.named and w.silent for w in ranks):  # the signals that it names are that rank's
        return _with_cause(witness, [(Source.BATCH, find(text, only=BATCH))])
    seen = None if come else of_kind(outcome.kind, alone=alone)
    sources: list[tuple[Source, Failure | None]] = [
        (Source.LAUNCHER, find(text)), (Source.SUPERVISOR, seen)
    ]  # fmt: skip
    return _with_cause(
        witness, sources if seen is None or outcome.kind in _LAUNCHER_KNOWS else sources[::-1]
    )


def _with_cause(witness: Witness, sources: Sources) -> Witness:
    """Return the witness with the first cause that a source knows."""
    for source, failure in sources:
        if failure is not None:
            return replace(witness, failure=failure, source=source)
    return witness


def _code_of(status: RankStatus, statuses: Sequence[RankStatus], launcher: str) -> int | None:
    """Return what a rank ended with, as far as the launcher of its host tells.

    It tells of the first that it saw end: after an exit code that may be another rank of the host,
    one that has said so itself.
    """
    code = _return_code(launcher, status.host)
    others = [one for one in statuses if one.host == status.host and one.rank != status.rank]
    return None if code is not None and code > 0 and any(o.exit_code for o in others) else code


def _return_code(launcher: str, host: str | None) -> int | None:
    """Return what DeepSpeed's launcher on a host said the first failed process ended with."""
    found = [(name, int(code)) for name, code in _RETURN_CODE.findall(launcher)]
    of_host = [code for name, code in found if name == host]
    return next(iter(of_host or [code for _, code in found]), None)


def _traceback(report: ErrorReport) -> str:
    """Return the tracebacks of a chain, one after the other."""
    header = "Traceback (most recent call last):\n"
    return "\n".join(f"{header}{raised.frames}{raised.line}\n" for raised in report.chain)
