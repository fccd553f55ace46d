"""Speeds as values: what operations reach on a device, and what collectives reach on a link."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dslm.codec import Strict


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed(Strict):
    """What a device reaches in one precision; an operation takes the sum of what it needs.

    A matrix product of m × n × k is charged for its FLOPs and for the bytes of its three matrices:
    the smaller its sides, the more the second counts.
    """

    products: float  # FLOP/s of matrix products, beside what their bytes cost
    product_bytes: float  # bytes/s that products read and write
    attention: float  # FLOP/s of fused attention, every score counted
    memory: float  # bytes/s of every other operation
    launch: float  # seconds of the host for each operation


@dataclass(frozen=True, slots=True)
class Link:
    """One collective on one kind of link: `latency + bytes sent by a rank / bandwidth`."""

    latency: float  # seconds for each doubling of the ranks
    bandwidth: float  # bytes/s, as nccl-tests' bus bandwidth

    def seconds(self, sent: float, ranks: int, messages: float = 1.0) -> float:
        """Seconds of `messages` collectives in which a rank sends `sent` bytes in all."""
        if ranks <= 1 or not sent:
            return 0.0
        return messages * self.latency * math.log2(ranks) + sent / self.bandwidth


COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
Links = dict[str, Link]  # by the name of the collective


def sent(collective: str, size: float, ranks: int) -> float:
    """Bytes that each rank sends for `size` bytes of the whole tensor.

    Source: nccl-tests, doc/PERFORMANCE.md, bus bandwidth.
    """
    return (2 if collective == "all_reduce" else 1) * size * (ranks - 1) / ranks
