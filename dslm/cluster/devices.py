"""Accelerators (and the CPU) as data: memory, speed, links, each with its source."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """One kind of device, as its vendor describes it.

    Memory in bytes, FLOP/s dense (no sparsity), bandwidths in bytes per second.
    """

    name: str
    kind: str  # cpu | cuda | rocm
    memory_bytes: int
    peak_flops: dict[str, float]  # by precision: bf16, fp16, fp32
    memory_bandwidth: float
    link_bandwidth: float  # between devices of one host, per device and direction
    network_bandwidth: float  # between hosts, per device and direction
    source: str
