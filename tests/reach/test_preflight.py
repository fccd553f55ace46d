"""Preflight on real hosts: each fault is found on its host, and told with its fix."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.namespaces import Host, MakeHosts
from tests.conftest import DSLM
from tests.reach.test_remote import ECHO, ODD

pytestmark = pytest.mark.hosts


def check(head: Host, hostfile: Path, *options: str | Path) -> tuple[int, dict[str, Any]]:
    """Exit code and answer of `dslm hosts check`."""
    done = head.run([DSLM, "hosts", "check", hostfile, "--json", *options])
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def red(answer: dict[str, Any]) -> set[tuple[str, str]]:
    return {(c["host"], c["check"]) for c in answer["checks"] if c["state"] == "wrong"}


def test_good_hosts_pass_and_know_where_to_meet(hosts: MakeHosts, tmp_path: Path) -> None:
    cluster = hosts(2)
    hostfile = cluster.hostfile(tmp_path, slots=2)
    code, answer = check(cluster.head, hostfile, "-o", tmp_path)
    assert (code, red(answer)) == (0, set())
    assert answer["master_address"] == cluster["w1"].address
    assert answer["interfaces"] == {"w1": "eth0", "w2": "eth0"}
    assert not list(tmp_path.glob(".dslm-*"))
    # from one of the hosts, whose own name is a loopback address: the master's as well
    cluster["w1"].resolve_itself_to_loopback()
    code, answer = check(cluster["w1"], hostfile, "-o", tmp_path)
    assert (code, answer["master_address"]) == (0, cluster["w1"].address)
    notes = [c for c in answer["checks"] if c["state"] == "note" and c["check"] == "master"]
    assert [(c["host"], "127.0.1.1" in c["detail"]) for c in notes] == [("w1", True)]
    shown = cluster.head.run([DSLM, "hosts", "check", hostfile, "-o", tmp_path])
    assert shown.returncode == 0
    assert "w2" in shown.stdout
    assert "10.77.0.1" in shown.stderr


def test_every_fault_is_told_at_once_with_its_fix(hosts: MakeHosts, tmp_path: Path) -> None:
    cluster = hosts(7)
    shared = tmp_path / "shared"
    shared.mkdir()
    script = tmp_path / "script.py"
    script.write_text("pass\n")
    _, w2, w3, w4, w5, w6, w7 = cluster.hosts
    w2.refuse_ssh()
    w3.pretend_version("torch", "2.1.0")
    w4.hide(shared)
    w5.small_disk(Path("/dev/shm"), "16M")
    w6.power_off()
    w7.replace_file(Path(__file__).parents[2] / "dslm" / "units.py", "# another\n")
    hostfile = cluster.hostfile(tmp_path)
    code, answer = check(cluster.head, hostfile, "-o", shared / "run")
    assert code == 3
    assert red(answer) == {
        ("w2", "ssh"),
        ("w3", "versions"),
        ("w4", "run directory"),
        ("w5", "/dev/shm"),
        ("w6", "ssh"),
        ("w7", "code"),
    }
    assert all(c["fix"] for c in answer["checks"] if c["state"] != "ok")
    assert answer["hosts_without_run_dir"] == ["w4"]
    assert answer["seconds"] < 60


def test_a_taken_port_and_too_many_slots_are_told(hosts: MakeHosts, tmp_path: Path) -> None:
    cluster = hosts(2)
    listen = "import socket, time; s = socket.create_server(('', 29777)); print(1, flush=True)"
    taken = cluster["w1"].start(
        [sys.executable, "-c", f"{listen}; time.sleep(600)"], stdout=-1, text=True
    )
    assert taken.stdout is not None
    taken.stdout.readline()
    hostfile = cluster.hostfile(tmp_path, slots=[1, 1000])
    code, answer = check(cluster.head, hostfile, "--master-port", "29777", "-o", tmp_path)
    assert code == 3
    assert ("w1", "port") in red(answer)
    assert ("w2", "slots") in red(answer)


def test_a_master_that_does_not_answer_is_the_one_to_blame(
    hosts: MakeHosts, tmp_path: Path
) -> None:
    cluster = hosts(2)
    cluster["w1"].link(up=False)
    code, answer = check(cluster.head, cluster.hostfile(tmp_path), "-o", tmp_path)
    assert code == 3
    assert ("w1", "ssh") in red(answer)
    assert ("w2", "ssh") not in red(answer)


def test_arguments_reach_a_host_word_for_word(hosts: MakeHosts) -> None:
    cluster = hosts(1)
    program = (
        "import json, sys\n"
        "from dslm.reach.remote import run_on\n"
        "answer = run_on('w1', json.loads(sys.argv[1]), seconds=30)\n"
        "print(answer.stdout, answer.stderr)\n"
    )
    done = cluster.head.run([sys.executable, "-c", program, json.dumps([*ECHO, *ODD])])
    assert json.loads(done.stdout) == ODD
