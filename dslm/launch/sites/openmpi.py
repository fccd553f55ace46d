"""OpenMPI: mpirun starts every rank, through DeepSpeed's launcher.

mpirun reaches hosts over ssh itself and hands the ranks' arguments on over its own connections. The
ranks call nothing of MPI: they read who they are from OMPI_COMM_WORLD_* and meet through torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from dslm.cluster.allocation import node_files
from dslm.errors import HostfileError, Where
from dslm.launch.sites.deepspeed import deepspeed_request, no_devices_chosen
from dslm.launch.sites.site import Site
from dslm.launch.spec import LaunchRequest, LaunchSpec
from dslm.reach.remote import SSH


def request(
    spec: LaunchSpec, inherited: Mapping[str, str] = os.environ, *, root: bool | None = None
) -> LaunchRequest:
    """Return the `deepspeed --launcher openmpi` command of an attempt.

    Args:
        spec: the attempt.
        inherited: the variables of this process.
        root: whether root starts it, for which mpirun needs an option; None: look.

    Raises:
        HostfileError: certain slots are chosen, or a host is an IPv6 address.
    """
    no_devices_chosen(spec.cluster.hosts, "openmpi")
    for host in spec.cluster.hosts:
        if ":" in host.name:
            raise HostfileError(
                f"mpirun can't take the IPv6 address {host.name}",
                where=Where(key="--hostfile"),
                hint="give the host a name, or `--launcher pdsh`",
            )
    is_root = os.geteuid() == 0 if root is None else root
    arguments = [
        # DeepSpeed would say eth0; nothing of it is used unless a script calls MPI itself
        *("--mca", "btl_tcp_if_include", spec.interface or "lo"),
        *("--map-by", "slot"),  # ranks in the order of the hostfile
        *("--bind-to", "none"),  # else two ranks get one core each, whatever threads they have
        # this host starts every other one: no host needs to reach another over ssh
        *("--mca", "plm_rsh_no_tree_spawn", "1"),
        *("--mca", "plm_rsh_args", "-oBatchMode=yes"),
        *(("--allow-run-as-root",) if is_root else ()),
    ]
    return deepspeed_request(spec, "openmpi", inherited, launcher_args=arguments)


SITE = Site(
    name="openmpi",
    given=node_files,
    request=request,
    transport=SSH,
    rank_variables=(
        "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_SIZE",
    ),
)  # fmt: skip
