"""Threads are shared out over the cores that there are, not over those that a container shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from dslm.host.cores import usable_cores

V2 = "0::/pod/mine\n"
V1 = "3:cpuset:/\n2:cpu,cpuacct:/pod\n0::/\n"


def host(root: Path, files: dict[str, str], siblings: int = 1, processors: int = 16) -> Path:
    """A host's /proc and /sys, with so many hardware threads a core."""
    cores = processors // siblings
    for number in range(processors):
        same = ",".join(str(number % cores + cores * thread) for thread in range(siblings))
        name = f"sys/devices/system/cpu/cpu{number}/topology/core_cpus_list"
        files = {**files, name: same + "\n"}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "siblings", "cores"),
    [
        ({}, 1, 16),
        ({}, 2, 8),  # hardware threads of one core count once
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/pod/mine/cpu.max": "max 100000\n"}, 1, 16),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/pod/mine/cpu.max": "400000 100000\n"}, 2, 4),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/pod/cpu.max": "250000 100000\n"}, 1, 3),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/cpu.max": "10000 100000\n"}, 1, 1),
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu/pod/cpu.cfs_quota_us": "200000\n",
                "sys/fs/cgroup/cpu/pod/cpu.cfs_period_us": "100000\n",
            },
            1,
            2,
        ),
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu/pod/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/pod/cpu.cfs_period_us": "100000\n",
            },
            1,
            16,
        ),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/pod/mine/cpu.max": "what\n"}, 1, 16),
    ],
)
def test_the_cores_are_those_that_can_compute(
    tmp_path: Path, files: dict[str, str], siblings: int, cores: int
) -> None:
    assert usable_cores(range(16), host(tmp_path, files, siblings)) == cores


def test_a_host_that_shows_nothing_has_the_processors_of_the_process(tmp_path: Path) -> None:
    assert usable_cores({3, 5, 7}, tmp_path) == 3
    assert usable_cores() >= 1
