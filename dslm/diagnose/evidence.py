"""Memory that ran out: what was planned beside what was measured, and ways out as exact options.

Reads the plan and the recipe of a run directory and the words of PyTorch's allocator. The ways out
are the planner's (`dslm.decide.advice.ways_out`), asked again with what the run has taught: that it
needs more than the plan said. Knows nothing of ranks and logs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dslm.cluster.devices import DEVICES, Device, cpu_device, device_reported
from dslm.cluster.hosts import Cluster, Host
from dslm.decide.advice import ways_out
from dslm.decide.job import Job, resolve_job
from dslm.errors import DslmError
from dslm.recipe.load import load_recipe
from dslm.run.directory import RunDirectory
from dslm.run.documents import PlanFile, PlannedDevice, find_document
from dslm.run.manifest import read_manifest
from dslm.units import render_bytes

_UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_SIZE = r"([\d.]+ (?:bytes|[KMGT]iB))"
# Source: PyTorch, c10/cuda/CUDACachingAllocator.cpp, the message of OutOfMemoryError.
_ALLOCATOR = {
    "tried": rf"Tried to allocate {_SIZE}",
    "capacity": rf"total capaci?ty of {_SIZE}",
    "free": rf"of which {_SIZE} is free",
    "mine": rf"this process has {_SIZE} memory in use",
    "allocated": rf"{_SIZE} is allocated by PyTorch",
    "unused": rf"{_SIZE} is reserved by PyTorch but unallocated",
}
_FRAGMENTS = "`--set environment.PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True`"
_OTHERS_SHARE = 0.05  # of the device: what others hold below that changes nothing


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """Facts as sentences, and changes that would help, the smallest first."""

    facts: tuple[str, ...] = ()
    ways: tuple[str, ...] = ()


def device_memory(run: RunDirectory, text: str, peak: int | None) -> Evidence:
    """An accelerator ran out of memory.

    Args:
        run: the run.
        text: what the rank said.
        peak: the highest memory that its step events recorded, in bytes.
    """
    said = _allocator(text)
    plan = find_document(PlanFile, run.plan) or PlanFile()
    device, capacity = plan.memory.device, plan.memory.capacity
    facts = [_planned(device, capacity)] if device else []
    if said:
        facts.append(
            "measured: "
            + ", ".join(
                words.format(render_bytes(said[name]))
                for name, words in (
                    ("allocated", "{} allocated by PyTorch"),
                    ("unused", "{} reserved and unused"),
                    ("tried", "{} more requested"),
                    ("free", "{} free"),
                    ("capacity", "{} on the device"),
                )
                if name in said
            )
        )
    if peak:
        facts.append(f"measured: up to {render_bytes(peak)} in the steps before")
    others = _others(said)
    total = said.get("capacity") or capacity or 0
    held = others > _OTHERS_SHARE * total
    if held:
        facts.append(f"other processes hold {render_bytes(others)} of this device")
    ways = []
    if held:
        ways.append("end the other processes on this device: `nvidia-smi` names them")
    if said.get("unused", 0) > said.get("tried", 1):
        ways.append(_FRAGMENTS)  # enough is reserved, in pieces that are too small
    need = max(said.get("allocated", 0) + said.get("tried", 0), peak or 0)
    return Evidence(facts=tuple(facts), ways=_three(ways, _smaller(run, plan, need + others)))


def host_memory(run: RunDirectory) -> Evidence:
    """A host ran out of memory."""
    plan = find_document(PlanFile, run.plan) or PlanFile()
    device, host = plan.memory.device, plan.memory.host
    if plan.cluster.device == "cpu":
        # without an accelerator the ranks' memory is the host's
        facts = [_planned(device, plan.memory.capacity, each="a rank")] if device else []
        return Evidence(facts=tuple(facts), ways=_three([], _smaller(run, plan, 0)))
    whole = host.total if host else None
    facts = [f"planned: {render_bytes(whole)} of each host's memory"] if whole else []
    job = _job(run, plan)
    if job is None:
        return Evidence(facts=tuple(facts))
    ways, recipe = [], job.recipe
    if recipe.data.workers:
        ways.append("`--set data.workers=0`")
    if recipe.parallel.offload == "all":
        ways.append("`--set parallel.offload=nvme --set parallel.nvme_path=FOLDER`")
    if recipe.parallel.offload != "none":
        ways.append("`--set parallel.offload=none`, with more devices or a smaller micro batch")
    slots = job.cluster.slots_per_host
    if slots > 1:
        ways.append(f"`--num-gpus {slots // 2}`: fewer ranks on each host")
    ways.append("a larger memory limit of the container or the batch job")
    return Evidence(facts=tuple(facts), ways=tuple(ways[:3]))


def _planned(device: PlannedDevice, capacity: int | None, each: str = "a device") -> str:
    """The plan in a sentence: its peak, its phases, its largest parts."""
    of = f" of {render_bytes(capacity)}" if capacity else ""
    phases = ", ".join(f"{n} {render_bytes(size)}" for n, size in (device.phases or {}).items())
    parts = ", ".join(f"{name} {render_bytes(size)}" for name, size in device.parts.items())
    return f"planned: {render_bytes(device.total or 0)}{of} {each} ({phases}; {parts})"


def _smaller(run: RunDirectory, plan: PlanFile, need: int) -> list[str]:
    """Ask the planner for changes on a device that is smaller by the plan's error."""
    job = _job(run, plan)
    total = plan.memory.device.total if plan.memory.device else None
    if job is None or not total:
        return []
    capacity = job.cluster.device.memory_bytes
    # it did not fit, so it needs more than there is, whatever was seen of it
    factor = max(need, capacity) / total
    device = replace(job.cluster.device, memory_bytes=max(1, int(capacity / factor)))
    found = ways_out(replace(job, cluster=replace(job.cluster, device=device)))
    length = job.recipe.data.sequence_length
    if job.recipe.task != "vision" and length > 1:
        found.append(f"`--set data.sequence_length={length // 2}`")
    # what can be typed goes before what must be bought
    return [*sorted(found, key=lambda way: "`" not in way), "a device with more memory"]


def _three(first: Sequence[str], more: Sequence[str]) -> tuple[str, ...]:
    return (*first, *more)[:3]


def _job(run: RunDirectory, plan: PlanFile) -> Job | None:
    """The run's job, decided again; None where its files don't tell (a script of one's own)."""
    if not plan.memory.capacity or not plan.cluster.device:
        return None
    device = _device(plan.cluster.device, plan.memory.capacity)
    hosts = tuple(Host(named.host, named.slots) for named in read_manifest(run).hosts)
    try:
        return resolve_job(load_recipe(str(run.recipe)), Cluster(hosts=hosts, device=device))
    except DslmError:
        return None  # the model folder has gone, or a newer dslm refuses the recipe


def _device(name: str, capacity: int) -> Device:
    if name == "cpu":
        return cpu_device(capacity)
    if name in DEVICES:
        return replace(DEVICES[name], memory_bytes=capacity)
    return device_reported(name, capacity)


def _allocator(text: str) -> dict[str, int]:
    """The numbers in the last of PyTorch's messages, in bytes."""
    start = text.rfind("Tried to allocate")
    found = {}
    for name, pattern in _ALLOCATOR.items():
        match = re.search(pattern, text[start:]) if start >= 0 else None
        if match:
            number, unit = match[1].split()
            found[name] = int(float(number) * _UNITS[unit])
    return found


def _others(said: dict[str, int]) -> int:
    """Bytes of the device that other processes hold."""
    if not {"capacity", "free", "mine"} <= said.keys():
        return 0
    return max(0, said["capacity"] - said["free"] - said["mine"])
