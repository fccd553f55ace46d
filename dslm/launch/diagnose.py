"""Why an attempt failed, in words: the rank that failed first, the cause, the remedy, the log.

Reads the run directory; the causes are data, `failures.yaml`. A failure that is not in it is shown
as it is: the last line of the first failed rank's traceback.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from dslm.launch.supervise import Outcome, read_rank_statuses
from dslm.run.directory import RunDirectory
from dslm.run.events import read_events

_TAIL_BYTES = 200_000
_EXCERPT_LINES = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """One entry of the catalogue."""

    id: str
    pattern: str
    stage: str
    cause: str
    remedy: str
    source: str
    retry: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Diagnosis:
    """What went wrong; `step` is the last that was finished."""

    cause: str
    remedy: str
    rank: int | None
    host: str | None
    step: int
    log: str
    excerpt: str
    known: bool
    retry: bool


@cache
def catalogue() -> tuple[Failure, ...]:
    """All known failures, in the order in which they are looked for."""
    text = Path(__file__).with_name("failures.yaml").read_text(encoding="utf-8")
    return tuple(Failure(**entry) for entry in yaml.safe_load(text))


def find(text: str) -> Failure | None:
    """The first known failure whose pattern occurs in a log."""
    return next((f for f in catalogue() if re.search(f.pattern, text)), None)


def diagnose(run: RunDirectory, outcome: Outcome) -> Diagnosis:
    """Explain a failed attempt."""
    statuses: dict[int, dict[str, Any]] = {
        status["rank"]: status for status in read_rank_statuses(run, outcome.attempt)
    }
    rank = outcome.failed_rank
    status = statuses.get(rank, {}) if rank is not None else {}
    log = run.rank_log(outcome.attempt, rank) if rank is not None else None
    if log is None or not log.is_file():
        log = run.logs(outcome.attempt) / "launcher.log"
    text = _tail(log)
    # what the rank said itself goes before what else is in its log
    failure = find(str(status.get("error") or "")) or find(_last_traceback(text))
    steps = [e["step"] for e in read_events(run.events)[0] if e["event"] == "step"]
    return Diagnosis(
        cause=_cause(outcome, failure, status),
        remedy=failure.remedy if failure else f"the log says more: {log}",
        rank=rank,
        host=status.get("host"),
        step=max(steps, default=0),
        log=str(log),
        excerpt=_excerpt(text),
        known=failure is not None,
        retry=failure.retry if failure else False,
    )


def _cause(outcome: Outcome, failure: Failure | None, status: dict[str, Any]) -> str:
    said = str(status.get("error") or outcome.reason)
    if failure is None:
        return said
    return f"{failure.cause} ({said})" if said else failure.cause


def _tail(log: Path) -> str:
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            return stream.read().decode("utf-8", errors="replace")
    except OSError:
        return ""


def _last_traceback(text: str) -> str:
    """From the last traceback on; the last lines where there is none."""
    start = text.rfind("Traceback (most recent call last)")
    return text[start:] if start >= 0 else "\n".join(text.splitlines()[-40:])


def _excerpt(text: str) -> str:
    lines = [line for line in _last_traceback(text).splitlines() if line.strip()]
    return "\n".join(lines[-_EXCERPT_LINES:])
