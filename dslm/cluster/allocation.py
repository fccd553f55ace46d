"""The hosts that a batch system has given to this job: Slurm, PBS or LSF.

In come the variables (and the node file they name) that the batch system sets inside a job, out
come hosts with slots. A slot is an accelerator where the job has some, else a task. Sources:
"Output environment variables" of sbatch(1); the PBS Professional User's Guide, "PBS_NODEFILE";
IBM Spectrum LSF, "Environment variables set for job execution".
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dslm.cluster.hostfile import check_host_name
from dslm.cluster.hosts import Host
from dslm.errors import HostfileError, Where

_MOST_HOSTS = 100_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Allocation:
    """What a job may use: `scheduler` is slurm, pbs or lsf."""

    scheduler: str
    job: str
    hosts: tuple[Host, ...]


def read_allocation(variables: Mapping[str, str]) -> Allocation | None:
    """The allocation that the environment tells of; None outside of any.

    Raises:
        HostfileError: the environment names one, but what it says can't be understood.
    """
    for scheduler, sign, job, read in (
        ("slurm", "SLURM_JOB_NODELIST", "SLURM_JOB_ID", _slurm),
        ("pbs", "PBS_NODEFILE", "PBS_JOBID", _pbs),
        ("lsf", "LSB_JOBID", "LSB_JOBID", _lsf),
    ):
        if not variables.get(sign):
            continue
        hosts = read(variables)
        for host in hosts:
            try:
                check_host_name(host.name)
            except ValueError as failure:
                raise HostfileError(str(failure), where=Where(key=sign)) from failure
        if not hosts:
            raise HostfileError("the allocation names no host", where=Where(key=sign))
        return Allocation(scheduler=scheduler, job=variables.get(job, ""), hosts=tuple(hosts))
    return None


def expand_hostlist(text: str) -> list[str]:
    """The names of Slurm's compressed list: `gpu-[01-03,7],login` is five of them, in its order.

    Raises:
        HostfileError: brackets that don't match, or a range that is none.
    """
    where = Where(key="SLURM_JOB_NODELIST")
    names: list[str] = []
    # commas between brackets belong to the brackets
    for part in re.findall(r"(?:[^,\[\]]|\[[^\[\]]*\])+|[\[\]]", text):
        pieces = re.split(r"\[([^\[\]]*)\]", part)
        if "[" in "".join(pieces[::2]) or "]" in "".join(pieces[::2]):
            raise HostfileError(f"the brackets of `{text}` don't match", where=where)
        found = [pieces[0]]
        for ranges, after in zip(pieces[1::2], pieces[2::2], strict=True):
            numbers = _numbers(ranges, text)
            if len(found) * len(numbers) > _MOST_HOSTS:
                raise HostfileError(f"more than {_MOST_HOSTS} hosts", where=where)
            found = [f"{before}{number}{after}" for before in found for number in numbers]
        names += found
    return names


def expand_counts(text: str) -> list[int]:
    """The numbers of Slurm's compressed counts: `2(x3),1` is 2, 2, 2, 1.

    Raises:
        HostfileError: it isn't such a list.
    """
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]+)(?:\(x([0-9]{1,6})\))?", part)
        if not match:
            raise HostfileError(f"`{part}` is not a number of tasks", where=Where(key=text))
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def _numbers(ranges: str, text: str) -> list[str]:
    numbers: list[str] = []
    for part in ranges.split(","):
        match = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", part)
        first, last = (match[1], match[2] or match[1]) if match else ("1", "0")
        if not 0 <= int(last) - int(first) < _MOST_HOSTS:
            raise HostfileError(
                f"`{part}` in `{text}` is not a range of numbers",
                where=Where(key="SLURM_JOB_NODELIST"),
            )
        # a first number with zeros before it gives the width of all
        numbers += [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
    return numbers


def _slurm(variables: Mapping[str, str]) -> list[Host]:
    names = expand_hostlist(variables["SLURM_JOB_NODELIST"])
    accelerators = _slurm_gpus(variables)
    if accelerators:
        return [Host(name, accelerators) for name in names]
    every = variables.get("SLURM_NTASKS_PER_NODE", "")
    if every.isdigit() and int(every):
        # of the job, even where this process is one task of it (SLURM_TASKS_PER_NODE is 1 then)
        return [Host(name, int(every)) for name in names]
    tasks = variables.get("SLURM_TASKS_PER_NODE", "")
    counts = expand_counts(tasks) if tasks else [1] * len(names)
    if len(counts) != len(names):
        raise HostfileError(
            f"{len(names)} hosts, but the tasks of {len(counts)}: `{tasks}`",
            where=Where(key="SLURM_TASKS_PER_NODE"),
        )
    return [Host(name, count) for name, count in zip(names, counts, strict=True)]


def _slurm_gpus(variables: Mapping[str, str]) -> int:
    """GPUs of each host: `4`, `a100:4` or `gpu:a100:4`; 0 when the job has none."""
    for name in ("SLURM_GPUS_PER_NODE", "SLURM_GPUS_ON_NODE"):
        number = variables.get(name, "").partition("(")[0].rpartition(":")[2]
        if number.isdigit() and int(number):
            return int(number)
    return 0


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
