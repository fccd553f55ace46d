"""The cores that the processes of this host have for computing.

Three limits: the cores that this process may run on, of which hardware threads of one core count
once (a matrix product keeps its units busy alone), and the time that its container is given.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path

_ROOT = Path("/")


def usable_cores(allowed: Collection[int] | None = None, root: Path = _ROOT) -> int:
    """Count the cores for computing, at least 1.

    Args:
        allowed: numbers of the processors that this process may run on; None: asks the kernel.
        root: where /sys and /proc are.
    """
    numbers = os.sched_getaffinity(0) if allowed is None else allowed
    cores = {_core_of(number, root) for number in numbers}
    return max(1, min([len(cores), *(int(quota + 0.5) for quota in _quotas(root))]))


def _core_of(number: int, root: Path) -> str:
    """Name a processor's core: all its hardware threads have one name.

    Source: Documentation/ABI/stable/sysfs-devices-system-cpu, core_cpus_list.
    """
    topology = root / f"sys/devices/system/cpu/cpu{number}/topology"
    for name in ("core_cpus_list", "thread_siblings_list"):
        try:
            return (topology / name).read_text(encoding="ascii").strip()
        except OSError:
            continue
    return str(number)


def _quotas(root: Path) -> Iterator[float]:
    """Processors' worth of time for this process's cgroup and those above it.

    Source: Documentation/admin-guide/cgroup-v2.rst, cpu.max; scheduler/sched-bwc.rst for v1.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        below = mount / path.strip("/")
        for folder in (below, *below.parents):
            quota = _quota(folder)
            if quota is not None:
                yield quota
            if folder == mount:
                break


def _quota(folder: Path) -> float | None:
    """Read a cgroup's quota; None where there is none, or it can't be read."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
        else:
            quota, period = (
                (folder / f"cpu.cfs_{name}_us").read_text(encoding="ascii").strip()
                for name in ("quota", "period")
            )
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError):
        return None  # `max` is no number
