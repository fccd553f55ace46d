"""Common parts of requests: DeepSpeed's two launchers, and their environment.

`deepspeed.launcher.launch` starts the ranks of one host, and is all that is needed where a host is
reached already. The `deepspeed` command (the runner) loads torch and DeepSpeed for seconds to make
a command line out of a hostfile: it is used where it starts ranks in a way of its own. It pastes
some of its variables and its folder into command lines, so it gets none of those variables, and a
folder that is one plain word; what the ranks need of them travels in the attempt file. Source:
`main` in deepspeed/launcher/runner.py (0.19.8), EXPORT_ENVS and DEEPSPEED_ENVIRONMENT_NAME, and
`get_cmd` of each runner in multinode_runner.py.
"""

from __future__ import annotations

import base64
import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from dslm import environment
from dslm.cluster.hostfile import render_hostfile
from dslm.cluster.hosts import Host
from dslm.errors import HostfileError, OptionError, Where
from dslm.launch.spec import LaunchRequest, LaunchSpec

SAFE_WORD = re.compile(r"[A-Za-z0-9_@%+=:,./-]+")
# DeepSpeed exports what begins so to every host, on a command line
_EXPORTED = ("MLFLOW", "PYTHON", "MV2", "UCX", "NCCL")
# a folder that is there on every host, in one word
FOLDER = Path("/")
# DeepSpeed joins this to the home folder and to the current one; it can never exist there
_NO_ENVIRONMENT_FILE = "/dev/null/none"


def deepspeed_request(
    spec: LaunchSpec,
    launcher: str,
    inherited: Mapping[str, str],
    *,
    launcher_args: Sequence[str] = (),
    program: Sequence[str] = (),
    settings: Mapping[str, str] | None = None,
    owns_parents: bool = True,
) -> LaunchRequest:
    """Return the `deepspeed` command that starts an attempt on several hosts.

    Args:
        spec: the attempt; its hosts, the master's address and the hostfile's path are there.
        launcher: DeepSpeed's own name of it.
        inherited: the variables of this process.
        launcher_args: for the launcher below DeepSpeed; DeepSpeed splits them as a shell would.
        program: what every rank runs instead of `--module MODULE`.
        settings: variables for the launcher on this host.
        owns_parents: see `LaunchRequest`.

    Raises:
        OptionError: Python lies in a folder whose name a shell would change.
    """
    check_python()
    chosen = {environment.DEEPSPEED_ENVIRONMENT_FILE: _NO_ENVIRONMENT_FILE, **(settings or {})}
    if spec.cluster.device.kind == "cpu":
        chosen.setdefault(environment.ACCELERATOR, "cpu")
    args = ("--launcher_args", shlex.join(launcher_args)) if launcher_args else ()
    return LaunchRequest(
        argv=(
            sys.executable,
            str(Path(sys.executable).parent / "deepspeed"),
            "--hostfile",
            str(spec.hostfile),
            "--launcher",
            launcher,
            *args,
            "--no_ssh_check",  # preflight has asked every host, not the first alone
            "--force_multi",  # else a single other host would become a local run
            "--master_addr",
            spec.master_address,
            "--master_port",
            str(spec.master_port),
            "--no_local_rank",
            *(program or ("--module", spec.module)),
            *spec.arguments,
        ),
        environment=chosen,
        removed=frozenset(n for n in inherited if n.startswith(_EXPORTED))
        | {environment.VISIBLE_DEVICES},
        folder=FOLDER,
        files={spec.hostfile: render_hostfile(bare_hosts(spec.cluster.hosts))},
        owns_parents=owns_parents,
    )


def node_launcher(spec: LaunchSpec, *more: str) -> tuple[str, ...]:
    """Return the command that starts the ranks of one host: DeepSpeed's launcher there.

    It is what the `deepspeed` command starts on each host, too. Source: `main` in
    deepspeed/launcher/runner.py and `PDSHRunner.get_cmd` in multinode_runner.py (0.19.8).

    Args:
        spec: the attempt.
        more: further options, such as which of the hosts it is.
    """
    slots = {
        host.name: list(host.devices) or list(range(host.slots))
        for host in bare_hosts(spec.cluster.hosts)
    }
    world = base64.urlsafe_b64encode(json.dumps(slots).encode()).decode()
    return (
        sys.executable,
        "-u",
        "-m",
        "deepspeed.launcher.launch",
        f"--world_info={world}",
        *more,
        "--master_addr",
        spec.master_address,
        "--master_port",
        str(spec.master_port),
        "--no_local_rank",
        "--module",
        spec.module,
        *spec.arguments,
    )


def check_python() -> None:
    """Check that this Python's path can go through a shell.

    Raises:
        OptionError: it lies in a folder whose name a shell would change.
    """
    if not SAFE_WORD.fullmatch(sys.executable):
        raise OptionError(
            "DeepSpeed can't start this Python on other hosts: a shell would read its path",
            where=Where(file=sys.executable),
            hint="install dslm in a folder without spaces and special characters in its name",
        )


def bare_hosts(hosts: Sequence[Host]) -> list[Host]:
    """Hosts as launchers take them: an IPv6 address without brackets."""
    return [replace(host, name=host.name.replace("[", "").replace("]", "")) for host in hosts]


def no_devices_chosen(hosts: Sequence[Host], launcher: str) -> None:
    """Check that every host gives its first slots.

    Raises:
        HostfileError: other slots were chosen, and the launcher can't do that.
    """
    chosen = next((host for host in hosts if host.devices), None)
    if chosen is not None:
        raise HostfileError(
            f"slots {', '.join(map(str, chosen.devices))} of {chosen.name} are chosen, and "
            f"`--launcher {launcher}` always takes the first ones",
            where=Where(key="--include"),
            hint="`--launcher pdsh`, or whole hosts",
        )
