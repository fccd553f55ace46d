"""The cluster as a value: hosts, their slots, the device that every slot holds."""

from __future__ import annotations

from dataclasses import dataclass

from dslm.cluster.devices import Device


@dataclass(frozen=True, slots=True)
class Host:
    """A machine with slots (accelerators, or ranks on a CPU)."""

    name: str
    slots: int
    devices: tuple[int, ...] = ()  # which accelerators, as the driver counts them; (): the first

    @property
    def address(self) -> str:
        """The name without the `user@` that ssh may want before it."""
        return self.name.rpartition("@")[2]


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """The hosts of one run, all with the same device; local when there is one host, `localhost`."""

    hosts: tuple[Host, ...]
    device: Device
    host_memory_bytes: int | None = None  # of each host; None: not known

    @property
    def world_size(self) -> int:
        """Ranks over all hosts."""
        return sum(host.slots for host in self.hosts)

    @property
    def slots_per_host(self) -> int:
        """The largest number of slots on one host."""
        return max(host.slots for host in self.hosts)
