"""The cluster that a plan is for: from options to hosts that need not exist here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dslm.cluster.detect import local_cluster, this_machine
from dslm.cluster.devices import Device, cpu_device, device_named
from dslm.cluster.hostfile import load_hostfile
from dslm.cluster.hosts import Cluster
from dslm.cluster.measured import with_links, with_measured
from dslm.errors import OptionError, Where
from dslm.plan.report import SLOTS_PER_HOST, cluster_of

CPU = "cpu"


def planned_cluster(
    *,
    gpus: int | None,
    hosts: int | None,
    device: str | None,
    hostfile: Path | None,
    ranks: int | str = "auto",
) -> Cluster:
    """Return the cluster that options describe; this machine, if none is given.

    Args:
        gpus: devices in total; None: eight a host.
        hosts: over how many hosts they are spread; None: eight devices a host.
        device: their kind; None: as here, or H100s where there is no accelerator.
        hostfile: names the hosts, instead of `gpus` and `hosts`.
        ranks: ranks per host, as the recipe says.

    Raises:
        OptionError: options that contradict each other, or an unknown device.
    """
    if hostfile is not None and (gpus or hosts):
        raise OptionError(
            "a hostfile says how many GPUs and hosts there are: leave `--gpus` and `--hosts` out",
            where=Where(key="--hostfile"),
        )
    if device is None and gpus is None and hosts is None and hostfile is None:
        return local_cluster(ranks=ranks)
    if device == CPU:
        each = gpus if gpus is not None else ranks if isinstance(ranks, int) else 1
        count = each if gpus is not None else each * (hosts or 1)
        kind = planned_device(CPU, max(1, count // (hosts or 1)))
        if hostfile is not None:
            named = load_hostfile(hostfile)
            return Cluster(hosts=named, device=with_links(kind, [host.name for host in named]))
        made = cluster_of(kind, count, hosts or 1)
        return replace(made, host_memory_bytes=this_machine().memory_bytes)
    if device is not None:
        kind = planned_device(device)
    else:
        here = this_machine().accelerators
        kind = with_measured(here[0]) if here else planned_device("h100-80gb")
    if hostfile is not None:
        named = load_hostfile(hostfile)
        return Cluster(hosts=named, device=with_links(kind, [host.name for host in named]))
    per_host = ranks if isinstance(ranks, int) else SLOTS_PER_HOST
    return cluster_of(kind, gpus or per_host * (hosts or 1), hosts or (None if gpus else 1))


def planned_device(name: str, ranks: int = 1) -> Device:
    """Return a kind of device by its name; a CPU is like this machine's, shared by `ranks`.

    Raises:
        OptionError: the name is unknown.
    """
    if name == CPU:
        return with_measured(cpu_device(this_machine().memory_bytes // ranks))
    return with_measured(device_named(name))
