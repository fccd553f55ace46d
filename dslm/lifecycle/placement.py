"""The placement of a launch, from the command line: one value for every verb that launches.

Imports nothing, so that verbs can name it at their top.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """Options of a launch.

    Args:
        hostfile: a file, or `w1:4,w2:4`; None: this machine, or the batch job's allocation.
        launcher: a site; None: pdsh with a hostfile, else local.
        num_nodes: use only the first N hosts.
        num_gpus: ranks per host.
        include: DeepSpeed's filter of hosts and slots.
        exclude: the opposite.
        no_preflight: don't check the hosts before each attempt.
        max_restarts: attempts after the first; None: 3 on several hosts, none here.
        min_nodes: fewest hosts that a restart continues with; None: one.
    """

    hostfile: str | None = None
    launcher: str | None = None
    num_nodes: int | None = None
    num_gpus: int | None = None
    include: str | None = None
    exclude: str | None = None
    no_preflight: bool = False
    max_restarts: int | None = None
    min_nodes: int | None = None
