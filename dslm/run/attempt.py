"""One attempt as its ranks read it: who takes part, where they meet, what they need.

Written by the supervisor before the launch, into the run directory, so that the command line on any
host is nothing but the run directory (in letters that no shell reads) and a number. The launching
side knows it as the source of every rank's environment; it holds no secret but the attempt's own
token, which is worth nothing once the attempt has ended.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from dslm.codec import Count, Strict
from dslm.environment import RANK_VARIABLES
from dslm.run.directory import RunDirectory
from dslm.run.documents import Document, read_document, write_document


@dataclass(frozen=True, kw_only=True, slots=True)
class ControlAddress(Strict):
    """The address of the supervisor for the ranks: addresses to try in turn, port, token."""

    addresses: tuple[str, ...]
    port: Count
    token: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt(Document):
    """One launch within a run."""

    what: ClassVar[str] = "the attempt"
    number: Count
    hosts: tuple[tuple[str, Count], ...]  # name and ranks of each, in the order of the ranks
    master_address: str
    master_port: Count
    control: ControlAddress
    folder: str  # where dslm was started: relative data paths begin there
    environment: Mapping[str, str] = field(default_factory=dict)  # of every rank
    host_environment: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    hosts_without_run_dir: tuple[str, ...] = ()  # they have a copy of what ranks read
    rank_variables: tuple[str, str, str] = RANK_VARIABLES
    stopped_by_signal: bool = False  # SIGTERM to a rank is a request to stop
    script: str | None = None  # of `dslm launch`
    arguments: tuple[str, ...] = ()
    trust_checkpoint: bool = False  # load more of it than tensors, which may run code
    probe_steps: int = 0  # a probe ends after so many steps, with nothing saved

    @property
    def world_size(self) -> int:
        """Ranks over all hosts."""
        return sum(slots for _, slots in self.hosts)

    def host_of(self, rank: int) -> str:
        """Return the host, as the hostfile calls it, that a rank runs on."""
        for name, slots in self.hosts:
            if rank < slots:
                return name
            rank -= slots
        raise ValueError("there is no such rank")

    def environment_of(self, rank: int) -> dict[str, str]:
        """Return the variables that a rank sets for itself."""
        return {**self.environment, **self.host_environment.get(self.host_of(rank), {})}

    def write(self, run: RunDirectory) -> None:
        """Write it into the run directory, readable for the owner only."""
        file = run.attempt(self.number)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_document(file, self, mode=0o600)


def read_attempt(run: RunDirectory, number: int) -> Attempt:
    """Return the attempt that a supervisor wrote.

    Raises:
        OptionError: there is none, or it is of a later format.
    """
    return read_document(Attempt, run.attempt(number))


def path_word(path: Path) -> str:
    """A path as one word of letters, digits, `-` and `_`: no shell and no launcher changes it."""
    return base64.urlsafe_b64encode(str(path).encode()).decode().rstrip("=")


def path_of_word(word: str) -> Path:
    """Return the path that `path_word` made a word of."""
    return Path(base64.urlsafe_b64decode(word + "=" * (-len(word) % 4)).decode())
