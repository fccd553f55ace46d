"""Hosts that a run may use: this machine, or hosts on which a site starts ranks.

From options to a fleet. Knows nothing of what is trained.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from dslm.cluster.detect import cpu_wanted, local_cluster
from dslm.cluster.hostfile import load_hosts
from dslm.cluster.hosts import Cluster, Host
from dslm.cluster.select import select
from dslm.errors import OptionError, Where
from dslm.launch.sites import SITES, allocation, site_named
from dslm.launch.sites.site import Site
from dslm.lifecycle.placement import Placement
from dslm.reach.preflight import hosts_here
from dslm.units import number_of

_HERE = "local"
_WITH_HOSTS = "pdsh"  # when hosts are named and no launcher is
_RESTARTS = 3  # after a failure of a run on several hosts


@dataclass(frozen=True, kw_only=True, slots=True)
class Fleet:
    """All hosts that a run may use, and how far it goes without some of them."""

    cluster: Cluster
    site: Site = field(default_factory=lambda: SITES[_HERE])
    preflight: bool = True
    min_nodes: int = 1
    max_restarts: int = 0

    @property
    def remote(self) -> bool:
        """Whether ranks run on other hosts than this one."""
        return self.site.remote

    @property
    def device_known(self) -> bool:
        """Whether its devices are known before its hosts are asked for them."""
        return not self.remote or self.cluster.device.kind != "cpu" or cpu_wanted()


def fleet_of(placement: Placement, ranks: int | str = "auto") -> Fleet:
    """Return the fleet that options ask for.

    Args:
        placement: the options.
        ranks: ranks per host, as the recipe says; for a run on this machine.

    Raises:
        HostfileError: the hostfile or a filter is wrong.
        OptionError: an option is wrong.
    """
    site = site_named(placement.launcher) if placement.launcher is not None else None
    hosts = _hosts(placement, site)
    restarts = placement.max_restarts
    if hosts is None:
        _only_for_hosts(placement)
        here = local_cluster(
            num_gpus=placement.num_gpus,
            ranks=ranks,
            include=placement.include,
            exclude=placement.exclude,
        )
        return Fleet(cluster=here, max_restarts=restarts or 0)
    chosen = select(
        hosts,
        include=placement.include,
        exclude=placement.exclude,
        num_nodes=placement.num_nodes,
        num_gpus=placement.num_gpus,
    )
    if (site is None or not site.remote) and hosts_here(chosen):
        _only_for_hosts(replace(placement, num_nodes=None))
        here = local_cluster(num_gpus=chosen[0].slots)
        return Fleet(cluster=here, max_restarts=restarts or 0)
    if site is not None and not site.remote:
        raise OptionError(
            f"`--launcher {site.name}` can't reach {chosen[0].name}",
            where=Where(key="--launcher"),
            hint=f"leave it out: {_WITH_HOSTS} is the default with hosts",
        )
    fewest = placement.min_nodes
    if fewest is not None and restarts == 0:
        raise OptionError(
            "`--min-nodes` has no effect with `--max-restarts 0`: no attempt follows the first",
            where=Where(key="--min-nodes"),
            hint="leave one of them out",
        )
    if fewest is not None and fewest > len(chosen):
        raise OptionError(
            f"`--min-nodes {fewest}` is more than the {number_of(len(chosen), 'host')} given",
            where=Where(key="--min-nodes"),
        )
    return Fleet(
        cluster=_cluster(chosen),
        site=site or SITES[_WITH_HOSTS],
        preflight=not placement.no_preflight,
        min_nodes=fewest or 1,
        max_restarts=_RESTARTS if restarts is None else restarts,
    )


def _hosts(placement: Placement, site: Site | None) -> Sequence[Host] | None:
    """The hosts that are named; None: this machine."""
    if placement.hostfile is not None:
        return load_hosts(placement.hostfile)
    if site is None or not site.remote:
        return None
    given = allocation(os.environ)
    if given is None:
        raise OptionError(
            f"`--launcher {site.name}` needs hosts, and this is not inside a batch job",
            where=Where(key="--launcher"),
            hint="name them with `--hostfile FILE` or `-H w1:4,w2:4`",
        )
    return given


def _only_for_hosts(placement: Placement) -> None:
    for name, value in (
        ("--num-nodes", placement.num_nodes),
        ("--min-nodes", placement.min_nodes),
        ("--no-preflight", placement.no_preflight or None),
    ):
        if value is not None:
            raise OptionError(
                f"`{name}` only applies to several hosts",
                where=Where(key=name),
                hint="add `--hostfile FILE`",
            )


def _cluster(hosts: tuple[Host, ...]) -> Cluster:
    """The cluster of these hosts; what this machine has, they are taken to have until asked."""
    here = local_cluster()
    if here.device.kind != "cpu":
        return Cluster(hosts=hosts, device=here.device)
    share = here.device.memory_bytes * here.world_size // max(host.slots for host in hosts)
    return Cluster(hosts=hosts, device=replace(here.device, memory_bytes=share))
