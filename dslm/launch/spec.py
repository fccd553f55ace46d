"""Launches as values: a spec goes to a site, a request comes back.

Knows no process. Arguments are lists; nothing here is ever read by a shell.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dslm.cluster.hosts import Cluster
from dslm.run.attempt import path_word
from dslm.run.directory import RunDirectory


@dataclass(frozen=True, kw_only=True, slots=True)
class LaunchSpec:
    """One attempt: which module every rank runs, where and in which run."""

    module: str
    cluster: Cluster
    run: Path
    attempt: int
    master_address: str
    master_port: int
    interface: str | None = None  # towards the master, when it has one name on all hosts

    @property
    def arguments(self) -> tuple[str, ...]:
        """Arguments on every rank's command line: words that no shell changes."""
        return ("--run", path_word(self.run), "--attempt", str(self.attempt))

    @property
    def hostfile(self) -> Path:
        """The file of hosts for DeepSpeed."""
        return RunDirectory(self.run).hostfile(self.attempt)


@dataclass(frozen=True, kw_only=True, slots=True)
class LaunchRequest:
    """A process to start: its arguments, the variables it gets beside this process's own."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    removed: frozenset[str] = frozenset()  # variables it must not inherit
    folder: Path | None = None  # where it starts; None: where dslm was started
    files: Mapping[Path, str] = field(default_factory=dict)  # to be written before it starts
    owns_parents: bool = True  # whether the process that starts a host's ranks is of this run alone

    def whole_environment(self, inherited: Mapping[str, str]) -> dict[str, str]:
        """Return all variables that the process gets."""
        kept = {name: value for name, value in inherited.items() if name not in self.removed}
        return {**kept, **self.environment}

    def render(self) -> str:
        """Render the command as a person would type it."""
        settings = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*settings, shlex.join(self.argv)])
