"""What is to be started, as values: a spec goes to a backend, a request comes back.

Knows no process. Arguments are lists; nothing here is ever read by a shell.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dslm.cluster.hosts import Cluster


@dataclass(frozen=True, kw_only=True, slots=True)
class LaunchSpec:
    """One attempt: which module every rank runs, with which arguments, where and in which run."""

    module: str
    arguments: tuple[str, ...] = ()
    cluster: Cluster
    run: Path
    attempt: int
    master_port: int
    environment: Mapping[str, str] = field(default_factory=dict)  # what the recipe names


@dataclass(frozen=True, kw_only=True, slots=True)
class LaunchRequest:
    """A process to start: its arguments, the variables it gets beside this process's own."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    removed: frozenset[str] = frozenset()  # variables it must not inherit

    def render(self) -> str:
        """As one would type it, for people."""
        settings = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*settings, shlex.join(self.argv)])
