"""Measure this machine in a process of its own and keep the numbers for the planner."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dslm.ask.call import ask
from dslm.cluster.detect import local_cluster, this_machine
from dslm.cluster.measured import save_measured

_CPU_RANKS = 2


def measure_here(on_phase: Callable[[str], None]) -> dict[str, Any]:
    """Measure the local device, its links and the disk of the current folder."""
    cluster = local_cluster()
    cuda = bool(this_machine().accelerators)
    request = {
        "ranks": cluster.world_size if cuda else _CPU_RANKS,
        "cuda": cuda,
        "folder": str(Path.cwd()),
    }
    numbers = ask("dslm.worker.measure", request, on_phase)
    save_measured(cluster.device.name, numbers)
    return numbers
