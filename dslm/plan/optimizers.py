"""Seconds of the optimizer's step: by the bytes that it reads and writes, and Muon's products."""

from __future__ import annotations

from dslm.cluster.hosts import Cluster
from dslm.cluster.speed import Speed
from dslm.plan.states import STATE_BYTES
from dslm.plan.strategy import Strategy
from dslm.profile.value import Profile

# Bytes of each parameter that any update moves: gradient and master copy read, master copy and the
# copy in half precision written; the state is read and written beside.
_MOVED = 14
_ITERATIONS = 5  # of Newton and Schulz, in Muon (DeepSpeed, runtime/zero/muon/original_muon.py)
_STATES_ON_DISK = 24  # moments and master copy, read and written


def updating(
    name: str, profile: Profile, strategy: Strategy, cluster: Cluster, speed: Speed
) -> float:
    """Seconds of one step of the optimizer on the slowest rank."""
    ranks = strategy.data_parallel_size * strategy.sequence_parallel * strategy.tensor_parallel
    whole = ranks if strategy.zero_stage else strategy.tensor_parallel
    share = profile.trained / whole
    device = cluster.device
    seconds = 0.0
    if name == "muon":
        seconds += orthogonalizing(profile) / whole / speed.products
    on_host = device.kind == "cpu" or strategy.offload != "none"
    if not on_host:
        return seconds + share * (_MOVED + 2 * STATE_BYTES[name]) / speed.memory
    # the ranks of a host share its cores
    per_host = share * cluster.slots_per_host
    seconds += per_host / device.host_adam
    if strategy.offload == "nvme":
        seconds += per_host * _STATES_ON_DISK / device.disk_bandwidth
    return seconds


def orthogonalizing(profile: Profile) -> float:
    """FLOPs of Muon's step: of a matrix of m × n, m the shorter side, 4 m² n + 2 m³ an iteration.

    Source: the same file: A = X Xᵀ, B = b A + c A A, X = a X + B X.
    """
    flops = 0.0
    for group in profile.parameters:
        if not group.trained or len(group.shape) < 2 or group.table or group.head:
            continue
        *lead, rows, columns = group.shape
        count = group.count
        for side in lead:
            count *= side
        short, long = min(rows, columns), max(rows, columns)
        flops += count * _ITERATIONS * (4.0 * short**2 * long + 2.0 * short**3)
    return flops
