"""Preflight and launch fan-out on 2, 8 and 32 hosts, made of namespaces on this machine.

All hosts share this machine's cores, so the numbers are an upper limit: a real host runs its own
part itself. The payload imports nothing heavy and only says who it is. Writes its table between
markers of docs/reliability.md.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.pages import Section
from dslm.cluster.devices import cpu_device
from dslm.cluster.hosts import Cluster as Hosts
from dslm.cluster.hosts import Host
from dslm.launch.sites import openmpi, pdsh
from dslm.launch.spec import LaunchSpec
from dslm.run.directory import RunDirectory
from tests.cluster.namespaces import Cluster, missing, wait_for

COUNTS = (2, 8, 32)
REPEATS = 3
_PREFLIGHT = """
import json, sys
from pathlib import Path
from dslm.cluster.hostfile import load_hostfile
from dslm.reach.preflight import Requirements, preflight
found = preflight(load_hostfile(Path(sys.argv[1])), Requirements(run=Path(sys.argv[2]), port=29500))
print(found.seconds if found.ok else json.dumps([str(r) for r in found.results]))
"""


def preflight_seconds(cluster: Cluster, folder: Path) -> float:
    """How long it takes to check all hosts; all of them must pass."""
    hostfile = cluster.hostfile(folder)
    done = cluster.head.run([sys.executable, "-c", _PREFLIGHT, hostfile, folder], check=True)
    return float(done.stdout)


def launch_seconds(cluster: Cluster, folder: Path, launcher: str) -> float:
    """From the start of the launcher until every rank, one a host, has said who it is."""
    run = Path(tempfile.mkdtemp(dir=folder))
    hosts = tuple(Host(host.name, 1) for host in cluster.hosts)
    spec = LaunchSpec(
        module="tests.reach.payload",
        cluster=Hosts(hosts=hosts, device=cpu_device(2**30)),
        run=run,
        attempt=1,
        master_address=cluster.hosts[0].address,
        master_port=29500,
        interface="eth0",
    )
    request = {"pdsh": pdsh.request, "openmpi": openmpi.request}[launcher](spec)
    RunDirectory(run).logs(1).mkdir(parents=True)
    for file, text in request.files.items():
        file.write_text(text)
    began = time.perf_counter()
    started = cluster.head.start(
        ["env", "-C", str(request.folder), *request.argv],
        env=request.whole_environment(os.environ),
        stdout=(run / "log").open("wb"),
        stderr=-2,
    )
    wait_for(lambda: len(list(run.glob("rank-*.json"))) == len(hosts), 300)
    seconds = time.perf_counter() - began
    assert started.wait(300) == 0, (run / "log").read_text()
    return seconds


def measure(counts: tuple[int, ...] = COUNTS, repeats: int = REPEATS) -> str:
    """The table."""
    lines = [
        "| hosts | preflight | pdsh, node launcher | `deepspeed --launcher openmpi` |",
        "|---|---|---|---|",
    ]
    for count in counts:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            folder.chmod(0o755)
            (folder / "cluster").mkdir()
            cluster = Cluster(folder / "cluster", count)
            cluster.start()
            try:
                seconds = [
                    [preflight_seconds(cluster, folder) for _ in range(repeats)],
                    [launch_seconds(cluster, folder, "pdsh") for _ in range(repeats)],
                    [launch_seconds(cluster, folder, "openmpi") for _ in range(repeats)],
                ]
            finally:
                cluster.stop()
        lines.append(f"| {count} | " + " | ".join(f"{median(s):.1f} s" for s in seconds) + " |")
    return "\n".join(lines) + "\n"


def report(counts: tuple[int, ...] = COUNTS) -> str:
    """The section, with how it was measured."""
    reason = missing()
    if reason:
        return f"## Launching\n\nNot measured: {reason}.\n"
    return (
        "## Launching\n\n"
        "Seconds until every host was checked, and from the "
        "start of the launcher until one rank on every host had said who it is (medians of "
        f"{REPEATS}). The hosts are namespaces that share this machine: on hosts of their own each "
        f"would be faster.\n\n{measure(counts)}"
    )


def main() -> None:
    """Measure, and write it down; for other numbers of hosts only show it."""
    counts = tuple(map(int, sys.argv[1:]))
    if counts:
        print(report(counts))
    else:
        Section("reliability.md", "python -m benchmarks.launching").write(report())


if __name__ == "__main__":
    main()
