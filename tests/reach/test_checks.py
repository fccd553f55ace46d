"""Every check tells right from wrong on what a host says, and says how to fix it."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from dslm.cluster.hosts import Host
from dslm.reach.checks import (
    CHECKS,
    HostReport,
    RankNeeds,
    State,
    interface_of,
    judge,
    not_reached,
    wrong,
)
from dslm.reach.preflight import device_of_slots
from tests.support.golden import SameAs

GIB = 2**30
H100 = {"name": "NVIDIA H100 80GB HBM3", "memory": 80 * GIB, "free": 79 * GIB, "driver": "550.54"}
# As two hosts with GPUs answer.
FACTS: dict[str, Any] = {
    "name": "w2",
    "name_address": "10.0.0.2",
    "python": "3.11.9",
    "versions": {"dslm": "0.1.0", "torch": "2.6.0", "deepspeed": "0.19.8"},
    "cuda": "12.4",
    "nccl": "2.21.5",
    "code": "abc",
    "accelerators": [H100, H100],
    "cores": 64,
    "memory": 512 * GIB,
    "memory_free": 500 * GIB,
    "disk_free": 900 * GIB,
    "shm_free": 250 * GIB,
    "marker": "m",
    "files": {"/shared/recipe.yaml": "f00"},
    "reach": {"error": None, "address": "10.0.0.2"},
    "open_files": [65536, 1048576],
    "locked_memory": [None, None],
    "infiniband": ["mlx5_0"],
    "interfaces": {"10.0.0.2": "ib0", "127.0.0.1": "lo"},
}
CPU = {"accelerators": [], "cores": 4, "infiniband": []}


def subject(there: dict[str, Any] | None = None, **other: Any) -> HostReport:
    facts = {**copy.deepcopy(FACTS), **(there or {})}
    given: dict[str, Any] = {
        "host": Host("w2", 2), "facts": facts, "here": FACTS, "run": "/shared/run", "marker": "m",
        "needs_shared": True, "master": "w1", "master_address": "10.0.0.1", "port": 29500,
        "port_problem": None, "kind": None, "needs": RankNeeds(), "clock": 100.2, "sent": 100.0,
        "received": 100.5,
    }  # fmt: skip
    return HostReport(**{**given, **other})


def test_all_is_well_on_a_good_host() -> None:
    results = judge(subject())
    assert [result.check for result in results] == list(CHECKS)
    assert {result.state for result in results} == {State.OK}
    assert interface_of(subject()) == "ib0"


# what differs, in what the host says or what the run wants; the check; how it comes out; said
Row = tuple[dict[str, Any], dict[str, Any], str, str]
BAD: list[Row] = [
    ({"versions": {**FACTS["versions"], "torch": "2.5.1"}}, {}, "versions", "torch==2.6.0"),
    ({"versions": {}}, {}, "versions", "missing"),
    ({"python": "3.12.1"}, {}, "versions", "3.11.9"),
    ({"cuda": "11.8"}, {}, "versions", "CUDA 11.8"),
    ({"nccl": "2.18.1"}, {}, "versions", "NCCL 2.18.1"),
    ({"code": "xyz"}, {}, "code", "another dslm"),
    ({"files": {"/shared/recipe.yaml": None}}, {}, "code", "is not there"),
    ({"files": {"/shared/recipe.yaml": "bad"}}, {}, "code", "differs"),
    ({"accelerators": [H100]}, {}, "slots", "1 accelerator for 2 slots"),
    ({}, {"host": Host("w2", 1, (5,))}, "slots", "2 accelerators"),
    (CPU, {"kind": "cuda"}, "slots", "driver"),
    (CPU, {"host": Host("w2", 17)}, "slots", "`slots=4`"),
    ({"accelerators": [H100, {**H100, "free": 9 * GIB}]}, {"needs": RankNeeds(device=40 * GIB)},
     "memory", "on device 1"),
    ({**CPU, "memory_free": 3 * GIB}, {"needs": RankNeeds(device=2 * GIB)}, "memory", "4.0 GiB"),
    ({"marker": None}, {}, "run directory", "-o DIR"),
    ({"marker": "old"}, {}, "run directory", "-o DIR"),
    ({"disk_free": 2 * GIB}, {}, "disk", "2.0 GiB free"),
    ({"shm_free": 64 * 2**20}, {}, "/dev/shm", "--shm-size"),
    ({"shm_free": None}, {}, "/dev/shm", "mount"),
    ({"shm_free": 20 * GIB}, {"needs": RankNeeds(shared=10 * GIB)}, "/dev/shm",
     "20.2 GiB for 2 ranks; docker: --shm-size=21g"),
    ({"interfaces": {"10.0.0.1": "ib0"}},
     {"host": Host("w1", 2), "port_problem": "Address already in use"}, "port", "29500"),
    ({"reach": {"error": "Connection timed out", "address": None}}, {}, "master", "timed out"),
    ({}, {"master_address": None}, "master", "resolve"),
    ({}, {"host": Host("w1", 2)}, "master", "has no address 10.0.0.1"),
    ({}, {"clock": 97.0}, "clock", "-3.0 s"),
    ({}, {"clock": 104.0}, "clock", "+3.5 s"),
    ({"open_files": [256, 4096]}, {}, "open files", "ulimit -n 4096"),
    ({"locked_memory": [65536, 65536]}, {}, "locked memory", "memlock"),
    ({"locked_memory": [GIB, None], "infiniband": []}, {"needs": RankNeeds(locked=2 * GIB)},
     "locked memory", "locks 2.0 GiB: `ulimit -l unlimited`"),
]  # fmt: skip


@pytest.mark.parametrize(("there", "other", "check", "said"), BAD)
def test_what_is_wrong_is_red_and_has_a_fix(
    there: dict[str, Any], other: dict[str, Any], check: str, said: str
) -> None:
    red = [result for result in judge(subject(there, **other)) if result.state == State.WRONG]
    assert [result.check for result in red] == [check]
    assert said in red[0].detail + " " + red[0].fix
    assert red[0].fix


NOTES: list[Row] = [
    ({"marker": None}, {"needs_shared": False}, "run directory", "copy"),
    ({"name_address": "127.0.1.1"}, {}, "master", "GLOO_SOCKET_IFNAME=ib0"),
    ({"accelerators": [H100, {**H100, "free": 40 * GIB}]}, {}, "memory", "device 1"),
    ({"open_files": [1024, 1048576]}, {}, "open files", "65536"),
]


@pytest.mark.parametrize(("there", "other", "check", "said"), NOTES)
def test_what_is_doubtful_is_noted(
    there: dict[str, Any], other: dict[str, Any], check: str, said: str
) -> None:
    told = [result for result in judge(subject(there, **other)) if result.state != State.OK]
    assert [(result.check, result.state) for result in told] == [(check, State.NOTE)]
    assert said in told[0].detail + " " + told[0].fix


MIB = 2**20
FREE = {**H100, "free": 9 * GIB}
TORCH = {"torch": "2.6.0"}  # with no package beside it that is known to go wrong
# what a host says, what the run wants, the check: how it comes out at a limit, and just below it
LIMITS: list[tuple[dict[str, Any], dict[str, Any], str, State]] = [
    ({"versions": TORCH}, {"here": {**FACTS, "versions": TORCH}}, "versions", State.OK),
    ({"accelerators": [H100]}, {"host": Host("w2", 1)}, "slots", State.OK),
    ({"disk_free": 5 * GIB}, {}, "disk", State.OK),
    ({"disk_free": 5 * GIB - 1}, {}, "disk", State.WRONG),
    ({"disk_free": None}, {}, "disk", State.NOTE),
    ({"shm_free": 256 * MIB}, {}, "/dev/shm", State.OK),
    ({"shm_free": 256 * MIB - 1}, {}, "/dev/shm", State.WRONG),
    ({"shm_free": 256 * MIB + 20}, {"needs": RankNeeds(shared=10)}, "/dev/shm", State.OK),
    ({"shm_free": 256 * MIB + 19}, {"needs": RankNeeds(shared=10)}, "/dev/shm", State.WRONG),
    ({"locked_memory": [GIB, GIB]}, {"needs": RankNeeds(locked=GIB)}, "locked memory", State.OK),
    ({"locked_memory": [GIB, None]}, {"needs": RankNeeds(locked=GIB + 1)}, "locked memory",
     State.WRONG),
    ({"locked_memory": [None, None]}, {"needs": RankNeeds(locked=GIB)}, "locked memory", State.OK),
    ({}, {"clock": 102.5}, "clock", State.OK),
    ({}, {"clock": 102.6}, "clock", State.WRONG),
    ({}, {"clock": 98.0}, "clock", State.OK),
    ({}, {"clock": 97.9}, "clock", State.WRONG),
    ({"open_files": [4096, 4096]}, {}, "open files", State.OK),
    ({"open_files": [4095, None]}, {}, "open files", State.NOTE),
    ({"open_files": [1024, None]}, {}, "open files", State.NOTE),
    ({"open_files": [1023, None]}, {}, "open files", State.WRONG),
    ({"open_files": [None, None]}, {}, "open files", State.OK),
    ({"locked_memory": [64 * MIB, None]}, {}, "locked memory", State.OK),
    ({"locked_memory": [64 * MIB - 1, None]}, {}, "locked memory", State.WRONG),
    ({"locked_memory": [1, None], "infiniband": []}, {}, "locked memory", State.OK),
    (CPU, {"host": Host("w2", 16)}, "slots", State.OK),
    ({}, {"host": Host("w2", 1, (1,))}, "slots", State.OK),
    ({}, {"host": Host("w2", 1, (2,))}, "slots", State.WRONG),
    ({}, {"kind": "cpu", "host": Host("w2", 3)}, "slots", State.OK),
    ({"accelerators": [FREE, FREE]}, {"needs": RankNeeds(device=9 * GIB)}, "memory", State.OK),
    ({"accelerators": [FREE, FREE]}, {"needs": RankNeeds(device=9 * GIB + 1)}, "memory",
     State.WRONG),
    ({"accelerators": [FREE, H100]}, {"host": Host("w2", 1, (1,))}, "memory", State.OK),
    ({"accelerators": [{**H100, "free": 72 * GIB}] * 2}, {}, "memory", State.OK),
    ({"accelerators": [{**H100, "free": 72 * GIB - 1}] * 2}, {}, "memory", State.NOTE),
    ({"accelerators": [{**H100, "free": None}] * 2}, {}, "memory", State.NOTE),
    ({"accelerators": [{**H100, "memory": None}] * 2}, {}, "memory", State.NOTE),
    ({"accelerators": [FREE, FREE]}, {"kind": "cpu"}, "memory", State.OK),
    ({**CPU, "memory_free": 4 * GIB}, {"needs": RankNeeds(device=2 * GIB)}, "memory", State.OK),
    ({**CPU, "memory_free": 4 * GIB - 1}, {"needs": RankNeeds(device=2 * GIB)}, "memory",
     State.WRONG),
    ({**CPU, "memory_free": 0}, {}, "memory", State.OK),
    ({"marker": None}, {"marker": None}, "run directory", State.OK),
    ({}, {"port_problem": "Address already in use"}, "port", State.OK),  # the master's affair
    ({"reach": {"error": "refused", "address": "10.0.0.2"}},
     {"port_problem": "Address already in use"}, "master", State.NOTE),
    ({"reach": None}, {}, "master", State.WRONG),
    ({"name_address": None}, {}, "master", State.OK),
    ({"name_address": "no address"}, {}, "master", State.OK),
]  # fmt: skip


@pytest.mark.parametrize(("there", "other", "check", "state"), LIMITS)
def test_a_limit_itself_is_still_right(
    there: dict[str, Any], other: dict[str, Any], check: str, state: State
) -> None:
    found = {result.check: result for result in judge(subject(there, **other))}
    assert found[check].state == state, found[check]


def test_all_that_is_said_of_a_host(same_as: SameAs) -> None:
    text = ""
    for there, other, check, _ in [*BAD, *NOTES]:
        told = [one for one in judge(subject(there, **other)) if one.state != State.OK]
        text += f"{check}: {', '.join([*there, *other])}\n"
        text += "".join(f"  {one.state} {one.check}: {one.detail}\n    {one.fix}\n" for one in told)
    text += "".join(f"{one.check}: {one.detail} {one.fix}\n" for one in judge(subject()))
    for there, other, check, _ in LIMITS:
        (one,) = (one for one in judge(subject(there, **other)) if one.check == check)
        text += f"{one.state} {one.check}: {one.detail}\n" + (one.fix and f"    {one.fix}\n")
    same_as("findings/hosts.txt", text)


def test_only_what_is_wrong_stops_a_launch() -> None:
    results = [*judge(subject({"disk_free": None, "shm_free": None})), *not_reached(
        Host("w9", 1), "ssh", "refused", "start sshd there"
    )]  # fmt: skip
    stopping = wrong(results)
    assert [(one.host, one.check) for one in stopping] == [("w2", "/dev/shm"), ("w9", "ssh")]
    assert (stopping[1].detail, stopping[1].fix) == ("refused", "start sshd there")


def test_every_check_has_a_red_case() -> None:
    # ssh is judged by reaching the host at all: tests/reach/test_preflight.py
    assert {row[2] for row in BAD} == set(CHECKS) - {"ssh"}


def test_a_run_counts_on_the_smallest_device_of_all_hosts() -> None:
    small = {**H100, "name": "NVIDIA A100-SXM4-40GB", "memory": 40 * GIB}
    both = [(Host("w1", 8), FACTS), (Host("w2", 8), {**FACTS, "accelerators": [H100, small]})]
    device = device_of_slots(both)
    assert device is not None
    assert (device.name, device.kind, device.memory_bytes) == ("a100-40gb", "cuda", 40 * GIB)
    on_cpu = device_of_slots(both, "cpu")
    assert on_cpu is not None
    assert (on_cpu.kind, on_cpu.memory_bytes) == ("cpu", 512 * GIB // 8)


def test_hosts_without_accelerators_run_on_their_cpus_unless_told_not_to() -> None:
    told = [(Host("w1", 2), {**FACTS, **CPU}), (Host("w2", 4), {**FACTS, **CPU})]
    device = device_of_slots(told)
    assert device is not None
    assert (device.kind, device.memory_bytes) == ("cpu", 128 * GIB)
    assert device_of_slots(told, "cuda") is None
    assert device_of_slots([]) is None


def test_a_device_without_memory_of_its_own_has_the_hosts() -> None:
    unified = {"name": "NVIDIA GB10", "memory": None, "free": None, "driver": "580.95"}
    device = device_of_slots([(Host("w1", 1), {**FACTS, "accelerators": [unified]})])
    assert device is not None
    assert (device.kind, device.memory_bytes) == ("cuda", 512 * GIB)
