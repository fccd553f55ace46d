"""The type of a site: four answers about a place to run in.

Every site is one module (or a folder with one) that ends in a `SITE`; `dslm.launch.sites.SITES` is
the table of them, and everything else asks that. Values and functions; knows no process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dslm.cluster.hosts import Host
from dslm.environment import RANK_VARIABLES
from dslm.launch.spec import LaunchRequest, LaunchSpec
from dslm.reach.remote import Transport


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """A job to be done later: what it asks a queue for, and what it runs."""

    name: str
    nodes: int
    slots: int  # ranks a host
    gpus: bool  # whether each slot is a GPU, asked for as such
    run: Path  # absolute; the job's own output stands beside it
    arguments: tuple[str, ...]  # of dslm: `train RECIPE … -o RUN`


@dataclass(frozen=True, kw_only=True, slots=True)
class Submitted:
    """A job that a queue has taken."""

    job: str
    script: Path
    look: str  # the command that shows it


@dataclass(frozen=True, kw_only=True, slots=True)
class Queue:
    """A queue that jobs are submitted to for later."""

    has_gpus: Callable[[], bool]  # where it can't be asked, it is taken to have some
    script: Callable[[Batch], str]  # what is submitted, for a dry run
    submit: Callable[[Batch], Submitted]


@dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    """A way to run somewhere.

    Args:
        name: as `--launcher` takes it.
        given: which hosts this process was given; None outside of any allocation.
        request: how an attempt starts.
        transport: how a command is run on a host; None: not at all, or it is this host.
        queue: how a job is submitted for later; None: there is no queue.
        remote: whether ranks run on other hosts than this one.
        rank_variables: how a rank learns its number, its number on its host and the world size.
        terminates_ranks: whether it asks ranks themselves to stop, by SIGTERM, before it ends them.
    """

    name: str
    given: Callable[[Mapping[str, str]], tuple[Host, ...] | None]
    request: Callable[[LaunchSpec], LaunchRequest]
    transport: Transport | None
    queue: Queue | None = None
    remote: bool = True
    rank_variables: tuple[str, str, str] = RANK_VARIABLES
    terminates_ranks: bool = False
