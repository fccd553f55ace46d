"""This machine: DeepSpeed's launcher of one host, one process a rank."""

from __future__ import annotations

from dslm import environment
from dslm.launch.sites.deepspeed import node_launcher
from dslm.launch.sites.site import Site
from dslm.launch.spec import LaunchRequest, LaunchSpec


def request(spec: LaunchSpec) -> LaunchRequest:
    """Return the command of a local attempt.

    It is what `deepspeed` would start after it has loaded torch and itself to look for a hostfile.
    """
    settings = {environment.SAFE_PATH: "1"}
    if spec.cluster.device.kind == "cpu":
        settings[environment.ACCELERATOR] = "cpu"
    # the launcher names each rank its devices, out of all that there are
    chosen = any(host.devices for host in spec.cluster.hosts)
    return LaunchRequest(
        argv=node_launcher(spec),
        environment=settings,
        removed=frozenset({environment.VISIBLE_DEVICES}) if chosen else frozenset(),
    )


SITE = Site(
    name="local", given=lambda variables: None, request=request, transport=None, remote=False
)
