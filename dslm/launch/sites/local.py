"""This machine: DeepSpeed's launcher on this host, one process a rank."""

from __future__ import annotations

import sys
from pathlib import Path

from dslm import environment
from dslm.launch.sites.site import Site
from dslm.launch.spec import LaunchRequest, LaunchSpec

# DeepSpeed takes /job/hostfile when none is named; this path can never exist, so the run is local.
_NO_HOSTFILE = "/dev/null/none"


def request(spec: LaunchSpec) -> LaunchRequest:
    """Return the `deepspeed` command of a local attempt."""
    host = spec.cluster.hosts[0]
    if host.devices:
        # DeepSpeed ignores CUDA_VISIBLE_DEVICES beside a number of GPUs, so the devices are named
        where = ["--include", f"localhost:{','.join(str(index) for index in host.devices)}"]
    else:
        where = ["--num_gpus", str(host.slots)]
    settings = {environment.SAFE_PATH: "1"}
    if spec.cluster.device.kind == "cpu":
        settings[environment.ACCELERATOR] = "cpu"
    return LaunchRequest(
        argv=(
            sys.executable,
            str(Path(sys.executable).parent / "deepspeed"),
            "--hostfile",
            _NO_HOSTFILE,
            *where,
            "--master_port",
            str(spec.master_port),
            "--no_local_rank",
            "--module",
            spec.module,
            *spec.arguments,
        ),
        environment=settings,
        removed=frozenset({environment.VISIBLE_DEVICES}) if host.devices else frozenset(),
    )


SITE = Site(
    name="local", given=lambda variables: None, request=request, transport=None, remote=False
)
