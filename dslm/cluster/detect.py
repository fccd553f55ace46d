"""This machine as a cluster of one host: its accelerators, or its CPU."""

from __future__ import annotations

import os
from dataclasses import dataclass

from dslm import environment
from dslm.cluster import nvidia
from dslm.cluster.devices import Device, cpu_device
from dslm.cluster.hosts import Cluster, Host
from dslm.cluster.measured import with_measured
from dslm.cluster.select import slot_indices
from dslm.errors import OptionError, Where
from dslm.units import number_of

LOCALHOST = "localhost"
_RANKS_PER_CORE = 4  # more ranks than cores is slow but right: that much is let through


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """Devices of this machine: all its accelerators, and the visible ones."""

    accelerators: tuple[Device, ...]
    visible: tuple[int, ...]  # as the driver counts them
    memory_bytes: int
    cores: int


def this_machine() -> Machine:
    """Look at this machine."""
    import psutil

    memory = psutil.virtual_memory().total
    told = [] if cpu_wanted() else nvidia.accelerators()
    return Machine(
        accelerators=tuple(nvidia.device_of(device, memory) for device in told),
        visible=nvidia.visible_devices(
            os.environ.get(environment.VISIBLE_DEVICES), [device["uuid"] for device in told]
        ),
        memory_bytes=memory,
        cores=len(os.sched_getaffinity(0)),
    )


def cpu_wanted() -> bool:
    """Return whether DeepSpeed is told to run on the CPU, whatever devices there are."""
    return os.environ.get(environment.ACCELERATOR) == "cpu"


def local_cluster(
    *,
    num_gpus: int | None = None,
    ranks: int | str = "auto",
    include: str | None = None,
    exclude: str | None = None,
    machine: Machine | None = None,
) -> Cluster:
    """Return the cluster of one local run.

    Args:
        num_gpus: ranks, as the option `--num-gpus` says; goes before `ranks`.
        ranks: ranks, as the recipe says.
        include: DeepSpeed's filter, `localhost:0,2`.
        exclude: the opposite.
        machine: what there is; this machine when absent.

    Raises:
        OptionError: more ranks than slots, or a filter that leaves nothing.
    """
    machine = machine or this_machine()
    filtered = include is not None or exclude is not None
    if filtered or not machine.visible:
        # a filter counts as the driver does, and goes before CUDA_VISIBLE_DEVICES, as in DeepSpeed
        slots = len(machine.accelerators) or machine.cores * _RANKS_PER_CORE
        chosen = slot_indices(Host(LOCALHOST, slots), include, exclude)
    else:
        chosen = list(machine.visible)
    asked = num_gpus if num_gpus is not None else (ranks if isinstance(ranks, int) else None)
    if asked is not None and asked > len(chosen):
        what = (
            "accelerators"
            if machine.accelerators
            else f"for {number_of(machine.cores, 'CPU core')}"
        )
        left = number_of(len(chosen), "slot")
        raise OptionError(
            f"{asked} ranks were requested, but here are only {left} ({what})",
            where=Where(key="--num-gpus" if num_gpus is not None else "parallel.ranks"),
            hint=f"`--num-gpus {len(chosen)}` or fewer",
        )
    default = len(chosen) if machine.accelerators or filtered else 1
    count = asked if asked is not None else default
    if not machine.accelerators:
        device = with_measured(cpu_device(machine.memory_bytes // count))
        return Cluster(
            hosts=(Host(LOCALHOST, count),),
            device=device,
            host_memory_bytes=machine.memory_bytes,
        )
    host = Host(LOCALHOST, count, devices=tuple(chosen[:count]))
    return Cluster(
        hosts=(host,),
        device=with_measured(machine.accelerators[chosen[0]]),
        host_memory_bytes=machine.memory_bytes,
    )
