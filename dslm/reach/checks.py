"""The checks of a cluster, as data: a name and how to judge what a host said about itself.

In come the facts of `dslm.reach.probe`, out come results: one per host and check, with the fix
where it is wrong. Pure; knows nothing of how hosts are reached.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeAlias

from dslm.cluster.hosts import Host
from dslm.cluster.wrong_versions import installed_wrong
from dslm.units import number_of, render_bytes

_CLOCK_SECONDS = 2.0
_FREE_DISK = 5 * 2**30
SHM = "/dev/shm"  # noqa: S108 - what is checked
_SHM_PER_SLOT = 128 * 2**20  # DeepSpeed shares 66 MiB a rank there, NCCL and data loaders the rest
_OPEN_FILES_NEEDED = 1024
_OPEN_FILES = 4096
_LOCKED_MEMORY = 64 * 2**20  # InfiniBand registers its buffers
_FREE_SHARE = 0.9  # of a device, when the run's own need isn't known
_RANKS_PER_CORE = 4  # as for a local run: more ranks than cores is slow but right

# What `dslm.reach.probe` prints of a host: read where it is judged, absent where it isn't known.
Facts: TypeAlias = Mapping[str, Any]


class State(StrEnum):
    """The result of a check; only `wrong` stops a launch."""

    OK = "ok"
    NOTE = "note"
    WRONG = "wrong"


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckResult:
    """One check on one host: what was found, and how to fix it."""

    host: str
    check: str
    state: State
    detail: str
    fix: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class RankNeeds:
    """Bytes that the plan has for a rank, as far as a host says what it has of them."""

    device: int | None = None  # None: nothing is planned
    shared: int = 0  # of /dev/shm
    locked: int = 0  # that `ulimit -l` has to allow


@dataclass(frozen=True, kw_only=True, slots=True)
class HostReport:
    """The subject of the checks: a host's facts, those of this machine, and the run's needs."""

    host: Host
    facts: Facts
    here: Facts
    run: str
    marker: (
        str | None
    )  # what must be read in the run directory; None: no run directory is asked for
    needs_shared: bool
    master: str  # the host's name
    master_address: str | None
    port: int
    port_problem: str | None
    kind: str | None  # what ranks run on, cuda or cpu; None: whatever the hosts have
    needs: RankNeeds
    clock: float  # of the host, in Unix seconds, read at some time between these two of this one
    sent: float
    received: float


Verdict = tuple[State, str, str]
Judge = Callable[[HostReport], Verdict]
_PACKAGES = ("dslm", "torch", "deepspeed", "transformers", "accelerate", "datasets")


def interface_of(report: HostReport) -> str | None:
    """Return the interface that leads to the master; on the master, that which the others reach."""
    if report.host.name == report.master:
        address = report.master_address
    else:
        address = (report.facts["reach"] or {}).get("address")
    found: str | None = report.facts["interfaces"].get(address)
    return found


def judge(report: HostReport) -> list[CheckResult]:
    """Return all checks of one host that has answered."""
    results = []
    for name, verdict in CHECKS.items():
        state, detail, fix = verdict(report)
        results.append(
            CheckResult(host=report.host.name, check=name, state=state, detail=detail, fix=fix)
        )
    return results


def not_reached(host: Host, check: str, detail: str, fix: str) -> list[CheckResult]:
    """Return the one result of a host that could not be asked."""
    return [
        CheckResult(host=host.name, check=check, state=State.WRONG, detail=detail, fix=fix),
    ]


def _ssh(report: HostReport) -> Verdict:
    return State.OK, f"{report.received - report.sent:.1f} s", ""


def _versions(report: HostReport) -> Verdict:
    here, there = report.here, report.facts
    pairs = [("Python", here["python"], there["python"])]
    pairs += [(n, here["versions"].get(n), there["versions"].get(n)) for n in _PACKAGES]
    pairs += [("CUDA", here["cuda"], there["cuda"]), ("NCCL", here["nccl"], there["nccl"])]
    other = [(name, ours, theirs) for name, ours, theirs in pairs if ours != theirs]
    if not other:
        wrong = [entry.id for entry, _ in installed_wrong(there["versions"])]
        known = f"; known mistakes: {', '.join(wrong)} (`dslm doctor`)" if wrong else ""
        return State.OK, f"torch {there['versions'].get('torch')}{known}", ""
    detail = ", ".join(f"{name} {theirs or 'missing'}, here {ours}" for name, ours, theirs in other)
    name, ours, _ = other[0]
    fix = (
        f"install the same version there: pip install {name}=={ours}"
        if name in _PACKAGES
        else f"use the same environment on every host: {name} {ours}"
    )
    return State.WRONG, detail, fix


def _code(report: HostReport) -> Verdict:
    if report.facts["code"] != report.here["code"]:
        return State.WRONG, "another dslm", "install the same version and code of dslm there"
    for path, digest in report.facts["files"].items():
        ours = report.here["files"].get(path)
        if digest is None:
            return State.WRONG, f"{path} is not there", "copy it there, or use a shared folder"
        if digest != ours:
            return (
                State.WRONG,
                f"{path} differs",
                "copy this host's file there, or use a shared folder",
            )
    return State.OK, "the same", ""


def _slots(report: HostReport) -> Verdict:
    host, devices = report.host, report.facts["accelerators"]
    kind = report.kind or ("cuda" if devices else "cpu")
    if kind == "cuda":
        highest = max(host.devices, default=host.slots - 1)
        if highest >= len(devices):
            have = number_of(len(devices), "accelerator")
            wanted = f"{have} for {number_of(host.slots, 'slot')}"
            if not devices:
                return State.WRONG, wanted, "is its driver loaded?"
            if host.devices:
                fix = f"choose from 0 to {len(devices) - 1}"
                return State.WRONG, f"{have}, but slot {highest} is chosen", fix
            return State.WRONG, wanted, f"`slots={len(devices)}` in the hostfile"
        return State.OK, f"{len(devices)} × {devices[0]['name']}", ""
    most = report.facts["cores"] * _RANKS_PER_CORE
    if host.slots > most:
        return (
            State.WRONG,
            f"{number_of(report.facts['cores'], 'CPU core')} for {host.slots} slots",
            f"`slots={report.facts['cores']}` in the hostfile",
        )
    return State.OK, number_of(report.facts["cores"], "CPU core"), ""


def _memory(report: HostReport) -> Verdict:
    host, devices = report.host, report.facts["accelerators"]
    if devices and report.kind != "cpu":
        used = host.devices or range(host.slots)
        chosen = [(n, devices[n]) for n in used if n < len(devices)]
        known = [(n, d) for n, d in chosen if d["free"] is not None and d["memory"] is not None]
        if not known:
            return State.NOTE, "the driver doesn't say", ""
        index, device = min(known, key=lambda pair: pair[1]["free"])
        free, total = device["free"], device["memory"]
        text = f"{render_bytes(free)} free of {render_bytes(total)} on device {index}"
        if report.needs.device is not None and free < report.needs.device:
            needed = render_bytes(report.needs.device)
            return (
                State.WRONG,
                text,
                f"the plan needs {needed}: end the processes that use it (nvidia-smi)",
            )
        if report.needs.device is None and free < total * _FREE_SHARE:
            return State.NOTE, text, "other processes use it: nvidia-smi"
        return State.OK, text, ""
    free = report.facts["memory_free"]
    text = f"{render_bytes(free)} free"
    total = (report.needs.device or 0) * host.slots
    if free < total:
        return (
            State.WRONG,
            text,
            f"the plan needs {render_bytes(total)} for {number_of(host.slots, 'rank')}",
        )
    return State.OK, text, ""


def _run_directory(report: HostReport) -> Verdict:
    if report.marker is None:
        return State.OK, "not asked", ""
    if report.facts["marker"] == report.marker:
        return State.OK, "shared", ""
    if not report.needs_shared:
        return (
            State.NOTE,
            "not shared: this host gets a copy of the run's files",
            "put it on a shared folder with `-o DIR` to have checkpoints",
        )
    return (
        State.WRONG,
        f"{report.run} is not visible there",
        "put the run on a folder that all hosts share: `-o DIR`; without one, train with "
        "`--set checkpoint.every=null`",
    )


def _disk(report: HostReport) -> Verdict:
    free = report.facts["disk_free"]
    if free is None:
        return State.NOTE, "not known", ""
    if free < _FREE_DISK:
        fix = f"less than {render_bytes(_FREE_DISK)}: free some space, or choose "
        fix += "another folder with `-o DIR`"
        return State.WRONG, f"{render_bytes(free)} free", fix
    return State.OK, f"{render_bytes(free)} free", ""


def _shm(report: HostReport) -> Verdict:
    return shared_memory(report.facts["shm_free"], report.needs, report.host.slots)


def shared_memory(free: int | None, needs: RankNeeds, ranks: int) -> Verdict:
    """Judge the free bytes of a host's /dev/shm; None: it has none."""
    if free is None:
        return State.WRONG, "can't be used", f"mount -t tmpfs none {SHM}"
    needed = (_SHM_PER_SLOT + needs.shared) * ranks
    if free >= needed:
        return State.OK, f"{render_bytes(free)} free", ""
    size = max(8, -(-needed // 2**30))
    ways = [f"docker: --shm-size={size}g", f"else `mount -o remount,size={size}G {SHM}`"]
    if needs.shared:
        ways.append("or `--set parallel.super_offload=false`")
    fix = f"{render_bytes(needed)} for {number_of(ranks, 'rank')}; {', '.join(ways)}"
    return State.WRONG, f"{render_bytes(free)} free", fix


def _port(report: HostReport) -> Verdict:
    if report.host.name != report.master:
        return State.OK, "", ""
    if report.port_problem is not None:
        fix = "choose another with `--master-port`, or leave it out"
        return State.WRONG, f"{report.port}: {report.port_problem}", fix
    return State.OK, f"{report.port} is free", ""


def _master(report: HostReport) -> Verdict:
    if report.master_address is None:
        return (
            State.WRONG,
            f"no address of {report.master} is known that others can reach",
            f"let {report.master} resolve the other hosts' names (/etc/hosts, DNS)",
        )
    interface = interface_of(report)
    if report.host.name == report.master:
        if interface is None:
            fix = "the ranks meet there: give it an address that the others can reach"
            return State.WRONG, f"has no address {report.master_address}", fix
    else:
        reach = report.facts["reach"] or {"error": "not tried", "address": None}
        where = f"{report.master_address} port {report.port}"
        if reach["error"] is not None:
            fix = f"open {where} to it: check the firewall and the hosts' network"
            # nothing listens there when the port is taken: that is told on the master
            state = State.NOTE if report.port_problem is not None else State.WRONG
            return state, f"{where}: {reach['error']}", fix
    if _is_loopback(report.facts["name_address"]):
        # the ranks are told the interface, so nothing has to be changed for dslm's own runs
        detail = f"over {interface}; its own name is {report.facts['name_address']}"
        fix = f"dslm sets GLOO_SOCKET_IFNAME={interface}; better: take that out of its /etc/hosts"
        return State.NOTE, detail, fix
    return State.OK, f"over {interface}", ""


def _clock(report: HostReport) -> Verdict:
    early, late = report.clock - report.sent, report.clock - report.received
    off = min(early, 0.0) + max(late, 0.0)  # anywhere between the two is right
    if abs(off) > _CLOCK_SECONDS:
        return State.WRONG, f"{off:+.1f} s", "synchronise it: chrony or systemd-timesyncd"
    return State.OK, f"within {max(early, -late):.1f} s", ""


def _open_files(report: HostReport) -> Verdict:
    soft, hard = report.facts["open_files"]
    if soft is None or soft >= _OPEN_FILES:
        return State.OK, "unlimited" if soft is None else str(soft), ""
    most = "unlimited" if hard is None else str(hard)
    fix = f"`ulimit -n {min(hard or 65536, 65536)}`, or nofile in /etc/security/limits.conf"
    state = State.WRONG if soft < _OPEN_FILES_NEEDED else State.NOTE
    return state, f"{soft}, at most {most}", fix


def _locked_memory(report: HostReport) -> Verdict:
    soft, _ = report.facts["locked_memory"]
    verdict = locked_memory(soft, report.needs)
    if report.facts["infiniband"] and soft is not None and soft < _LOCKED_MEMORY:
        fix = "InfiniBand needs `memlock unlimited` in /etc/security/limits.conf"
        return State.WRONG, verdict[1], fix
    return verdict


def locked_memory(limit: int | None, needs: RankNeeds) -> Verdict:
    """Judge how many bytes a process may keep from being moved; None: any number."""
    text = "unlimited" if limit is None else render_bytes(limit)
    if limit is None or limit >= needs.locked:
        return State.OK, text, ""
    fix = (
        f"a rank locks {render_bytes(needs.locked)}: `ulimit -l unlimited`, memlock in "
        "/etc/security/limits.conf, docker: --ulimit memlock=-1; or another `parallel.offload`"
    )
    return State.WRONG, text, fix


def _is_loopback(address: str | None) -> bool:
    try:
        return address is not None and ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


CHECKS: Mapping[str, Judge] = {
    "ssh": _ssh,
    "versions": _versions,
    "code": _code,
    "slots": _slots,
    "memory": _memory,
    "run directory": _run_directory,
    "disk": _disk,
    SHM: _shm,
    "port": _port,
    "master": _master,
    "clock": _clock,
    "open files": _open_files,
    "locked memory": _locked_memory,
}


def wrong(results: Sequence[CheckResult]) -> list[CheckResult]:
    """Return those that stop a launch."""
    return [result for result in results if result.state == State.WRONG]
