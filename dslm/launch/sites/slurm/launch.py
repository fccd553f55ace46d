"""Starting an attempt under Slurm: srun starts every rank, through DeepSpeed's launcher.

srun hands variables and arguments on over Slurm's own connections, without any shell. DeepSpeed's
runner for it knows no `--module` (`SlurmRunner.get_cmd`, 0.19.8), so the ranks start through
`dslm/worker/started_by_file.py`, a file, which runs the module.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import dslm
from dslm.errors import HostfileError, Where
from dslm.launch.sites.deepspeed import deepspeed_request, no_devices_chosen
from dslm.launch.spec import LaunchRequest, LaunchSpec
from dslm.reach.remote import Transport

_STARTER = Path(dslm.__file__).parent / "worker" / "started_by_file.py"


def _srun(host: str, argv: Sequence[str]) -> list[str]:
    # srun starts the program itself, without a shell; --overlap: beside what runs already
    place = ["--nodes=1", "--ntasks=1", f"--nodelist={host}", "--overlap", "--quiet"]
    return ["srun", *place, "--", *argv]


SRUN = Transport(name="srun", command=_srun)


def request(spec: LaunchSpec, inherited: Mapping[str, str] = os.environ) -> LaunchRequest:
    """Return the `deepspeed --launcher slurm` command of an attempt, inside an allocation.

    Raises:
        HostfileError: certain slots are chosen, or hosts have different numbers of slots.
    """
    hosts = spec.cluster.hosts
    no_devices_chosen(hosts, "slurm")
    slots = {host.slots for host in hosts}
    if len(slots) > 1:
        raise HostfileError(
            "srun starts the same number of ranks on every host, but they have "
            + ", ".join(f"{host.name} {host.slots}" for host in hosts[:8]),
            where=Where(key="SLURM_TASKS_PER_NODE"),
            hint=f"`--num-gpus {min(slots)}`",
        )
    arguments = [
        f"--nodes={len(hosts)}",
        f"--ntasks-per-node={min(slots)}",
        f"--nodelist={','.join(host.name for host in hosts)}",
        "--distribution=block",  # ranks in the order of the hosts
        "--kill-on-bad-exit=1",
        "--overlap",  # beside what the allocation runs already, such as dslm itself
        "--cpu-bind=none",
        "--mpi=none",
        "--unbuffered",
    ]
    return deepspeed_request(
        spec,
        "slurm",
        inherited,
        launcher_args=arguments,
        program=(str(_STARTER), spec.module),
        owns_parents=False,  # they are slurmstepd's
    )
