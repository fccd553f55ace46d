"""The hosts that Slurm gives to a job, from the variables that it sets inside one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dslm.cluster.hosts import Host
from dslm.errors import HostfileError
from dslm.launch.sites import allocation
from dslm.launch.sites.slurm.allocation import expand_counts, expand_hostlist

# The first two are what Slurm 22.05 set inside `salloc -N2 --ntasks-per-node=2`, and inside a step
# of one task there (recorded on tests/cluster/slurm.py); with GPUs as sbatch(1) documents them.
SLURM = [
    (
        {
            "SLURM_JOB_NODELIST": "w[1-2]",
            "SLURM_TASKS_PER_NODE": "2(x2)",
            "SLURM_NTASKS_PER_NODE": "2",
            "SLURM_NTASKS": "4",
            "SLURM_NNODES": "2",
            "SLURM_JOB_ID": "1",
        },
        [("w1", 2), ("w2", 2)],
    ),
    (
        {
            "SLURM_JOB_NODELIST": "w[1-2]",
            "SLURM_TASKS_PER_NODE": "1",
            "SLURM_NTASKS_PER_NODE": "2",
            "SLURM_NTASKS": "1",
            "SLURM_NNODES": "1",
            "SLURM_STEP_NODELIST": "w1",
            "SLURM_JOB_ID": "1",
        },
        [("w1", 2), ("w2", 2)],
    ),
    (
        {"SLURM_JOB_NODELIST": "gpu-a-[08-10],big", "SLURM_TASKS_PER_NODE": "4(x3),2"},
        [("gpu-a-08", 4), ("gpu-a-09", 4), ("gpu-a-10", 4), ("big", 2)],
    ),
    (
        {
            "SLURM_JOB_NODELIST": "n[1,3]",
            "SLURM_TASKS_PER_NODE": "1(x2)",
            "SLURM_GPUS_PER_NODE": "a100:8",
        },
        [("n1", 8), ("n3", 8)],
    ),
    ({"SLURM_JOB_NODELIST": "n1", "SLURM_GPUS_ON_NODE": "2"}, [("n1", 2)]),
    ({"SLURM_JOB_NODELIST": "n1"}, [("n1", 1)]),
]


@pytest.mark.parametrize(("variables", "hosts"), SLURM)
def test_slurm(variables: dict[str, str], hosts: list[tuple[str, int]]) -> None:
    assert allocation(variables) == tuple(Host(*host) for host in hosts)


LISTS = [
    ("w1", ["w1"]),
    ("w1,w2", ["w1", "w2"]),
    ("n[001-003]", ["n001", "n002", "n003"]),
    ("n[9-11]", ["n9", "n10", "n11"]),
    ("r[1-2]n[01,05]", ["r1n01", "r1n05", "r2n01", "r2n05"]),
    ("a[1-2]-ib,b", ["a1-ib", "a2-ib", "b"]),
]


@pytest.mark.parametrize(("text", "names"), LISTS)
def test_compressed_lists(text: str, names: list[str]) -> None:
    assert expand_hostlist(text) == names


@pytest.mark.parametrize("text", ["n[1-", "n1]", "n[]", "n[3-1]", "n[a-b]", "n[1-9999999]"])
def test_lists_that_are_none(text: str) -> None:
    with pytest.raises(HostfileError):
        expand_hostlist(text)


@given(st.lists(st.integers(1, 64), min_size=1, max_size=30))
def test_counts_survive_compression(counts: list[int]) -> None:
    parts: list[list[int]] = []
    for count in counts:
        if parts and parts[-1][0] == count:
            parts[-1][1] += 1
        else:
            parts.append([count, 1])
    text = ",".join(f"{c}(x{n})" if n > 1 else str(c) for c, n in parts)
    assert expand_counts(text) == counts


BAD = [
    {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_TASKS_PER_NODE": "1"},
    {"SLURM_JOB_NODELIST": "n1", "SLURM_TASKS_PER_NODE": "many"},
    {"SLURM_JOB_NODELIST": "$(reboot)"},
]


@pytest.mark.parametrize("variables", BAD)
def test_what_cannot_be_understood_is_an_error(variables: dict[str, str]) -> None:
    with pytest.raises(HostfileError):
        allocation(variables)


def test_outside_of_a_job_there_is_none() -> None:
    assert allocation({"PATH": "/bin"}) is None
