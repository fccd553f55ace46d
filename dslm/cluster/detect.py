"""This machine as a cluster of one host: its accelerators, or its CPU.

Asks the driver through `nvidia-smi`, since importing torch would cost seconds.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass

from dslm import environment
from dslm.cluster.devices import Device, cpu_device, device_reported
from dslm.cluster.hosts import Cluster, Host
from dslm.cluster.measured import with_measured
from dslm.cluster.select import slot_indices
from dslm.errors import OptionError, Where

LOCALHOST = "localhost"
_RANKS_PER_CORE = 4  # more ranks than cores is slow but right: that much is let through


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What this machine has: all its accelerators, which of them are visible, or none."""

    accelerators: tuple[Device, ...]
    visible: tuple[int, ...]  # as the driver counts them
    memory_bytes: int
    cores: int


def this_machine() -> Machine:
    """Look at this machine."""
    import psutil

    accelerators = _cuda_devices()
    return Machine(
        accelerators=accelerators,
        visible=_visible(len(accelerators), os.environ.get(environment.VISIBLE_DEVICES)),
        memory_bytes=psutil.virtual_memory().total,
        cores=len(os.sched_getaffinity(0)),
    )


def local_cluster(
    *,
    num_gpus: int | None = None,
    ranks: int | str = "auto",
    include: str | None = None,
    exclude: str | None = None,
    machine: Machine | None = None,
) -> Cluster:
    """The cluster of one local run.

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
        what = "accelerators" if machine.accelerators else f"for {machine.cores} CPU cores"
        raise OptionError(
            f"{asked} ranks are asked for, but there are only {len(chosen)} slots here ({what})",
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


def _cuda_devices() -> tuple[Device, ...]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    try:
        answer = subprocess.run(
            [program, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ()  # a driver that doesn't answer: nothing can be trained on
    found = []
    for line in answer.splitlines():
        product, _, mebibytes = line.rpartition(",")
        if mebibytes.strip().isdigit():
            found.append(device_reported(product.strip(), int(mebibytes) * 2**20))
    return tuple(found)


def _visible(count: int, setting: str | None) -> tuple[int, ...]:
    """Those that CUDA_VISIBLE_DEVICES shows; names that are no numbers can't be told: the first."""
    if setting is None:
        return tuple(range(count))
    names = [name.strip() for name in setting.split(",") if name.strip()]
    if not all(name.isdigit() for name in names):
        return tuple(range(min(count, len(names))))
    return tuple(int(name) for name in names if int(name) < count)
