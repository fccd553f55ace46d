"""Measure collectives between the ranks that run this: latency and bandwidth of each.

Every rank runs the same: how often is decided by rank 0, so that no rank waits for another. Also
the script that `dslm doctor --measure -H HOSTFILE` starts on hosts: rank 0 prints what was found.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable

import torch
import torch.distributed as dist

_SMALL = 2**10  # elements, fp32: all of it is latency
_LARGE = {"cpu": 2**21, "cuda": 2**26}  # elements at first
_MOST = {"cpu": 2**24, "cuda": 2**28}
_SHARE = 0.12  # of a collective's time, that one of its large ones takes
_TRIES = 5
_SMALL_TRIES = 20


def measured_collectives(
    device: torch.device, seconds: float, group: dist.ProcessGroup | None = None
) -> dict[str, list[float]]:
    """Return latency (seconds for each doubling of ranks) and bus bandwidth (bytes/s) of each.

    Collective: every rank of the group calls it. It takes about so many seconds at most.
    """
    ranks = dist.get_world_size(group)
    found: dict[str, list[float]] = {}
    makers = _ACTIONS
    each = seconds / len(makers)
    for name, (make, factor) in makers.items():
        small = _least(make(_SMALL, ranks, device, group), device, group, _SMALL_TRIES, each / 3)
        elements = _LARGE[device.type]
        action = make(elements, ranks, device, group)
        large = _least(action, device, group, 1, each)
        # neither so much that it takes too long, nor so little that a connection only warms up
        fitting = int(elements * each * _SHARE / large)
        elements = max(_SMALL * 64, min(fitting, _MOST[device.type]))
        action = make(elements, ranks, device, group)
        large = _least(action, device, group, _TRIES, each / 2)
        sent = factor * 4 * elements * (ranks - 1) / ranks
        less = factor * 4 * _SMALL * (ranks - 1) / ranks
        rate = (sent - less) / max(large - small, 1e-9)
        latency = max(0.0, small - less / rate) / math.log2(ranks)
        found[name] = [latency, rate]
    return found


def _least(
    action: Callable[[], object], device: torch.device, group: dist.ProcessGroup | None,
    tries: int, limit: float,
) -> float:  # fmt: skip
    """Seconds of an action, the least of several; all ranks agree on how many."""
    action()
    best, began = float("inf"), time.perf_counter()
    for _ in range(tries):
        dist.barrier(group)
        start = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        best = min(best, now - start)
        enough = torch.tensor([float(now - began > limit)], device=device)
        dist.all_reduce(enough, dist.ReduceOp.MAX, group)
        if enough.item():
            break
    slowest = torch.tensor([best], device=device)
    dist.all_reduce(slowest, dist.ReduceOp.MAX, group)
    return float(slowest.item())


Maker = Callable[[int, int, torch.device, "dist.ProcessGroup | None"], Callable[[], object]]


def _all_reduce(
    size: int, ranks: int, device: torch.device, group: dist.ProcessGroup | None
) -> Callable[[], object]:
    values = torch.zeros(size, device=device)
    return lambda: dist.all_reduce(values, group=group)


def _all_gather(
    size: int, ranks: int, device: torch.device, group: dist.ProcessGroup | None
) -> Callable[[], object]:
    part = torch.zeros(size // ranks, device=device)
    whole = torch.zeros(part.numel() * ranks, device=device)
    return lambda: dist.all_gather_into_tensor(whole, part, group=group)


def _reduce_scatter(
    size: int, ranks: int, device: torch.device, group: dist.ProcessGroup | None
) -> Callable[[], object]:
    part = torch.zeros(size // ranks, device=device)
    whole = torch.zeros(part.numel() * ranks, device=device)
    return lambda: dist.reduce_scatter_tensor(part, whole, group=group)


def _all_to_all(
    size: int, ranks: int, device: torch.device, group: dist.ProcessGroup | None
) -> Callable[[], object]:
    given = torch.zeros(size // ranks * ranks, device=device)
    taken = torch.zeros_like(given)
    return lambda: dist.all_to_all_single(taken, given, group=group)


# with the bytes that a rank sends, of (n - 1) / n of the tensor
_ACTIONS: dict[str, tuple[Maker, int]] = {
    "all_reduce": (_all_reduce, 2),
    "all_gather": (_all_gather, 1),
    "reduce_scatter": (_reduce_scatter, 1),
    "all_to_all": (_all_to_all, 1),
}


def main(argv: list[str]) -> None:
    """Measure inside each host and between hosts, and print it in a line.

    Args:
        argv: the ranks of each host.
    """
    cuda = torch.cuda.is_available()
    dist.init_process_group("nccl" if cuda else "gloo")
    rank, slots = dist.get_rank(), int(argv[0])
    if cuda:
        torch.cuda.set_device(rank % slots)
    device = torch.device("cuda", rank % slots) if cuda else torch.device("cpu")
    hosts = dist.get_world_size() // slots
    found: dict[str, dict[str, list[float]]] = {}
    limit = _LIMIT / ((slots > 1) + (hosts > 1) or 1)
    if slots > 1:
        groups = [dist.new_group(list(range(n * slots, (n + 1) * slots))) for n in range(hosts)]
        mine = groups[rank // slots]
        # one host after the other would take too long: all at once, and the slowest counts
        inside = measured_collectives(device, limit, mine)
        everybody: list[object] = [None] * dist.get_world_size()
        dist.all_gather_object(everybody, inside)
        found["inside"] = _slowest(everybody)
    if hosts > 1:
        found["between"] = measured_collectives(device, limit)
    if rank == 0:
        sys.stdout.write(f"{_MARK}{json.dumps(found)}\n")
        sys.stdout.flush()
    dist.barrier()
    dist.destroy_process_group()


_MARK = "dslm-links: "  # dslm/lifecycle/links.py looks for it
_LIMIT = 20.0  # seconds of the measuring itself, of 30 with joining


def _slowest(everybody: list[object]) -> dict[str, list[float]]:
    maps = [one for one in everybody if isinstance(one, dict)]
    return {
        name: [max(one[name][0] for one in maps), min(one[name][1] for one in maps)]
        for name in _ACTIONS
    }


if __name__ == "__main__":
    main(sys.argv[1:])
