"""What `dslm train` can run: the one table that the search asks before it proposes a layout.

A plan never promises what training refuses (dslm/decide/checks says no in the same cases).
"""

from __future__ import annotations

from typing import Literal

Shared = Literal["tensor", "sequence"]

# Tasks in which ranks can share layers (AutoTP) or sequences (Ulysses). Whoever teaches the worker
# another one adds it here.
TASKS: dict[Shared, frozenset[str]] = {
    "tensor": frozenset({"pretrain", "sequence"}),
    "sequence": frozenset({"pretrain"}),
}


def can_share(what: Shared, task: str) -> bool:
    """Return whether ranks of a training can share layers or sequences."""
    return task in TASKS[what]
