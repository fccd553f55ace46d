"""The hosts that Slurm has given to this job, from the variables that it sets inside one.

A slot is an accelerator where the job has some, else a task. Source: "Output environment variables"
of sbatch(1).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from dslm.cluster.allocation import checked
from dslm.cluster.hosts import Host
from dslm.errors import HostfileError, Where

_NODELIST = "SLURM_JOB_NODELIST"
_MOST_HOSTS = 100_000


def allocation(variables: Mapping[str, str]) -> tuple[Host, ...] | None:
    """Return the hosts of a Slurm job; None outside of any.

    Raises:
        HostfileError: what the variables say can't be understood.
    """
    if not variables.get(_NODELIST):
        return None
    return checked(_hosts(variables), _NODELIST)


def expand_hostlist(text: str) -> list[str]:
    """The names of Slurm's compressed list: `gpu-[01-03,7],login` is five of them, in its order.

    Raises:
        HostfileError: brackets that don't match, or an invalid range.
    """
    where = Where(key=_NODELIST)
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
    """Return the numbers of Slurm's compressed counts: `2(x3),1` is 2, 2, 2, 1.

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
                where=Where(key=_NODELIST),
            )
        # a first number with zeros before it gives the width of all
        numbers += [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
    return numbers


def _hosts(variables: Mapping[str, str]) -> list[Host]:
    names = expand_hostlist(variables[_NODELIST])
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
