"""Where a run may run: this machine, or hosts that one launcher reaches; and who is fit to.

From options to a fleet; from a fleet, before each attempt, to those of its hosts that passed
preflight, in numbers that the global batch can be split over. Knows nothing of what is trained.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from dslm.cluster.allocation import read_allocation
from dslm.cluster.detect import cpu_wanted, local_cluster
from dslm.cluster.hostfile import load_hosts
from dslm.cluster.hosts import Cluster, Host
from dslm.cluster.select import select
from dslm.errors import Finding, OptionError, PreflightError, RecipeError, Where, did_you_mean
from dslm.launch.sites.slurm import SRUN
from dslm.reach.checks import CheckResult, wrong
from dslm.reach.preflight import Requirements, hosts_here, preflight
from dslm.reach.remote import SSH, Transport

LAUNCHERS = ("local", "pdsh", "openmpi", "slurm")
_RESTARTS = 3  # after a failure of a run on several hosts
_LOOPBACK = "127.0.0.1"
_Decided = TypeVar("_Decided")


@dataclass(frozen=True, kw_only=True, slots=True)
class Fleet:
    """All hosts that a run may use, and how far it goes without some of them."""

    cluster: Cluster
    launcher: str = "local"
    preflight: bool = True
    min_nodes: int = 1
    max_restarts: int = 0

    @property
    def remote(self) -> bool:
        """Whether ranks run on other hosts than this one."""
        return self.launcher != "local"

    @property
    def device_known(self) -> bool:
        """Whether its devices are known before its hosts are asked for them."""
        return not self.remote or self.cluster.device.kind != "cpu" or cpu_wanted()

    @property
    def transport(self) -> Transport:
        """How commands reach its hosts."""
        return SRUN if self.launcher == "slurm" else SSH


@dataclass(frozen=True, kw_only=True, slots=True)
class Rendezvous:
    """Where one attempt runs and how its ranks meet; hosts are named as in the hostfile."""

    cluster: Cluster
    master_address: str = _LOOPBACK
    interfaces: Mapping[str, str] = field(default_factory=dict)
    hosts_without_run_dir: tuple[str, ...] = ()
    left_out: tuple[CheckResult, ...] = ()  # what was wrong with the others


def fleet_of(
    *,
    hostfile: str | None,
    launcher: str | None,
    num_nodes: int | None,
    num_gpus: int | None,
    include: str | None,
    exclude: str | None,
    ranks: int | str = "auto",
    max_restarts: int | None = None,
    min_nodes: int | None = None,
    preflight: bool = True,
) -> Fleet:
    """The fleet that the options ask for.

    Args:
        hostfile: a file, or `w1:4,w2:4`; None: this machine, or the batch job's allocation.
        launcher: one of `LAUNCHERS`; None: pdsh with a hostfile, else local.
        num_nodes: use only so many hosts.
        num_gpus: ranks per host.
        include: DeepSpeed's filter of hosts and slots.
        exclude: the opposite.
        ranks: ranks per host, as the recipe says; for a local run.
        max_restarts: attempts after the first; None: 3 on several hosts, none here.
        min_nodes: with how few hosts a restart goes on; None: one.
        preflight: check the hosts before each attempt.

    Raises:
        HostfileError: the hostfile or a filter is wrong.
        OptionError: an option is wrong.
    """
    if launcher is not None and launcher not in LAUNCHERS:
        raise OptionError(
            f"there is no launcher `{launcher}`",
            where=Where(key="--launcher"),
            hint=did_you_mean(launcher, LAUNCHERS) or f"there are: {', '.join(LAUNCHERS)}",
        )
    hosts = _hosts(hostfile, launcher)
    if hosts is None:
        _only_for_hosts({"--num-nodes": num_nodes, "--min-nodes": min_nodes})
        here = local_cluster(num_gpus=num_gpus, ranks=ranks, include=include, exclude=exclude)
        return Fleet(cluster=here, max_restarts=max_restarts or 0)
    chosen = select(hosts, include=include, exclude=exclude, num_nodes=num_nodes, num_gpus=num_gpus)
    if launcher in (None, "local") and hosts_here(chosen):
        here = local_cluster(num_gpus=chosen[0].slots)
        return Fleet(cluster=here, max_restarts=max_restarts or 0)
    if launcher == "local":
        raise OptionError(
            f"`--launcher local` can't reach {chosen[0].name}",
            where=Where(key="--launcher"),
            hint="leave it out: pdsh is taken",
        )
    if min_nodes is not None and min_nodes > len(chosen):
        raise OptionError(
            f"{min_nodes} hosts are the fewest, but there are {len(chosen)}",
            where=Where(key="--min-nodes"),
        )
    return Fleet(
        cluster=_cluster(chosen),
        launcher=launcher or "pdsh",
        preflight=preflight,
        min_nodes=min_nodes or 1,
        max_restarts=_RESTARTS if max_restarts is None else max_restarts,
    )


def gather(
    fleet: Fleet,
    run: Path,
    port: int,
    *,
    first: bool,
    needs_shared: bool = True,
    files: tuple[Path, ...] = (),
    needs: Callable[[Cluster], int | None] = lambda cluster: None,
) -> Rendezvous:
    """The hosts of an attempt: all of them at first, later those that are fit.

    Args:
        fleet: all hosts.
        run: the run directory.
        port: where the ranks will meet.
        first: whether it is the first attempt, for which every host must be fit.
        needs_shared: whether every host must see the run directory; else it gets a copy.
        files: what must be the same on every host.
        needs: bytes that a rank needs on its device, as planned for a cluster.

    Raises:
        PreflightError: too few hosts are.
    """
    cluster, hosts = fleet.cluster, fleet.cluster.hosts
    if not fleet.remote:
        return Rendezvous(cluster=cluster)
    if not fleet.preflight:
        return Rendezvous(cluster=cluster, master_address=_resolve(hosts[0]))
    requirements = Requirements(
        run=run,
        port=port,
        needs_shared=needs_shared,
        # a launching host without accelerators may still launch onto hosts that have them
        kind=cluster.device.kind if cluster.device.kind != "cpu" or cpu_wanted() else None,
        needs=lambda device: needs(replace(cluster, hosts=hosts, device=device)),
        files=files,
        transport=fleet.transport,
    )
    left_out: list[CheckResult] = []
    while hosts:
        found = preflight(hosts, requirements)
        red = wrong(found.results)
        if not red and found.master_address is not None:
            return Rendezvous(
                cluster=replace(cluster, hosts=hosts, device=found.device or cluster.device),
                master_address=found.master_address,
                interfaces=found.interfaces,
                hosts_without_run_dir=found.hosts_without_run_dir,
                left_out=tuple(left_out),
            )
        left_out += red
        unfit = {result.host for result in red} or {hosts[0].name}
        fit = tuple(host for host in hosts if host.name not in unfit)
        if first or len(fit) < fleet.min_nodes or not fit:
            raise PreflightError(
                f"{len(left_out)} check{'s' if len(left_out) > 1 else ''} failed on "
                f"{', '.join(dict.fromkeys(result.host for result in left_out))}",
                findings=[_finding(result) for result in left_out],
                hint="`dslm hosts check` shows all of them; `--no-preflight` goes on without",
            )
        hosts = fit  # the others again: the master may be another one now
    raise PreflightError("no host is left")


def split(fleet: Fleet, fit: Cluster, decide: Callable[[Cluster], _Decided]) -> _Decided:
    """What is decided for the largest part of a cluster that anything can be decided for.

    Args:
        fleet: the fewest hosts.
        fit: the hosts that are fit.
        decide: raises RecipeError where the global batch can't be split over a cluster.

    Raises:
        RecipeError: no cluster will do; what was wrong with the largest.
    """
    refusal: RecipeError | None = None
    for some in _smaller_and_smaller(fit.hosts, fleet.min_nodes):
        try:
            return decide(replace(fit, hosts=some))
        except RecipeError as failure:
            refusal = refusal or failure
    raise refusal or RecipeError("no host is left")


def _smaller_and_smaller(hosts: Sequence[Host], fewest: int) -> Iterator[tuple[Host, ...]]:
    """All hosts with all slots, then fewer hosts, then fewer slots on each."""
    most = max(host.slots for host in hosts)
    for slots in range(most, 0, -1):
        cut = tuple(
            replace(host, slots=min(host.slots, slots), devices=host.devices[:slots])
            for host in hosts
        )
        for count in range(len(cut), fewest - 1, -1):
            yield cut[:count]


def _finding(result: CheckResult) -> Finding:
    return Finding(
        message=f"{result.check}: {result.detail}", where=Where(key=result.host), hint=result.fix
    )


def _hosts(hostfile: str | None, launcher: str | None) -> Sequence[Host] | None:
    """The hosts that are named; None: this machine."""
    if hostfile is not None:
        return load_hosts(hostfile)
    if launcher in (None, "local"):
        return None
    allocation = read_allocation(os.environ)
    if allocation is None:
        raise OptionError(
            f"`--launcher {launcher}` needs hosts, and this is not inside a batch job",
            where=Where(key="--launcher"),
            hint="name them with `--hostfile FILE` or `-H w1:4,w2:4`",
        )
    return allocation.hosts


def _only_for_hosts(options: Mapping[str, int | None]) -> None:
    for name, value in options.items():
        if value is not None:
            raise OptionError(
                f"`{name}` needs hosts", where=Where(key=name), hint="add `--hostfile FILE`"
            )


def _cluster(hosts: tuple[Host, ...]) -> Cluster:
    """The cluster of these hosts; what this machine has, they are taken to have until asked."""
    here = local_cluster()
    if here.device.kind != "cpu":
        return Cluster(hosts=hosts, device=here.device)
    share = here.device.memory_bytes * here.world_size // max(host.slots for host in hosts)
    return Cluster(hosts=hosts, device=replace(here.device, memory_bytes=share))


def _resolve(host: Host) -> str:
    """A host's address, where nobody asked the host itself.

    Raises:
        PreflightError: its name isn't known here, or is a loopback address.
    """
    try:
        address = socket.gethostbyname(host.address)
    except OSError as failure:
        raise PreflightError(
            f"the name of {host.name} can't be resolved: {failure}",
            hint="leave out `--no-preflight`: the host is asked for its address then",
        ) from failure
    if address.startswith("127."):
        raise PreflightError(
            f"{host.name} resolves to {address}, where no other host can reach it",
            hint="give its address in the hostfile, or leave out `--no-preflight`",
        )
    return address
