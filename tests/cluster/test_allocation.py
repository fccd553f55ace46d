"""What batch systems say inside a job, and what it means."""

from __future__ import annotations

from pathlib import Path

import pytest

from dslm.cluster.allocation import node_files
from dslm.cluster.hosts import Host
from dslm.errors import HostfileError


def test_pbs(tmp_path: Path) -> None:
    nodes = tmp_path / "nodes"
    nodes.write_text("n1.site\nn1.site\nn2.site\nn2.site\n")
    variables = {"PBS_NODEFILE": str(nodes), "PBS_JOBID": "12.server"}
    found = node_files(variables)
    assert found == (Host("n1.site", 2), Host("n2.site", 2))
    gpus = tmp_path / "gpus"
    gpus.write_text("n1-gpu0\nn1-gpu1\nn2-gpu0\n")
    found = node_files({**variables, "PBS_GPUFILE": str(gpus)})
    assert found == (Host("n1", 2), Host("n2", 1))


def test_lsf(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text("hostA\nhostA\nhostB\n")
    for variables in (
        {"LSB_DJOB_HOSTFILE": str(file)},
        {"LSB_MCPU_HOSTS": "hostA 2 hostB 1"},
        {"LSB_HOSTS": "hostA hostA hostB"},
    ):
        found = node_files({"LSB_JOBID": "7", **variables})
        assert found == (Host("hostA", 2), Host("hostB", 1))


BAD = [
    {"PBS_NODEFILE": "/nowhere/nodes"},
    {"LSB_JOBID": "7", "LSB_MCPU_HOSTS": "hostA 2 hostB"},
    {"LSB_JOBID": "7"},
]


@pytest.mark.parametrize("variables", BAD)
def test_what_cannot_be_understood_is_an_error(variables: dict[str, str]) -> None:
    with pytest.raises(HostfileError):
        node_files(variables)


def test_outside_of_a_job_there_is_none() -> None:
    assert node_files({"PATH": "/bin"}) is None
