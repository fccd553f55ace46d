"""pdsh: DeepSpeed's launcher on every host, reached over pdsh and ssh.

Each host gets one command line, read by its login shell: `cd /`, a Python, fixed options, the hosts
and slots as base64, and the rank's own arguments, which are letters and numbers.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence

from dslm.cluster.allocation import node_files
from dslm.cluster.hosts import Host
from dslm.errors import HostfileError, Where
from dslm.launch.sites.deepspeed import SAFE_WORD, deepspeed_request
from dslm.launch.sites.site import Site
from dslm.launch.spec import LaunchRequest, LaunchSpec
from dslm.reach.remote import SSH

_SSH_ARGS = "PDSH_SSH_ARGS_APPEND"
# never ask for a password; notice a host that is gone
_SSH_OPTIONS = "-oBatchMode=yes -oServerAliveInterval=2 -oServerAliveCountMax=3"


def request(spec: LaunchSpec, inherited: Mapping[str, str] = os.environ) -> LaunchRequest:
    """Return the `deepspeed --launcher pdsh` command of an attempt.

    Raises:
        HostfileError: slots are chosen on a host whose name DeepSpeed's filter can't take.
        ValueError: an argument of the ranks is more than letters, digits and `-_=.,:/@%+`.
    """
    for argument in (spec.module, *spec.arguments):
        if not SAFE_WORD.fullmatch(argument):
            raise ValueError(f"{argument!r} must not reach a shell")
    made = deepspeed_request(
        spec,
        "pdsh",
        inherited,
        settings={_SSH_ARGS: f"{inherited.get(_SSH_ARGS, '')} {_SSH_OPTIONS}".strip()},
    )
    include = _include(spec.cluster.hosts)
    if not include:
        return made
    first, command, *rest = made.argv
    return dataclasses.replace(made, argv=(first, command, "--include", include, *rest))


def _include(hosts: Sequence[Host]) -> str:
    """DeepSpeed's filter for hosts of which only certain slots are used; empty: all first ones.

    Raises:
        HostfileError: a name that holds the filter's own signs.
    """
    if not any(host.devices for host in hosts):
        return ""
    for host in hosts:
        if "@" in host.name or ":" in host.name:
            raise HostfileError(
                f"slots can't be chosen on `{host.name}`: DeepSpeed's filter can't express it",
                where=Where(key="--include"),
                hint="name the user in ~/.ssh/config, and hosts by name",
            )
    slots = {host.name: host.devices or range(host.slots) for host in hosts}
    return "@".join(f"{name}:{','.join(map(str, used))}" for name, used in slots.items())


SITE = Site(name="pdsh", given=node_files, request=request, transport=SSH)
