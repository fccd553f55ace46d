"""The hosts that a batch system has given to this job, where it says so in files: PBS and LSF.

In come the variables (and the node file they name) that the batch system sets inside a job, out
come hosts with slots. A slot is an accelerator where the job has some, else a task. Sources: the
PBS Professional User's Guide, "PBS_NODEFILE"; IBM Spectrum LSF, "Environment variables set for job
execution".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from dslm.cluster.hostfile import check_host_name
from dslm.cluster.hosts import Host
from dslm.errors import HostfileError, Where


def node_files(variables: Mapping[str, str]) -> tuple[Host, ...] | None:
    """Return the hosts of a job of PBS or LSF; None outside of either.

    Raises:
        HostfileError: the environment names one, but what it says can't be understood.
    """
    for sign, read in (("PBS_NODEFILE", _pbs), ("LSB_JOBID", _lsf)):
        if variables.get(sign):
            return checked(read(variables), sign)
    return None


def checked(hosts: Sequence[Host], variable: str) -> tuple[Host, ...]:
    """Return the hosts that a variable names, each with a name that hosts have.

    Raises:
        HostfileError: a name that can't be a host's, or no host at all.
    """
    for host in hosts:
        try:
            check_host_name(host.name)
        except ValueError as failure:
            raise HostfileError(str(failure), where=Where(key=variable)) from failure
    if not hosts:
        raise HostfileError("the allocation names no host", where=Where(key=variable))
    return tuple(hosts)


def _pbs(variables: Mapping[str, str]) -> list[Host]:
    """One line a task; where Torque names the GPUs, `HOST-gpuN`, one line a GPU."""
    gpus = variables.get("PBS_GPUFILE", "")
    if gpus and Path(gpus).is_file():
        lines = [line.rpartition("-gpu")[0] for line in _lines(Path(gpus), "PBS_GPUFILE")]
        if lines:
            return _counted(lines)
    return _counted(_lines(Path(variables["PBS_NODEFILE"]), "PBS_NODEFILE"))


def _lsf(variables: Mapping[str, str]) -> list[Host]:
    """A file with one line a slot, or `hostA 5 hostB 4`, or every slot's host."""
    file = variables.get("LSB_DJOB_HOSTFILE", "")
    if file:
        return _counted(_lines(Path(file), "LSB_DJOB_HOSTFILE"))
    pairs = variables.get("LSB_MCPU_HOSTS", "").split()
    if pairs:
        if len(pairs) % 2 or not all(count.isdigit() and int(count) for count in pairs[1::2]):
            raise HostfileError(
                f"`{' '.join(pairs)}` is not hosts with their slots",
                where=Where(key="LSB_MCPU_HOSTS"),
            )
        return [Host(n, int(count)) for n, count in zip(pairs[::2], pairs[1::2], strict=True)]
    return _counted(variables.get("LSB_HOSTS", "").split())


def _lines(file: Path, variable: str) -> list[str]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as failure:
        raise HostfileError(
            f"the node file can't be read: {failure}", where=Where(file=file, key=variable)
        ) from failure
    return [line.strip() for line in text.splitlines() if line.strip()]


def _counted(names: list[str]) -> list[Host]:
    """Hosts in the order of their first mention, with the number of mentions."""
    return [Host(name, count) for name, count in Counter(names).items()]
