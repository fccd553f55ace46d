"""One module a launcher: LaunchSpec in, LaunchRequest out, pure."""

from __future__ import annotations

from collections.abc import Callable

from dslm.launch.sites import local, openmpi, pdsh, slurm
from dslm.launch.spec import LaunchRequest, LaunchSpec

LAUNCHERS: dict[str, Callable[[LaunchSpec], LaunchRequest]] = {
    "local": local.request,
    "pdsh": pdsh.request,
    "openmpi": openmpi.request,
    "slurm": slurm.request,
}
