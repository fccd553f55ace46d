"""The catalogue of known failures, `failures.yaml`: what each looks like, and what to do about it.

An entry is found by a pattern, in what a library or native code printed, by a signal, or by its
kind, where the supervisor itself knows what happened. dslm's own sentences are never matched.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from dslm.presets import shipped_table
from dslm.run.endings import Kind

OWN_ERROR = "bad-input"  # dslm's own errors carry their cause and remedy
KILLED = "killed"
KILLED_FOR_MEMORY = "host-memory-killed"
DISK_FULL = "disk-full"
DEVICE_MEMORY = ("gpu-memory",)
HOST_MEMORY = ("host-memory", KILLED_FOR_MEMORY, "slurm-memory", "data-worker-killed")
# What a batch system says in the launcher's log explains why a process was killed.
BATCH = ("slurm-memory", "time-limit", "preempted", "slurm-node-failure")
KERNEL_KNOWS = (KILLED, "data-worker-killed", "data-worker")


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """One entry of the catalogue; see the head of failures.yaml."""

    id: str
    stage: str
    cause: str
    remedy: str
    source: str
    retry: bool
    pattern: str | None = None
    kind: Kind | None = None
    alone: bool = False
    signals: tuple[int, ...] = ()
    follows: bool = False


@cache
def catalogue() -> tuple[Failure, ...]:
    """Return all known failures, in the order in which they are looked for."""
    entries = shipped_table(Path(__file__).with_name("failures.yaml"))
    return tuple(
        Failure(**{**e, "kind": Kind(e["kind"]) if "kind" in e else None}) for e in entries
    )


def entry(name: str) -> Failure:
    """Return the failure of an id."""
    return next(failure for failure in catalogue() if failure.id == name)


def find(text: str, only: Collection[str] = ()) -> Failure | None:
    """Return the first known failure whose pattern occurs in a text; of all, or of some ids."""
    return next(
        (
            failure
            for failure in catalogue()
            if (not only or failure.id in only)
            and failure.pattern is not None
            and re.search(failure.pattern, text, flags=re.MULTILINE)
        ),
        None,
    )


def of_signal(number: int) -> Failure | None:
    """Return the failure that a signal means, where it ended a rank."""
    return next((failure for failure in catalogue() if number in failure.signals), None)


def of_kind(kind: Kind | None, *, alone: bool) -> Failure | None:
    """Return the failure that the supervisor itself knows; `alone`: the attempt had one rank."""
    found = [
        failure for failure in catalogue() if failure.kind is not None and failure.kind == kind
    ]
    return next((f for f in found if f.alone == alone), found[0] if found else None)
