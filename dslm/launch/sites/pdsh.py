"""pdsh: DeepSpeed's launcher of one host on every host, reached over pdsh and ssh.

Each host gets one command line, read by its login shell: `cd /`, a Python, fixed options, the hosts
and slots as base64, and the rank's own arguments, which are letters and numbers. It is the one that
`deepspeed --launcher pdsh` makes (`PDSHRunner.get_cmd` in multinode_runner.py, 0.19.8), which loads
torch and DeepSpeed for that, and ends other people's jobs by `pkill -f` when it is interrupted.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from dslm.cluster.allocation import node_files
from dslm.launch.sites.deepspeed import (
    FOLDER,
    SAFE_WORD,
    bare_hosts,
    check_python,
    node_launcher,
)
from dslm.launch.sites.site import Site
from dslm.launch.spec import LaunchRequest, LaunchSpec
from dslm.reach.remote import SSH

_RCMD = "PDSH_RCMD_TYPE"
_SSH_ARGS = "PDSH_SSH_ARGS_APPEND"
# never ask for a password; notice a host that is gone
_SSH_OPTIONS = "-oBatchMode=yes -oServerAliveInterval=2 -oServerAliveCountMax=3"
_MOST_AT_ONCE = "1024"  # as DeepSpeed has it, PDSH_MAX_FAN_OUT


def request(spec: LaunchSpec, inherited: Mapping[str, str] = os.environ) -> LaunchRequest:
    """Return the pdsh command of an attempt.

    Raises:
        OptionError: Python lies in a folder whose name a shell would change.
        ValueError: an argument of the ranks is more than letters, digits and `-_=.,:/@%+`.
    """
    check_python()
    for argument in (spec.module, *spec.arguments):
        if not SAFE_WORD.fullmatch(argument):
            raise ValueError(f"{argument!r} must not reach a shell")
    hosts = ",".join(host.name for host in bare_hosts(spec.cluster.hosts))
    # pdsh replaces %n by the place of a host in its list
    remote = f"cd {FOLDER}; {' '.join(node_launcher(spec, '--node_rank=%n'))}"
    return LaunchRequest(
        # through env(1), which says so in the launcher's log where there is no pdsh
        argv=("env", "pdsh", "-S", "-f", _MOST_AT_ONCE, "-w", hosts, remote),
        environment={
            _RCMD: "ssh",
            _SSH_ARGS: f"{inherited.get(_SSH_ARGS, '')} {_SSH_OPTIONS}".strip(),
        },
        folder=FOLDER,
    )


SITE = Site(name="pdsh", given=node_files, request=request, transport=SSH)
