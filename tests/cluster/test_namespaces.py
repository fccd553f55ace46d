"""The test cluster is what it says: separate hosts, real faults, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.cluster.namespaces import MakeHosts, wait_for
from tests.processes import HANGS

pytestmark = pytest.mark.hosts


def test_hosts_are_reached_over_ssh_and_pdsh_by_name(hosts: MakeHosts, tmp_path: Path) -> None:
    cluster = hosts(3)
    assert cluster.head.run(["ssh", "w2", "hostname"]).stdout == "w2\n"
    everywhere = cluster.head.run(
        ["pdsh", "-w", "w1,w2,w3", "echo", "%n", "$(hostname)"],
        env={**os.environ, "PDSH_RCMD_TYPE": "ssh"},
    )
    assert sorted(everywhere.stdout.splitlines()) == ["w1: 0 w1", "w2: 1 w2", "w3: 2 w3"]
    # from host to host too, as mpirun needs it
    assert cluster["w3"].run(["ssh", "w1", "hostname"]).stdout == "w1\n"
    assert cluster.hostfile(tmp_path, slots=[1, 2, 2]).read_text().endswith("w3 slots=2\n")


def test_each_host_has_its_own_network_processes_and_shared_memory(hosts: MakeHosts) -> None:
    cluster = hosts(2)
    w1, w2 = cluster.hosts
    assert not cluster.processes()
    sleeper = w1.start(["sleep", "1234.5"])
    wait_for(lambda: bool(w1.find("sleep 1234.5")))
    assert not w2.find("sleep 1234.5")
    assert w2.run(["pgrep", "-f", "1234.5"]).returncode == 1
    w1.run(["touch", "/dev/shm/here"])
    assert w2.run(["ls", "/dev/shm"]).stdout == ""
    assert "10.77.0.1/24" in w1.run(["ip", "-o", "address"]).stdout
    w1.child(sleeper).kill()
    wait_for(lambda: not w1.processes())


def test_a_host_without_power_is_gone_and_comes_back_empty(hosts: MakeHosts) -> None:
    cluster = hosts(2)
    w2 = cluster["w2"]
    w2.start(["sleep", "1000"])
    wait_for(lambda: bool(w2.find("sleep 1000")))
    w2.power_off()
    assert not w2.processes()
    ssh = ["ssh", "-o", "ConnectTimeout=2", "w2", "true"]
    assert cluster.head.run(ssh).returncode == 255
    w2.power_on()
    wait_for(lambda: cluster.head.run(ssh).returncode == 0)  # once its address is asked again
    assert not w2.find("sleep 1000")
    wait_for(lambda: not w2.processes())  # once sshd has ended that connection's processes


def test_a_link_goes_down_and_up(hosts: MakeHosts) -> None:
    cluster = hosts(1)
    ssh = ["ssh", "-o", "ConnectTimeout=2", "w1", "true"]
    cluster["w1"].link(up=False)
    assert cluster.head.run(ssh).returncode == 255
    cluster["w1"].link(up=True)
    wait_for(lambda: cluster.head.run(ssh).returncode == 0)


def test_ssh_is_refused_and_accepted(hosts: MakeHosts) -> None:
    cluster = hosts(1)
    cluster["w1"].refuse_ssh()
    assert "refused" in cluster.head.run(["ssh", "w1", "true"]).stderr
    cluster["w1"].accept_ssh()
    assert cluster.head.run(["ssh", "w1", "true"]).returncode == 0


def test_a_host_sees_other_files_versions_and_names(hosts: MakeHosts, tmp_path: Path) -> None:
    w1, w2 = hosts(2).hosts
    (tmp_path / "shared").write_text("here")
    w2.hide(tmp_path)
    assert w1.run(["ls", tmp_path]).stdout == "shared\n"
    assert w2.run(["ls", tmp_path]).stdout == ""
    ask = [sys.executable, "-c", "from importlib.metadata import version as v; print(v('torch'))"]
    w2.pretend_version("torch", "2.1.0")
    assert w2.run(ask).stdout == "2.1.0\n"
    assert w1.run(ask).stdout != "2.1.0\n"
    w2.resolve_itself_to_loopback()
    assert w2.run(["getent", "ahostsv4", "w2"]).stdout.startswith("127.0.1.1")
    assert w1.run(["getent", "ahostsv4", "w2"]).stdout.startswith("10.77.0.2")


def test_a_small_disk_is_full_soon(hosts: MakeHosts, tmp_path: Path) -> None:
    w1 = hosts(1)["w1"]
    w1.small_disk(tmp_path / "small", "1M")
    fill = ["dd", "if=/dev/zero", f"of={tmp_path}/small/x", "bs=1M", "count=2"]
    assert "No space left" in w1.run(fill).stderr


_COUNT_PACKETS = """
import socket, sys
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("", 29999))
server.settimeout(60)
print("ready", flush=True)
count = 0
try:
    while server.recv(9):
        count += 1
        server.settimeout(2)
except TimeoutError:
    pass
print(count)
"""
_SEND_PACKETS = """
import socket
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(400):
    client.sendto(b"packet", ("w1", 29999))
"""


def test_a_lossy_link_loses_some_packets(hosts: MakeHosts) -> None:
    cluster = hosts(2)
    cluster["w1"].lose(30)
    counting = cluster["w1"].start([sys.executable, "-c", _COUNT_PACKETS], stdout=-1, text=True)
    assert counting.stdout is not None
    assert counting.stdout.readline() == "ready\n"
    cluster["w2"].run([sys.executable, "-c", _SEND_PACKETS], check=True)
    arrived = int(counting.communicate()[0])
    assert 200 < arrived < 360


def test_a_slow_link_takes_its_time(hosts: MakeHosts) -> None:
    cluster = hosts(1)
    cluster["w1"].slow_link(2)
    start = time.monotonic()
    told = cluster.head.run(["ssh", "w1", "head -c 500000 /dev/zero"])
    assert told.returncode == 0
    assert time.monotonic() - start > 1  # 4 Mbit, less what may leave at once


def test_a_delayed_link_delivers_everything_later(hosts: MakeHosts) -> None:
    cluster = hosts(2)
    content = "head -c 3000000 /dev/zero"
    plain = cluster.head.run(["ssh", "w1", content])
    cluster["w1"].delay(100)
    start = time.monotonic()
    delayed = cluster.head.run(["ssh", "w1", content])
    assert time.monotonic() - start > 0.6  # there and back at least three times
    assert delayed.stdout == plain.stdout
    assert len(delayed.stdout) == 3_000_000
    cluster["w1"].delay(0)
    assert cluster.head.run(["ssh", "w1", "true"]).returncode == 0


def test_a_killed_test_run_leaves_nothing(tmp_path: Path) -> None:
    """As a test run that gets SIGKILL: no fixture is torn down."""
    program = (
        "import sys, time, pathlib\n"
        "from tests.cluster.namespaces import Cluster\n"
        "folder = pathlib.Path(sys.argv[1]); folder.mkdir()\n"
        "cluster = Cluster(folder, 2); cluster.start()\n"
        "cluster['w2'].start(['sleep', '4321.5'])\n"
        "print('ready', flush=True); time.sleep(600)\n"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "cluster")],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert run.stdout is not None
    if run.stdout.readline() != "ready\n":
        pytest.skip("no cluster here")
    family = psutil.Process(run.pid).children(recursive=True)
    assert len(family) >= 8
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    _, alive = psutil.wait_procs(family, timeout=HANGS)
    assert not alive
    mounts = Path("/proc/mounts").read_text()
    assert str(tmp_path) not in mounts
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True).stdout
    assert "switch" not in links
